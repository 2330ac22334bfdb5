"""The one list of the programs: each is there, and the command, the Makefile and its help know all of them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import ROOT

from kintsugi.apps import cli
from kintsugi.catalog import METHODS, PROGRAMS, Program, command_line, make_help, see_runs
from kintsugi.train.method import Method

OTHERS = [p for p in PROGRAMS if p not in METHODS]
each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.job)


def test_no_two_programs_have_one_name_or_one_module():
    for column in ([p.words for p in PROGRAMS], [p.job for p in PROGRAMS], [p.module for p in PROGRAMS]):
        assert len(set(column)) == len(PROGRAMS)
    assert len(METHODS) == 25


def test_every_method_of_the_suite_is_in_the_list():
    """Whatever file defines a method's name, and no other, is a program of ``kintsugi train``."""
    folders = [ROOT / folder for folder in ("recon", "contrastive", "pretext", "eval")]
    modules = [f"kintsugi.{f.parent.name}.{f.stem}" for folder in folders for f in sorted(folder.glob("*.py"))]
    defined = {}
    for name in modules:
        module = importlib.import_module(name)
        for kind in vars(module).values():
            own = isinstance(kind, type) and kind.__module__ == name and issubclass(kind, Method)
            if own and hasattr(kind, "name"):
                defined[kind.name] = name
    assert defined == {p.name: p.module for p in METHODS}


@each_program
def test_a_summary_is_one_short_line(program: Program):
    assert 10 < len(program.summary) <= 100
    assert "\n" not in program.summary
    assert not program.summary.endswith(".")


@each_program
def test_the_command_reaches_the_program(program: Program, monkeypatch: pytest.MonkeyPatch):
    received: list[list[str]] = []
    monkeypatch.setattr(importlib.import_module(program.module), "main", received.append)
    monkeypatch.setattr(sys, "argv", ["kintsugi"])
    cli.main([*program.words.split(), "--one", "two words", "--help"])
    assert received == [["--one", "two words", "--help"]]
    assert sys.argv == [f"kintsugi {program.words}"]


@pytest.mark.parametrize("words", ["train rotation", "eval segmentation", "mend"])
def test_a_programs_own_help_calls_it_as_it_was_called(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["kintsugi"])
    with pytest.raises(SystemExit) as stop:
        cli.main([*words.split(), "--help"])
    assert stop.value.code in (0, None)
    help_text = capsys.readouterr().out
    assert help_text.startswith(f"usage: kintsugi {words} [-h]")
    assert "--device" in help_text


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_lists_every_program(argv: list[str], capsys: pytest.CaptureFixture[str]):
    cli.main(argv)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for program in PROGRAMS:
        assert f"kintsugi {program.words} {program.summary}" in lines


def test_help_of_a_group_lists_only_its_programs(capsys: pytest.CaptureFixture[str]):
    cli.main(["eval", "--help"])
    text = capsys.readouterr().out
    for program in PROGRAMS:
        assert (program.summary in text) == (program.group == "eval")


def test_version(capsys: pytest.CaptureFixture[str]):
    import kintsugi

    cli.main(["--version"])
    assert capsys.readouterr().out == f"kintsugi {kintsugi.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("train inpantng", "unknown command train inpantng: did you mean kintsugi train inpainting?"),
        ("train splitbrain_hha", "unknown command train splitbrain_hha: did you mean kintsugi train splitbrain-hha?"),
        ("train segmentation", "unknown command train segmentation: did you mean kintsugi eval segmentation?"),
        ("eval mend", "unknown command eval mend: did you mean kintsugi mend?"),
        ("inpainting", "unknown command inpainting: did you mean kintsugi train inpainting?"),
        ("Mend", "unknown command Mend: did you mean kintsugi mend?"),
        ("trane rotation", "unknown command trane: did you mean kintsugi train?"),
        ("xyzzy", "unknown command xyzzy: kintsugi --help lists all"),
        ("--data photos", "unknown command --data: kintsugi --help lists all"),
        ("train", "name what to train: kintsugi train --help lists all"),
        ("train --data photos", "name what to train: kintsugi train --help lists all"),
    ],
)
def test_an_unknown_command_is_one_line(typed: str, line: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        cli.main(typed.split())
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_help_and_load_encoder_import_torch_only_when_needed():
    """``kintsugi --help`` takes as long as what it imports; ``import kintsugi`` alone is as quick."""
    script = (
        "import sys, kintsugi\n"
        "from kintsugi.apps.cli import main\n"
        "main(['--help'])\n"
        "watched = {'torch', 'numpy', 'tyro', 'PIL', 'kintsugi'}\n"
        "light = {name for name in sys.modules if name.partition('.')[0] in watched}\n"
        "assert light == {'kintsugi', 'kintsugi.apps', 'kintsugi.apps.cli', 'kintsugi.catalog'}, light\n"
        "from kintsugi import load_encoder\n"
        "from kintsugi.train import checkpoint\n"
        "assert load_encoder is checkpoint.load_encoder\n"
        "try: kintsugi.load_decoder\n"
        "except AttributeError as error: assert 'load_decoder' in str(error)\n"
        "else: raise AssertionError"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_catalog_needs_only_the_standard_library(tmp_path: Path):
    """``make help`` runs it with the machine's own Python, before anything is installed."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "kintsugi/catalog.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == make_help() + "\n"


def test_every_other_program_says_which_variables_it_takes():
    (mend,) = (line for line in make_help().splitlines() if line.startswith("make mend "))
    assert mend.endswith("in the mask, white = hole: IN= MASK= OUT= CKPT=")
    assert all(p.takes for p in OTHERS)


def test_the_next_command_is_makes_in_a_checkout_and_kintsugis_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    assert command_line("mend", Path("run")) == "make mend IN= MASK= OUT= CKPT=run"
    assert see_runs() == "make tensorboard"
    monkeypatch.chdir(tmp_path)
    assert command_line("mend", Path("run")) == "kintsugi mend --in IN --mask MASK --out OUT --ckpt run"
    assert command_line("eval segmentation", Path("run")) == "kintsugi eval segmentation --data DATA --ckpt run"
    assert see_runs() == "tensorboard --logdir runs"
