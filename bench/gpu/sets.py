"""The data sets of ``make gpu``, and the small images and command lines that it borrows from the project's tests."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.gpu import carried
from bench.gpu.record import Place, Record

TESTS = Path(__file__).parents[2] / "tests"
sys.path.append(str(TESTS))

from helpers import tiny_folders, tiny_runs  # noqa: E402

__all__ = ["TESTS", "labeled", "tiny_folders", "tiny_runs"]


def labeled(place: Place, record: Record, name: str, instead: str) -> str:
    """A set with labels: the carried one of this ``name``, else the data ``instead``, with a note.

    Returns a folder with train/ and test/ of a folder for each class, or ``instead``.
    """
    folder = carried.unpack(place.carried, name, place.work / "data")
    if place.tiny and not folder.exists():
        folder.mkdir(parents=True)
        tiny_folders.labeled(folder, 72, 72)
    if folder.exists():
        return str(folder)
    record.note(f"{name} is not carried: {instead} is used")
    return instead


def training_part(data: str) -> str:
    """What a training takes of ``labeled``: its training images."""
    return f"{data}/train" if Path(data, "train").is_dir() else data
