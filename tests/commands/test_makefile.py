"""The Makefile's jobs are the catalog's programs, called with options that they know; make help and the README list
them."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from helpers.command_line import ROOT

from kintsugi.catalog import METHODS, PROGRAMS, Program

MAKEFILE = (ROOT / "Makefile").read_text()
GIVEN = {
    "DATA": "some folder",
    "REAL": "real photos",
    "TEACHER": "alexnet=some file",
    "CKPT": "x",
    "IN": "a.jpg",
    "MASK": "m.png",
    "HINTS": "h.png",
    "OUT": "o.png",
    "ARGS": "--size 96",
}
DONE = ["-o", ".venv/.installed", "-o", ".venv/.studio"]  # make takes what these stamps stand for as installed
WIDTH = "80"  # at this width the help has one column, an option at the beginning of its line
each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.job)


def make(*args: str) -> str:
    """What make prints."""
    return subprocess.run(
        ["make", "--no-print-directory", *DONE, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},  # without what `make test` leaves there
    ).stdout


def phony() -> list[str]:
    """All jobs, as make itself reads them."""
    database = make("--dry-run", "--print-data-base", "help")
    found = re.search(r"^\.PHONY: (.*)$", database, re.M)
    assert found
    return found[1].split()


def recipe(job: str, **given: str) -> list[str]:
    """The words of the command that the job would run."""
    return shlex.split(make("--dry-run", job, *(f"{name}={value}" for name, value in given.items())))


@each_program
def test_a_job_calls_its_program_with_options_that_it_knows(
    program: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """All variables are given at once: a job passes on those that its program takes, and no others."""
    words = recipe(program.job, **GIVEN)
    start = [".venv/bin/python", "-m", "kintsugi", *program.words.split()]
    assert words[: len(start)] == start
    assert words[-2:] == ["--size", "96"]
    options = words[len(start) : -2]
    passed = {name: value for name, value in GIVEN.items() if name in program.takes}
    expected = {("--ckpts" if program.job == "transfer" else f"--{name.lower()}"): v for name, v in passed.items()}
    assert dict(zip(options[::2], options[1::2], strict=True)) == expected
    monkeypatch.setenv("COLUMNS", WIDTH)
    with pytest.raises(SystemExit):
        importlib.import_module(program.module).main(["--help"])
    known = re.findall(r"^[^\w\n-]{0,3}(?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.M)
    assert {*expected, "--help"} <= set(known)


def test_a_job_without_variables_passes_none():
    assert recipe("train-inpainting") == [".venv/bin/python", "-m", "kintsugi", "train", "inpainting"]


def test_transfer_takes_several_checkpoints():
    assert recipe("transfer", CKPT="a b")[3:] == ["transfer", "--ckpts", "a", "b"]


@pytest.mark.parametrize("program", METHODS, ids=lambda p: p.job)
def test_gpus_start_the_same_program_under_torchrun(program: Program):
    start = [".venv/bin/torchrun", "--standalone", "--nproc-per-node=8", "-m", "kintsugi", "train", program.name]
    assert recipe(program.job, GPUS="8", DATA="photos") == [*start, "--data", "photos"]


def test_several_machines_meet_at_the_first_one():
    words = recipe("train-simclr", NODES="4", GPUS="8", HEAD="$(touch mark) `a`:1", DATA="photos")
    meeting = ["--nnodes=4", "--rdzv-backend=c10d", "--rdzv-endpoint", "$(touch mark) `a`:1", "--nproc-per-node=8"]
    assert words == [".venv/bin/torchrun", *meeting, "-m", "kintsugi", "train", "simclr", "--data", "photos"]


def test_the_makefile_has_a_job_for_every_program_and_no_other():
    jobs = [job for job in phony() if job.startswith(("train", "eval"))]
    assert jobs == [p.job for p in PROGRAMS if p.group]
    assert set(phony()) >= {p.job for p in PROGRAMS}


def test_help_and_phony_know_every_job():
    lines = re.findall(r"^make (\S+) +(\S.*)$", make("help"), re.M)
    assert len(lines) == len(dict(lines))
    assert [job for job, _ in lines] == phony()
    assert all(dict(lines)[p.job].startswith(p.summary) for p in PROGRAMS)
    jobs = set(re.findall(r"^([a-z-]+):(?! ?=)", MAKEFILE, re.M))
    assert jobs <= set(phony())


@pytest.mark.parametrize(
    "value", ["a b; touch mark", "$(touch mark)", "$(shell touch mark)", 'Tom\'s "photos" `touch mark` $HOME $$ \\']
)
def test_what_a_person_names_is_one_word_and_never_run(value: str, tmp_path: Path):
    """What the recipe's shell hands on to the program: ``make`` with a PYTHON of ours, which prints its arguments."""
    fake = tmp_path / ".venv/bin/python"
    fake.parent.mkdir(parents=True)
    fake.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(0o755)
    for program in PROGRAMS:
        for name in program.takes:
            if name in ("GPUS", "NODES", "HEAD") or program.job == "transfer":
                continue
            done = subprocess.run(
                ["make", "-f", str(ROOT / "Makefile"), *DONE, program.job, f"{name}={value}"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
                env={"PATH": os.environ["PATH"]},  # without what `make test` leaves there
            )
            assert done.stdout.splitlines()[-2:] == [f"--{name.lower()}", value], program.job
    assert not (tmp_path / "mark").exists()


def test_the_readme_names_every_training_job():
    readme = (ROOT / "README.md").read_text()
    assert not [p.job for p in METHODS if p.job not in readme]
