"""The rules of style that no other tool checks: ``python tests/house_style.py``, part of ``make check``.

Prints each violation as ``FILE:LINE: what is wrong`` and ends with code 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LINES = 350
OWN = {"tests/house_style.py", "tests/commands/test_house_style.py"}  # they name what is forbidden

PHRASES = (
    "hears of",
    "is told",
    "who dares",
    "said of that",
    "what is of",
    "so manieth",
    "knows of",
    "of each its",
    "has to say of",
)
"""Phrases that make a native reader read twice."""


class Violation(NamedTuple):
    rule: str
    where: str
    message: str


def check(texts: dict[str, str]) -> list[Violation]:
    """All violations in ``texts``, path -> content."""
    code = {path: text for path, text in texts.items() if path.endswith(".py")}
    return [
        *too_long(code),
        *same_stem(code),
        *same_class(code),
        *matches("fmt", r"#\s*fmt:\s*(?:skip|off)", code, "let ruff format it"),
        *matches("phrase", rf"\b(?:{'|'.join(PHRASES)})\b".replace(" ", r"[\s#]+"), texts, "write plain English"),
        *british(texts),
    ]


def too_long(code: dict[str, str]) -> Iterator[Violation]:
    for path, text in code.items():
        if (lines := text.count("\n")) > LINES:
            yield Violation("length", path, f"{lines} lines: split files of more than {LINES}")


def same_stem(code: dict[str, str]) -> Iterator[Violation]:
    """Two files of one stem. Those that Python wants everywhere do not count."""
    stems = ((Path(path).stem, path) for path in code)
    yield from _twice("stem", ((stem, path) for stem, path in stems if not stem.startswith("__")))


def same_class(code: dict[str, str]) -> Iterator[Violation]:
    yield from _twice(
        "class",
        (
            (node.name, f"{path}:{node.lineno}")
            for path, text in code.items()
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ClassDef)
        ),
    )


def _twice(rule: str, named: Iterable[tuple[str, str]]) -> Iterator[Violation]:
    places = defaultdict(list)
    for name, where in named:
        places[name].append(where)
    for name, found in places.items():
        for where in found[1:]:
            yield Violation(rule, where, f"a second {rule} {name}: the first is {found[0]}")


def matches(rule: str, pattern: str, texts: dict[str, str], advice: str) -> Iterator[Violation]:
    for path, text in texts.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            number = text.count("\n", 0, match.start()) + 1
            yield Violation(rule, f"{path}:{number}", f"{' '.join(match[0].split())}: {advice}")


def british(texts: dict[str, str]) -> Iterator[Violation]:
    """British words, also inside of names, such as ``mean_colour`` and ``MeanColour``, which codespell does not see."""
    american = _american()
    for path, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", line):
                if better := american.get(word.lower()):
                    yield Violation("spelling", f"{path}:{number}", f"{word}: write {better}")


def _american() -> dict[str, str]:
    """codespell's own list, British -> American."""
    lines = (files("codespell_lib") / "data/dictionary_en-GB_to_en-US.txt").read_text().splitlines()
    return dict(line.rstrip(",").split("->", 1) for line in lines if "->" in line)


def project() -> dict[str, str]:
    """The text files of the checkout: tracked ones and new ones that git does not ignore."""
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "*.py",
            "*.md",
            "*.toml",
            "*.cff",
            "Makefile",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = sorted(path for path in set(listed) - OWN if (ROOT / path).is_file())
    return {path: (ROOT / path).read_text() for path in paths}


def main() -> int:
    """Prints the violations; returns the exit code."""
    violations = check(project())
    for violation in violations:
        print(f"{violation.where}: {violation.message}")
    print(f"house style: {len(violations)} to mend" if violations else "house style: clean")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
