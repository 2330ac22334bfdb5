"""The order in which samples are read, and their transfer to the device."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from kintsugi.data.image_set import Images
from kintsugi.rng import generator


class Indexed(Protocol):
    """Samples in a fixed order, read in batches: ``Images``, ``Tuples`` of frames, or two sets side by side."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]: ...


class Resident:
    """All of ``images`` in the memory of ``device``, uint8, padded to the largest. Batches equal those of
    ``Images.batch``.

    The images must be decoded (``Source.extents``).
    """

    def __init__(self, images: Images, device: torch.device | str) -> None:
        height, width = images.extents.amax(0).tolist()
        self.device = torch.device(device)
        self.extent = images.extents  # (N,2), on the CPU, because the size of each batch is read from it
        self.pixels = torch.zeros(len(images), images.source.planes, height, width, dtype=torch.uint8, device=device)
        for rows in torch.arange(len(images)).split(256):
            chunk = images.batch(rows)["image"].to(device)
            self.pixels[rows[0] : rows[-1] + 1, :, : chunk.shape[2], : chunk.shape[3]] = chunk
        self.on_device = {"extent": self.extent.to(device)}
        if images.labels is not None:
            self.on_device["label"] = images.labels.to(device)

    @staticmethod
    def size(images: Images) -> int:
        """The number of bytes that ``images`` would take on the device."""
        return len(images) * images.source.planes * int(images.extents.amax(0).prod())

    def __len__(self) -> int:
        return len(self.extent)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """As ``Images.batch``, with all tensors on the device."""
        height, width = self.extent[indices].amax(0).tolist()
        rows = indices.to(self.device, non_blocking=True)
        image = self.pixels[:, :, :height, :width].index_select(0, rows)
        return {"image": image, "index": rows} | {name: values[rows] for name, values in self.on_device.items()}


def resident(images: Indexed, device: torch.device, gb: float) -> Indexed:
    """Moves ``images`` to the device (``Resident``) if they take at most ``gb`` GB there; else returns them unchanged.

    gb = -1 stands for a quarter of a GPU's free memory, and for 0 on a CPU, where this gains little.
    """
    if not isinstance(images, Images) or images.source.extents is None:
        return images
    if gb < 0:
        gb = torch.cuda.mem_get_info(device)[0] / 4e9 if device.type == "cuda" else 0
    return Resident(images, device) if Resident.size(images) <= gb * 1e9 else images


class Loader:
    """Batches of samples, in an order that depends only on (seed, epoch).

    The permutations of all epochs, one after the other, form one endless sequence. Step s takes the ``batch`` positions
    from s * batch on, and rank r takes the r-th contiguous slice of these. So a run may start at any step and with any
    number of ranks, and no sample comes twice within an epoch.

    batch: samples per step, over all ranks. world: number of ranks. prefetch: number of batches that are read ahead.
    Raises ValueError if ``batch`` is not a multiple of ``world``.
    """

    def __init__(
        self,
        images: Indexed,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        prefetch: int = 3,
    ) -> None:
        if batch % world:
            raise ValueError(f"--batch {batch} does not split over {world} ranks: use a multiple of {world}")
        self.images, self.batch, self.seed, self.rank, self.world = images, batch, seed, rank, world
        self.device, self.prefetch = torch.device(device), prefetch
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """The indices of this rank's samples at ``step``, int64 (batch / world,)."""
        share, count = self.batch // self.world, len(self.images)
        first = step * self.batch + self.rank * share
        positions = torch.arange(first, first + share)
        epochs = range(first // count, (first + share - 1) // count + 1)
        return torch.cat([self._permutation(e)[positions[positions // count == e] % count] for e in epochs])

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._order = torch.randperm(len(self.images), generator=generator(self.seed, epoch))
            self._epoch = epoch
        return self._order

    @contextmanager
    def iterate(self, start: int) -> Iterator[Iterator[dict[str, Tensor]]]:
        """A context with an endless iterator over this rank's batches (``Images.batch``), from step ``start`` on.

        The batches are on the device. A thread reads ``prefetch`` of them ahead; it ends with the context. An error in
        the thread is raised unchanged when the next batch is taken. ``Resident`` images need no thread.
        """
        if isinstance(self.images, Resident):
            yield map(self.images.batch, map(self.indices, itertools.count(start)))
            return
        ready: queue.SimpleQueue[dict[str, Tensor] | BaseException] = queue.SimpleQueue()
        free = threading.Semaphore(self.prefetch)
        closed = threading.Event()

        def read_ahead() -> None:
            try:
                for step in itertools.count(start):
                    free.acquire()
                    if closed.is_set():
                        return
                    batch = self.images.batch(self.indices(step))
                    if self.device.type == "cuda":
                        batch = {name: value.pin_memory() for name, value in batch.items()}
                    ready.put(batch)
            except BaseException as error:
                ready.put(error)

        def batches() -> Iterator[dict[str, Tensor]]:
            while True:
                batch = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                free.release()
                yield {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

        thread = threading.Thread(target=read_ahead, name="loader", daemon=True)
        thread.start()
        try:
            yield batches()
        finally:
            closed.set()
            free.release()
            thread.join()
            ready.put(RuntimeError("the loader is closed"))  # so that nothing waits forever for a batch
