"""Memory, open files and threads do not grow with the steps, and none is left at the end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from helpers import faulty_runs, tiny_method

STEPS = 5_000


@pytest.mark.slow
def test_memory_and_files_stay_flat(tmp_path: Path):
    args = f"--steps {STEPS} --log-every 10 --show-every 50 --eval-every 50 --save-every 50 --keep 2 --out run".split()
    args[-1] = str(tmp_path / "run")
    process = faulty_runs.start("helpers.tiny_method", args, tmp_path / "output", ("measure", STEPS // 5))
    assert faulty_runs.finish(process, 1200) == 0, (tmp_path / "output").read_text()
    lines = [line for line in (tmp_path / "output").read_text().splitlines() if line.startswith("measured: ")]
    print(*lines, sep="\n")
    figures = [list(map(int, line.split()[2:])) for line in lines]  # memory, files, threads
    first, last = figures[1], figures[-1]  # at the first figure not everything is allocated yet
    assert last[0] < first[0] + 10_000  # kB
    assert last[1:] == first[1:]


def test_nothing_is_left_at_the_end(tmp_path: Path):
    tiny_method.main(["--out", str(tmp_path / "before")])  # opens what stays open
    before = left()
    tiny_method.main(["--out", str(tmp_path / "run")])
    assert left() == before


def left() -> tuple[set[threading.Thread], int, str]:
    """This process's threads, how many files it has open, and its children, zombies too."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return set(threading.enumerate()), len(os.listdir("/proc/self/fd")), children
