"""Training runs in processes of their own that kill themselves at a given point, or are watched.

They are forks of a server that has imported torch, which takes a fraction of the time of a fresh interpreter.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.command_line import python_path
from helpers.tiny_method import TinyMethod
from kintsugi.train.method import Batch

# It imports torch once and computes nothing; each run is a fork of it.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["helpers.tiny_method", "helpers.faulty_runs"])


def preload(*modules: str) -> None:
    """Imports these modules once, in the server, for all runs. Has an effect only before the first run."""
    _server.set_forkserver_preload(["helpers.tiny_method", "helpers.faulty_runs", *modules])


def start(module: str, args: list[str], output: Path, fault: tuple[str, int] | None = None) -> ForkServerProcess:
    """Starts ``python -m MODULE ARGS``; its stdout and stderr are appended to the file ``output``.

    fault: a name in ``POINTS``, and the count that its function takes.
    """
    with pytest.MonkeyPatch.context() as environment:
        # The server starts with the first process. It does not inherit this one's sys.path.
        environment.setenv("PYTHONPATH", python_path())
        process = _server.Process(target=_main, args=(module, args, str(output), fault))
        process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = 600) -> int:
    """Waits until the process ends. Returns its exit code, or minus the number of the signal that ended it."""
    process.join(seconds)
    assert process.exitcode is not None, "it hangs"
    code = process.exitcode
    process.close()
    return code


def _main(module: str, args: list[str], output: str, fault: tuple[str, int] | None) -> None:
    # The server ignores SIGINT, and its forks inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)

    torch.set_num_threads(1)
    if fault is not None:
        POINTS[fault[0]](fault[1])
    importlib.import_module(module).main(args)


# --- where a process kills itself -----------------------------------------------------------------------------


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: Any, name: str) -> Callable[[int], None]:
    """Dies before call number ``count`` of ``owner.name``, counted from 0."""

    def arm(count: int) -> None:
        original, left = getattr(owner, name), [count]

        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                _die()
            return original(*args, **options)

        setattr(owner, name, call)

    return arm


def _in_write(count: int) -> None:
    """Dies after ``count`` bytes of checkpoints are written, in the middle of a file."""
    original, left = torch.save, [count]

    class Dying(io.RawIOBase):
        def __init__(self, file: Any) -> None:
            self.file = file

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            size = memoryview(data).nbytes
            if size >= left[0]:
                self.file.write(bytes(data)[: left[0]])
                self.file.flush()
                _die()
            left[0] -= size
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    def save(content: Any, file: Any) -> None:
        original(content, Dying(file))

    torch.save = save


def _signaled(kind: signal.Signals) -> Callable[[int], None]:
    """Receives the signal ``count`` times in step 3, counted from 0."""

    def arm(count: int) -> None:
        original = TinyMethod.update

        def update(self: TinyMethod, batch: Batch, step: int) -> dict[str, Tensor]:
            for _ in range(count if step == 3 else 0):
                os.kill(os.getpid(), kind)
            return original(self, batch, step)

        TinyMethod.update = update  # type: ignore[method-assign]

    return arm


def _audited(_: int) -> None:
    """Prints each change on the disk, started process, bound socket and unpickled class, from Python's audit events."""
    changes = {"os.mkdir", "os.rename", "os.remove", "os.symlink"}
    others = {"subprocess.Popen", "os.system", "os.posix_spawn", "socket.bind", "pickle.find_class"}

    def report(event: str, args: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writing and not isinstance(args[0], int)) or event in changes | others:
            place = args[1] if event == "os.symlink" else args[0]
            text = os.fsdecode(place) if isinstance(place, (str, bytes, os.PathLike)) else repr(place)
            os.write(1, f"\naudit: {event} {text}\n".encode())

    sys.addaudithook(report)


def _measured(every: int) -> None:
    """Prints memory in kB, open files and threads before every ``every``-th step."""
    original = TinyMethod.update

    def update(self: TinyMethod, batch: Batch, step: int) -> dict[str, Tensor]:
        if step % every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") // 1024
            files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
            os.write(1, f"\nmeasured: {step} {memory} {files} {threads}\n".encode())
        return original(self, batch, step)

    TinyMethod.update = update  # type: ignore[method-assign]


POINTS: dict[str, Callable[[int], None]] = {
    "write": _in_write,  # in the middle of a checkpoint
    "fsync": _before(os, "fsync"),  # the file is written, but may not be on the disk yet
    "replace": _before(Path, "replace"),  # the checkpoint, or the pointer latest, is whole but has its temporary name
    "unlink": _before(Path, "unlink"),  # old checkpoints are about to be deleted
    "point": _before(Path, "write_text"),  # the pointer latest is about to be written
    "audit": _audited,  # does not die
    "measure": _measured,  # does not die
    "step": _before(TinyMethod, "update"),
    "SIGINT": _signaled(signal.SIGINT),
    "SIGTERM": _signaled(signal.SIGTERM),
}

if __name__ == "__main__":
    # Under torchrun: python -m helpers.faulty_runs RANK POINT COUNT ARGS, a tiny run in which one rank has the fault.
    rank, point, count, *args = sys.argv[1:]
    if os.environ["RANK"] == rank:
        POINTS[point](int(count))
    importlib.import_module("helpers.tiny_method").main(args)
