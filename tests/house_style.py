"""The rules of style that no other tool checks: ``python tests/house_style.py``, part of ``make check``.

Prints each violation as ``FILE:LINE: what is wrong`` and ends with code 1 if there is one. ``--all`` also shows what
``NOT_YET`` still allows.
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

NOT_YET: dict[str, set[str]] = {
    "length": {
        "eval/cells.py",
        "kintsugi/data/clips.py",
        "kintsugi/data/images.py",
        "kintsugi/scenes/rendering.py",
        "kintsugi.scenes.classes.py",
        "recon/colorization.py",
        "recon/inpainting.py",
        "recon/synthetic.py",
        "tests/contrastive/test_methods.py",
        "tests/data/test_folders.py",
        "tests/data/test_images.py",
        "tests/pretext/test_clusters.py",
        "tests/pretext/test_video_methods.py",
        "tests/recon/test_synthetic_to_real.py",
    },
    "stem": {"test_methods"},
    "class": {"Clips", "Config", "Job", "Pairs", "Place", "Rgbd", "World"},
    "spelling": {
        "README.md",
        "kintsugi/augment/color_jitter.py",
        "pretext/video.py",
        "recon/inpainting.py",
        "tests/augment/test_masks.py",
        "tests/eval/test_detection.py",
        "tests/eval/test_supervised.py",
        "tests/helpers/faults.py",
        "tests/pretext/test_context.py",
        "tests/pretext/test_jigsaw.py",
        "tests/pretext/test_video_methods.py",
        "tests/recon/test_inpainting.py",
    },
    "phrase": {
        "README.md",
        "apps/jobs.py",
        "eval/cells.py",
        "eval/domains.py",
        "kintsugi/data/hha.py",
        "kintsugi/data/images.py",
        "kintsugi/data/pairs.py",
        "kintsugi/data/rgbd.py",
        "kintsugi/pictures.py",
        "kintsugi/train/method.py",
        "pretext/video.py",
        "recon/splitbrain_hha.py",
        "tests/helpers/faults.py",
        "tests/hostile/test_security.py",
        "tests/pretext/test_rotation.py",
        "tests/recon/test_splitbrain.py",
    },
    "fmt": set(),
}
"""TEMPORARY: rule -> what may still break it (a file, a stem, a class). Nothing is ever added; empty at the end."""


class Violation(NamedTuple):
    rule: str
    subject: str
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
            yield Violation("length", path, path, f"{lines} lines: split files of more than {LINES}")


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
            yield Violation(rule, name, where, f"a second {rule} {name}: the first is {found[0]}")


def matches(rule: str, pattern: str, texts: dict[str, str], advice: str) -> Iterator[Violation]:
    for path, text in texts.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            number = text.count("\n", 0, match.start()) + 1
            yield Violation(rule, path, f"{path}:{number}", f"{' '.join(match[0].split())}: {advice}")


def british(texts: dict[str, str]) -> Iterator[Violation]:
    """British words, also inside of names, such as ``mean_colour`` and ``MeanColour``, which codespell does not see."""
    american = _american()
    for path, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", line):
                if better := american.get(word.lower()):
                    yield Violation("spelling", path, f"{path}:{number}", f"{word}: write {better}")


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


def main(argv: list[str]) -> int:
    """The number of violations that ``NOT_YET`` does not allow, at most 1 as an exit code."""
    violations = check(project())
    broken = {(v.rule, v.subject) for v in violations}
    for rule, subjects in NOT_YET.items():
        for subject in sorted(subjects):
            if (rule, subject) not in broken:
                print(f"note: {rule} {subject} is done: take it out of NOT_YET in tests/house_style.py")
    shown = [v for v in violations if "--all" in argv or v.subject not in NOT_YET[v.rule]]
    for v in shown:
        print(f"{v.where}: {v.message}")
    print(f"house style: {len(shown)} to mend, {len(violations)} in all" if violations else "house style: clean")
    return int(bool(shown))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
