"""``make gpu``: tests, three steps of every method, rates, CIFAR-10, and learning with transfer, within nine minutes.

Each part runs in a process of its own and may use its share of the time that is left; what a part saves, the later ones
have. A part that fails or whose time is over is reported and passed over. Every part leaves PART.json in ``--out``, and
report.md shows all of them. The result fits into eight files of a few MB, for machines that bring back no more.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal

from bench.gpu import carried, forked, gpu_report
from bench.gpu.record import Place, Record
from kintsugi.train.config import run_command, within

Name = Literal["tests", "smoke", "rates", "cifar10", "learn"]
Job = Callable[[Place, Record], None]


@dataclass(frozen=True)
class Planned:
    """A part: its module, which has a function ``run(place, record)``, and its share of the time."""

    module: str
    share: float


PARTS: dict[Name, Planned] = {
    "tests": Planned("bench.gpu.marked_tests", 1),
    "smoke": Planned("bench.gpu.three_steps", 2),
    "rates": Planned("bench.gpu.step_rates", 5),
    "cifar10": Planned("bench.gpu.cifar_run", 3),
    "learn": Planned("bench.gpu.learn", 5),
}


@dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """Tests and measures everything on a GPU, in parts that are bounded in time."""

    parts: tuple[Name, ...] = tuple(PARTS)
    """Which parts to run, in the order given."""
    minutes: float = 9.0
    """The most minutes that all parts take together."""
    carried: Path = carried.FOLDER
    """Folder with wheels/ and data sets as tar files, made by python -m bench.gpu.pack."""
    out: Path = field(default_factory=lambda: Path(os.environ.get("OUT") or "runs/gpu"))
    """Folder for the results; default: $OUT, else runs/gpu."""
    work: Path = Path("runs/gpu-work")
    """Folder for runs, unpacked data and logs."""
    tiny: bool = False
    """The smallest sizes, to try the command on a CPU within a minute."""

    def __post_init__(self) -> None:
        within(self, minutes=0.05)
        if len(set(self.parts)) < len(self.parts) or not self.parts:
            raise ValueError("--parts: name each part once")


def main(begun: float) -> None:
    """The command. begun: when it started, in seconds of ``time.monotonic``."""
    signal.signal(signal.SIGTERM, forked.stop)  # so that it stops the part that runs
    run_command(GpuConfig, partial(run, begun=begun))


def run(config: GpuConfig, begun: float) -> int:
    """Runs the parts and writes the report; returns how many parts failed. begun: from when on the minutes count."""
    modules = {name: _module(name) for name in config.parts}  # imported once, here, for all processes
    place = Place(carried=config.carried, out=config.out, work=config.work, tiny=config.tiny)
    config.out.mkdir(parents=True, exist_ok=True)
    about = {
        "device": device(),
        "torch": importlib.metadata.version("torch"),
        "command": _command(),
        "tiny": config.tiny,
    }
    failed = 0
    for number, name in enumerate(config.parts):
        left = 60 * config.minutes - (time.monotonic() - begun)
        shares = [PARTS[later].share for later in config.parts[number:]]
        print(f"{name}: at most {left * shares[0] / sum(shares):.0f} s", flush=True)
        outcome = run_part(name, modules[name].run, place, left * shares[0] / sum(shares), about)
        print(f"{name}: {outcome.status} ({outcome.seconds:.0f} s)", flush=True)
        failed += not outcome.finished
        gpu_report.write(config.out)
    return failed


def run_part(name: str, job: Job, place: Place, seconds: float, about: Mapping[str, object]) -> forked.Outcome:
    """Runs one part for at most ``seconds``, in a process of its own, and completes its file.

    about: what the file says of the machine and the command.
    """
    file = place.out / f"{name}.json"
    file.unlink(missing_ok=True)
    record, began = Record(file, time.monotonic() + forked.usable(seconds)), round(time.time(), 2)
    jobs = {name: partial(_part, job, place, record)}
    outcome = forked.run(jobs, place.work / "logs", seconds, groups=True)[name]
    found = json.loads(file.read_text()) if file.exists() else {}
    ended = {"part": name, "status": outcome.status, "began": began, "seconds": outcome.seconds, **about}
    log = {} if outcome.finished else {"end of the log": outcome.end}
    file.write_text(json.dumps({**ended, **found, **log}, indent=1) + "\n")
    return outcome


def _part(job: Job, place: Place, record: Record) -> None:
    job(place, record)
    if record.failed:
        raise SystemExit(1)


def _module(name: Name) -> ModuleType:
    return importlib.import_module(PARTS[name].module)


def device() -> str:
    """The name of the GPU, read without torch, because this process must not use CUDA; else the CPU."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
        if found:
            return found[0]
    return f"a CPU with {os.cpu_count()} cores"


def _command() -> str:
    return shlex.join(["python", "-m", "bench.gpu", *sys.argv[1:]])
