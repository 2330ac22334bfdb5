"""Every example of the documentation runs: ``pycon`` blocks of the pages, and those in docstrings of the library."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
from helpers.command_line import ROOT

import kintsugi
from bench.tables import pages

PYCON = re.compile(r"^```pycon\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
LIBRARY = sorted(Path(kintsugi.__file__).parent.rglob("*.py"))


def with_examples(files: list[Path]) -> list[Path]:
    return [file for file in files if re.search(r"^\s*>>> ", file.read_text(), re.MULTILINE)]


def test_there_are_examples():
    assert len(with_examples(pages())) >= 2
    assert len(with_examples(LIBRARY)) >= 4


@pytest.mark.parametrize("page", with_examples(pages()), ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path):
    """All blocks of a page are one session, as a reader would type them."""
    text = page.read_text()
    session = "\n".join(PYCON.findall(text))
    assert session.count(">>> ") == len(re.findall(r"^\s*>>> ", text, re.MULTILINE)), "an example is in no pycon block"
    test = doctest.DocTestParser().get_doctest(session, {}, page.stem, str(page), 0)
    results = doctest.DocTestRunner(optionflags=FLAGS).run(test)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("file", with_examples(LIBRARY), ids=lambda file: file.stem)
def test_the_examples_of_docstrings_run(file: Path):
    path = file.relative_to(Path(kintsugi.__file__).parents[1]).with_suffix("")
    results = doctest.testmod(importlib.import_module(".".join(path.parts)), optionflags=FLAGS)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_readme_shows_the_same_loading_as_the_page():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert block in (ROOT / "docs/library.md").read_text()
