"""The commands on the pages: each job is there, takes these variables, and its program knows these options."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator

import pytest
from helpers.command_line import ROOT

from bench.tables import pages
from kintsugi.catalog import METHODS, PROGRAMS, Program
from kintsugi.train.command import named
from kintsugi.train.config import _flags, parse_training, user_errors

INLINE = re.compile(r"`(make [a-z][^`]*)`")
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PHONY = {"test", "help", "setup", "tensorboard", "bench", "gpu", "docs", "check", "format", "dist"}
JOBS = {program.job: program for program in PROGRAMS}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``make`` and ``kintsugi`` command in a shell block or a sentence: the page, and the command's words, with
    variables such as ``S="..."`` replaced by their values."""
    for page in [*pages(), ROOT / "README.md", ROOT / "bench/results/transfer/README.md"]:
        text = page.read_text()
        sentences = [line for line in INLINE.findall(text) if not re.search("train-\\.\\.\\.|METHOD|TASK", line)]
        for block in [*SHELL.findall(text), *sentences]:
            variables: dict[str, str] = {}
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.fullmatch(r'([A-Z]+)="(.*)"', line):
                    variables[f"${found[1]}"] = found[2]
                for name, value in variables.items():
                    line = line.replace(f"{name} ", f"{value} ")
                words = shlex.split(line, comments=True)
                if words[:1] in (["make"], ["kintsugi"]):
                    yield page.stem, words


COMMANDS = [pytest.param(words, id=f"{page}: {' '.join(words)}") for page, words in commands()]


def program_of(words: list[str]) -> tuple[Program | None, dict[str, str], list[str]]:
    """What a command runs, the Makefile's variables that it is given, and its options."""
    if words[0] == "kintsugi":
        job = "-".join(words[1:3]) if words[1] in ("train", "eval") else words[1]
        return JOBS.get(job), {}, words[3 if "-" in job else 2 :]
    given = dict(word.split("=", 1) for word in words[2:])
    return JOBS.get(words[1]), given, shlex.split(given.pop("ARGS", ""))


def test_there_are_many():
    assert len(COMMANDS) > 150


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_one_that_runs(words: list[str]):
    if words[1] in PHONY or words == ["kintsugi", "--help"]:
        return
    program, given, options = program_of(words)
    assert program is not None
    assert set(given) <= set(program.takes)
    module = importlib.import_module(program.module)
    if program in METHODS and "--resume" not in options:
        presets = named([module.demo, module.small, module.paper])
        with user_errors():
            parse_training(program.name, presets, [word for word in options if word != "..."])
    else:
        configs = [of for of in vars(module).values() if isinstance(of, type) and of.__name__.endswith("Config")]
        known = {flag for config in configs for flag in _flags(config)}
        assert {word for word in options if word.startswith("--")} <= known
