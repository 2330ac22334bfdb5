"""Runs functions in processes forked from this one, each with a log, all within a time limit.

A fork needs no imports, which take many seconds on some machines. A job that crashes or hangs takes nothing else with
it. The parent must not have used the GPU, nor have computed with several threads: neither survives a fork.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType

GRACE = 5.0
"""Seconds that a job has to save what it found, after it was asked to stop (SIGTERM) and before it is killed."""
_END = 1500  # characters of a log that an outcome keeps

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # torch.cuda.is_available() then leaves CUDA unused


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: str
    """finished; failed, with the exit code; stopped, if its time was over; or not begun."""
    seconds: float
    end: str
    """The end of its output."""

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def run(
    jobs: Mapping[str, Callable[[], object]], logs: Path, seconds: float, *, at_once: int = 1, groups: bool = False
) -> dict[str, Outcome]:
    """Runs jobs, ``at_once`` of them at a time, and returns how each ended: name -> outcome.

    The output of a job is in ``logs``/NAME.log. All takes at most ``seconds``: after ``usable(seconds)`` what still
    runs is stopped, and what has not begun is left out. groups: also stop the processes that a job has started.
    """
    logs.mkdir(parents=True, exist_ok=True)
    started, deadline = time.monotonic(), time.monotonic() + usable(seconds)
    waiting, running = list(jobs), dict[str, tuple[ForkProcess, float]]()
    outcomes: dict[str, Outcome] = {}

    def ended(name: str, status: str = "") -> None:
        process, begun = running.pop(name)
        end = (logs / f"{name}.log").read_text(errors="replace")[-_END:]
        if not status:
            status = "finished" if process.exitcode == 0 else f"failed with code {process.exitcode}"
        outcomes[name] = Outcome(status, round(time.monotonic() - begun, 1), end)

    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                child = functools.partial(_child, jobs[name], logs / f"{name}.log", groups)
                process = multiprocessing.get_context("fork").Process(target=child, name=name)
                (logs / f"{name}.log").touch()
                process.start()
                running[name] = process, time.monotonic()
            wait([process.sentinel for process, _ in running.values()], max(0, deadline - time.monotonic()))
            for name in [name for name, (process, _) in running.items() if not process.is_alive()]:
                ended(name)
    finally:
        _stop([process for process, _ in running.values()], groups)
    for name in list(running):
        ended(name, f"stopped after {time.monotonic() - started:.0f} s: its time was over")
    outcomes |= {name: Outcome("not begun: no time was left", 0, "") for name in waiting}
    return {name: outcomes[name] for name in jobs}


def usable(seconds: float) -> float:
    """The seconds of a time limit after which jobs are stopped. The rest is for those that save results first."""
    return max(0.0, seconds - min(GRACE, seconds / 4))


def _child(job: Callable[[], object], log: Path, group: bool) -> None:
    """In the new process: output to the log, and SIGTERM as an exception, so that ``finally`` blocks save results."""
    if group:
        os.setsid()
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # Objects of their own: pytest, for example, has put others in their places.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGTERM, stop)
    job()


def stop(number: int, frame: FrameType | None) -> None:
    """A signal's handler that ends the process like an exception."""
    raise SystemExit(128 + number)


def _stop(processes: list[ForkProcess], groups: bool) -> None:
    """Asks processes to stop, and kills those that still run after ``GRACE`` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.is_alive() and process.pid:
                _send(process.pid, number, groups)
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
    for process in processes:  # what a job has started may outlive it
        if groups and process.pid:
            _send(process.pid, signal.SIGKILL, groups)


def _send(pid: int, number: int, group: bool) -> None:
    try:
        os.killpg(pid, number) if group else os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        if group:  # the process has not made its group yet
            _send(pid, number, False)
