"""The order of images and their way to the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from core.data.images import Images
from core.rng import generator


class Loader:
    """Batches of images in an order that is a function of (seed, epoch) alone.

    The epochs' permutations form one endless sequence; step s of the run takes ``batch`` positions of it from
    s * batch on, and a rank its contiguous slice of those. So a run may start at any step and on any number of ranks,
    and within an epoch no image comes twice.
    """

    def __init__(
        self, images: Images, batch: int, seed: int, rank: int = 0, world: int = 1,
        device: torch.device | str = "cpu", prefetch: int = 3,
    ) -> None:  # fmt: skip
        assert batch % world == 0
        self.images, self.batch, self.seed = images, batch, seed
        self.rank, self.world, self.device, self.prefetch = rank, world, torch.device(device), prefetch
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Which images this rank sees at a step, (batch / world,)."""
        part = self.batch // self.world
        first = step * self.batch + self.rank * part
        count = len(self.images)
        return torch.stack([self._permutation(p // count)[p % count] for p in range(first, first + part)])

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = torch.randperm(len(self.images), generator=generator(self.seed, epoch))
            self._epoch, self._order = epoch, order
        return self._order

    @contextmanager
    def iterate(self, start: int) -> Iterator[Iterator[dict[str, Tensor]]]:
        """The batches of step ``start``, ``start + 1``, ... on the device, read ahead by one thread.

        What goes wrong in the thread is raised where the batch is awaited.
        """
        ready: queue.Queue[dict[str, Tensor] | BaseException] = queue.Queue(self.prefetch)
        closed = threading.Event()

        def offer(item: dict[str, Tensor] | BaseException) -> None:
            while not closed.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read_ahead() -> None:
            step = start
            try:
                while not closed.is_set():
                    batch = self.images.batch(self.indices(step))
                    offer(
                        {name: v.pin_memory() for name, v in batch.items()}
                        if self.device.type == "cuda"
                        else batch
                    )
                    step += 1
            except BaseException as error:
                offer(error)

        def batches() -> Iterator[dict[str, Tensor]]:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield {name: value.to(self.device, non_blocking=True) for name, value in item.items()}

        thread = threading.Thread(target=read_ahead, name="loader", daemon=True)
        thread.start()
        try:
            yield batches()
        finally:
            closed.set()
            thread.join()
