"""Part ``tests`` of ``make gpu``: the tests that need a GPU (``pytest -m gpu``)."""

from __future__ import annotations

import re

import pytest

from bench.gpu.record import Place, Record
from bench.gpu.sets import TESTS


class Outcomes:
    """A plugin of pytest that records how each test ended."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:  # a skipped test ends before its call
            values = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
            self.record.row("test", report.nodeid.split("/")[-1], values)


def marked_files() -> list[str]:
    """The files with a test that is marked gpu: importing all others would take a minute on a GPU machine."""
    return sorted(str(file) for file in TESTS.rglob("test_*.py") if re.search(r"mark\.gpu\b", file.read_text()))


def run(place: Place, record: Record) -> None:
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--basetemp", str(place.work.resolve() / "pytest")]
    code = pytest.main([*options, *marked_files()], plugins=[Outcomes(record)])
    if code:
        record.note(f"pytest ended with code {int(code)}", failed=True)
