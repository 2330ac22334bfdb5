"""Training runs in processes that may be killed at any moment, at a fraction of the price of a fresh interpreter."""

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
from conftest import ROOT
from torch import Tensor

from helpers.tiny import Tiny
from kintsugi.train.method import Batch

# It imports torch once and computes nothing; each run is a fork of it.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["helpers.tiny", "helpers.faults"])


def preload(*modules: str) -> None:
    """Spares each run of these their imports, if no run has been started yet."""
    _server.set_forkserver_preload(["helpers.tiny", "helpers.faults", *modules])


def start(module: str, args: list[str], said: Path, fault: tuple[str, int] | None = None) -> ForkServerProcess:
    """``python -m MODULE ARGS``, with what it says on stdout and stderr in the file ``said``.

    fault: a point of ``POINTS`` and how many times it is passed before the process kills itself there.
    """
    with pytest.MonkeyPatch.context() as environment:
        # The server, which the first process starts, does not get this one's sys.path.
        environment.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
        process = _server.Process(target=_main, args=(module, args, str(said), fault))
        process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = 600) -> int:
    """Waits for its end; the exit code, negative for a signal."""
    process.join(seconds)
    assert process.exitcode is not None, "it hangs"
    code = process.exitcode
    process.close()
    return code


def _main(module: str, args: list[str], said: str, fault: tuple[str, int] | None) -> None:
    # SIGINT was ignored by the server, for its own sake.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
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
    """Dies as it is about to call ``owner.name`` for the ``count``-th time, counted from 0."""

    def arm(count: int) -> None:
        really, left = getattr(owner, name), [count]

        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                _die()
            return really(*args, **options)

        setattr(owner, name, call)

    return arm


def _in_write(count: int) -> None:
    """Dies after ``count`` bytes of checkpoints have been written, in the middle of a file."""
    really, left = torch.save, [count]

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
        really(content, Dying(file))

    torch.save = save


def _signalled(kind: signal.Signals) -> Callable[[int], None]:
    """Is sent the signal so many times, one after the other, in the step after the third."""

    def arm(count: int) -> None:
        really = Tiny.update

        def update(self: Tiny, batch: Batch, step: int) -> dict[str, Tensor]:
            for _ in range(count if step == 3 else 0):
                os.kill(os.getpid(), kind)
            return really(self, batch, step)

        Tiny.update = update  # type: ignore[method-assign]

    return arm


def _audited(_: int) -> None:
    """Prints what it changes on the disk, starts, binds and unpickles, as Python's audit hears it."""
    changes = {"os.mkdir", "os.rename", "os.remove", "os.symlink"}
    others = {"subprocess.Popen", "os.system", "os.posix_spawn", "socket.bind", "pickle.find_class"}

    def hear(event: str, args: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writing and not isinstance(args[0], int)) or event in changes | others:
            place = args[1] if event == "os.symlink" else args[0]
            text = os.fsdecode(place) if isinstance(place, (str, bytes, os.PathLike)) else repr(place)
            os.write(1, f"\naudit: {event} {text}\n".encode())

    sys.addaudithook(hear)


def _measured(every: int) -> None:
    """Prints memory (kB), open files and threads, before every so manieth step."""
    really = Tiny.update

    def update(self: Tiny, batch: Batch, step: int) -> dict[str, Tensor]:
        if step % every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") // 1024
            files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
            os.write(1, f"\nmeasured: {step} {memory} {files} {threads}\n".encode())
        return really(self, batch, step)

    Tiny.update = update  # type: ignore[method-assign]


POINTS: dict[str, Callable[[int], None]] = {
    "write": _in_write,  # in the middle of a checkpoint
    "fsync": _before(os, "fsync"),  # it is written, but perhaps not on the disk
    "replace": _before(Path, "replace"),  # it is whole, but under its temporary name; or the pointer latest is
    "unlink": _before(Path, "unlink"),  # old ones are to be deleted
    "point": _before(Path, "write_text"),  # the latest run is to be named
    "audit": _audited,  # it does not die at all
    "measure": _measured,  # nor here
    "step": _before(Tiny, "update"),
    "SIGINT": _signalled(signal.SIGINT),
    "SIGTERM": _signalled(signal.SIGTERM),
}

if __name__ == "__main__":
    # Under torchrun, python -m faults RANK POINT COUNT ARGS: a tiny run of which that rank has the fault.
    rank, point, count, *args = sys.argv[1:]
    if os.environ["RANK"] == rank:
        POINTS[point](int(count))
    importlib.import_module("helpers.tiny").main(args)
