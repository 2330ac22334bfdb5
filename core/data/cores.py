"""Work on many images with all cores of a CPU, each core on images of its own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_this = threading.local()


def share(work: Callable[[slice], object], count: int, few: int) -> None:
    """Calls ``work`` with slices of range(``count``), at most ``few`` long, on as many threads as torch has.

    One operation on few images is too short for torch to share it among cores itself: here each core does all of them
    on its own images, and what one passes to the next stays in its cache. ``work`` must not need gradients. Where it
    calls this again, it goes on alone.
    """
    threads = 1 if getattr(_this, "shares", False) else torch.get_num_threads()
    few = min(few, -(-count // threads))
    slices = [slice(first, first + few) for first in range(0, count, few)]
    if threads == 1 or len(slices) == 1:
        for rows in slices:
            work(rows)
    else:
        for _ in _pool(threads).map(work, slices):
            pass


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one core."""
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread's first call takes over the number of all, and undoes what was set before
        torch.set_num_threads(1)
        _this.shares = True
        started.wait()

    pool = ThreadPoolExecutor(count, "images", start)
    for _ in range(count):
        pool.submit(int)  # starts a thread
    started.wait()
    torch.set_num_threads(count)  # for MKL and for threads to come, of which each start() has made it 1
    return pool
