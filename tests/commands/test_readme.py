"""The README is one page, which names every method."""

from __future__ import annotations

import re

from helpers.command_line import ROOT

README = (ROOT / "README.md").read_text()
MOST_WORDS = 900


def test_it_is_read_in_five_minutes():
    assert len(README.split()) <= MOST_WORDS


def test_the_two_commands_come_first():
    first = re.search(r"```sh\n(.*?)```", README, re.DOTALL)[1]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make train-inpainting", "make test"]


def test_each_method_is_one_line_with_its_command():
    pages = {page.stem for page in (ROOT / "docs/methods").glob("*.md")} - {"index"}
    rows = re.findall(r"^\| \[.*\]\(docs/methods/([\w-]+)\.md\) .*`make (train-[\w-]+)` \|$", README, re.MULTILINE)
    assert {page for page, _ in rows} == pages
    assert all(job == f"train-{page}" for page, job in rows)
