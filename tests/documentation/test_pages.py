"""The pages of the documentation: their tables are those of the results, and what they name is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from helpers.command_line import ROOT

from bench import tables, transfer_tables
from bench.printing import RESULTS
from bench.transfer_tables import COLUMNS

PAGES = tables.pages()
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"\b(?:tests|bench|recon|contrastive|pretext|eval|apps|kintsugi)/[\w/.-]*[\w/]")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tables_are_those_of_the_results(page: Path):
    text = page.read_text()
    assert tables.refreshed(text) == text, "run `python -m bench.tables`"
    assert text.count("<!-- table:") == text.count("<!-- end of table -->") == len(tables.BLOCK.findall(text))


def test_every_table_is_on_a_page():
    shown = {name for page in PAGES for _, name, _ in tables.BLOCK.findall(page.read_text())}
    assert shown >= set(tables.TABLES)


def test_an_unknown_table_is_named():
    with pytest.raises(ValueError, match="no table 'nothing'"):
        tables.block("nothing")


@pytest.mark.parametrize("report", ["report", "scenes", "cifar10", "figure-ground"])
def test_the_transfer_tables_equal_the_reports_that_were_written_with_the_results(report: str):
    """``report.md`` was written by the run itself, with gains over the rows that it had for random weights."""
    printed = transfer_tables.transfer_rows(report)
    head, _, *lines = (RESULTS / f"transfer/{report}.md").read_text().split("\n\n")[0].splitlines()
    columns = [cell.strip() for cell in head.split("|")[2:-1]]
    assert len(lines) == len(printed)
    for line in lines:
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        row = printed[transfer_tables.label(name)]
        assert [row[COLUMNS[column]] for column in columns] == cells


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_links_and_files_that_are_named_are_there(page: Path):
    text = page.read_text()
    links = [link.split("#")[0] for link in LINK.findall(text) if not link.startswith(("http", "#"))]
    assert not [link for link in links if not _there(page.parent / link)]
    assert not [path for path in NAMED.findall(text) if not _there(ROOT / path) and "mymethod" not in path]


def _there(path: Path) -> bool:
    """What ``make docs`` and ``make`` itself make is not there before."""
    return path.parent.name == "api" or path.exists()


def test_every_method_has_a_page():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    methods = re.findall(r"^make train-([a-z-]+)", listed, re.MULTILINE)
    assert len(methods) >= 19
    assert {page.stem for page in PAGES if page.parent.name == "methods"} == {*methods, "index"}
    listed = (ROOT / "docs/methods/index.md").read_text().splitlines()
    for method in methods:
        page = ROOT / f"docs/methods/{method}.md"
        assert method in listed
        text = page.read_text()
        assert f"make train-{method}" in text
        assert "## The idea" in text
