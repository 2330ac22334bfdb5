"""The Makefile's jobs call commands that exist, with options that they know; make help and the README list them."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from pathlib import Path
from typing import get_type_hints

import pytest
from helpers.command_line import ROOT

from kintsugi.train.config import _flags

MAKEFILE = (ROOT / "Makefile").read_text()
JOBS = dict(re.findall(r"^([a-z-]+): \$\(READY\).*\n\t@.*?(?:-m|RUN\)) (kintsugi\.[\w.]+.*)$", MAKEFILE, re.M))
VARIABLES = {"$(data)": "--data", "$(real)": "--real", "$(ckpt)": "--ckpt", "$(in)": "--in", "$(out)": "--out"}


def test_there_is_a_job_for_each_command():
    assert len(JOBS) > 15
    assert {job for job in JOBS if job.startswith("train-")} >= {
        "train-inpainting",
        "train-splitbrain-hha",
        "train-byol",
    }


@pytest.mark.parametrize("job", JOBS)
def test_a_job_calls_what_there_is(job: str):
    name, _, rest = JOBS[job].partition(" ")
    module = importlib.import_module(name)
    config = get_type_hints(module.run)["config"] if hasattr(module, "run") else type(module.demo())
    options = re.findall(r"--[a-z-]+", rest) + [option for v, option in VARIABLES.items() if v in rest]
    assert set(options) <= set(_flags(config))
    assert callable(module.main)


def test_help_and_phony_know_every_job():
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split())
    jobs = set(re.findall(r"^([a-z-]+):(?! ?=)", MAKEFILE, re.M))
    assert jobs == phony
    undescribed = [line for line in MAKEFILE.splitlines() if re.match(r"[a-z-]+:(?! ?=)", line) and " ## " not in line]
    assert not undescribed


@pytest.mark.parametrize(
    "said", ["a b; touch mark", "$(touch mark)", "$(shell touch mark)", 'Tom\'s "photos" `touch mark` $HOME $$ \\']
)
def test_what_a_person_names_is_one_word_and_never_run(said: str, tmp_path: Path):
    """What the recipe's shell hands on to the program: ``make`` with a PYTHON of ours, which prints its arguments."""
    fake = tmp_path / ".venv/bin/python"
    fake.parent.mkdir(parents=True)
    fake.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(0o755)
    for job, option, variable in (("train-inpainting", "--data", "DATA"), ("mend", "--in", "IN")):
        done = subprocess.run(
            ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.installed", job, f"{variable}={said}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": os.environ["PATH"]},  # without what `make test` leaves there
        )
        words = done.stdout.splitlines()
        assert words[-2:] == [option, said]
    assert not (tmp_path / "mark").exists()


def test_the_readme_names_every_training_job():
    readme = (ROOT / "README.md").read_text()
    assert not [job for job in JOBS if job.startswith("train-") and job not in readme]
