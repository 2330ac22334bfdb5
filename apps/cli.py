"""The command ``kintsugi``: it finds a program in the catalog and passes the rest of the command line on to it.

``kintsugi train inpainting --data photos`` is ``python -m kintsugi.recon.inpainting --data photos``. Nothing heavy is
imported before the program is known, so that ``kintsugi --help`` answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from kintsugi import __version__
from kintsugi.catalog import GROUPS, PROGRAMS, Program

HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program that the first words name. For an unknown name one line suggests the nearest; exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in HELP:
        print(help_text())
        return
    if words[0] == "--version":
        print(f"kintsugi {__version__}")
        return
    group = words.pop(0) if words[0] in ("train", "eval") else ""
    if group and words[:1] and words[0] in HELP:
        print(help_text(group))
        return
    program = _find(group, words.pop(0) if words else "")
    sys.argv[0] = f"kintsugi {program.words}"  # the name that the program's own --help shows
    importlib.import_module(program.module).main(words)


def help_text(group: str | None = None) -> str:
    """The help: a line for each program, of all groups or of one."""
    lines = ["usage: kintsugi COMMAND [OPTIONS]; kintsugi COMMAND --help shows a command's options"]
    for known, heading in GROUPS.items():
        if group in (None, known):
            lines += ["", f"{heading}:"]
            lines += [f"  kintsugi {p.words:<22} {p.summary}" for p in PROGRAMS if p.group == known]
    if group is None:
        lines += ["", "See all runs, their pictures and curves: tensorboard --logdir runs"]
    return "\n".join(lines)


def _find(group: str, name: str) -> Program:
    """The program with this name in this group; fails with one line if there is none."""
    for program in PROGRAMS:
        if (program.group, program.name) == (group, name):
            return program
    if group and (not name or name.startswith("-")):
        _fail(f"name what to {group}: kintsugi {group} --help lists all")
    near = _nearest(group, name)
    hint = f"did you mean kintsugi {near}?" if near else "kintsugi --help lists all"
    _fail(f"unknown command {f'{group} {name}'.strip()}: {hint}")


def _nearest(group: str, name: str) -> str:
    """The words of the program whose name is most like ``name``, preferably in the group; empty if none is like it."""
    name = name.lower().replace("_", "-")
    everywhere = {p.name: p.words for p in reversed(PROGRAMS)}  # a method comes before its measurement
    if name in everywhere:
        return everywhere[name]
    here = {p.name: p.words for p in PROGRAMS if p.group == group}
    if not group:
        here |= {"train": "train", "eval": "eval"}
    for names in (here, everywhere):
        if near := difflib.get_close_matches(name, names, n=1):
            return names[near[0]]
    return ""


def _fail(line: str) -> NoReturn:
    """Prints one line to stderr and exits with code 2, as ``kintsugi.train.config`` does, without importing torch."""
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
