"""Where this process computes: its device, its precision, and its place among the ranks that torchrun started.

Gradients are averaged explicitly (``World.mean_gradients``) before each optimizer's step instead of by a wrapper
around each network, so that a GAN's several backward passes need no special care.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Before any process group is made: the functions in it take the group of the moment as a default, and torch's
# optimizers import it when the first is built. Then the group, and gloo's threads, would outlive the training, and one
# that still lets go of a tensor while Python ends aborts the process.
import torch.distributed.nn
from torch import Tensor, nn

from kintsugi.train.compute import Compute, Device, Precision


@dataclass(frozen=True)
class World(Compute):
    """One process's view: what computes for it, and its ``rank`` of ``size``."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def slice(self, whole: Tensor) -> Tensor:
        """This rank's part of what was drawn for the global batch."""
        return whole[self.part(len(whole))]

    def part(self, count: int) -> builtins.slice:
        """Where this rank's part of a global batch of ``count`` lies."""
        share = count // self.size
        return builtins.slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, mine: Tensor) -> Tensor:
        """The ranks' equal parts as one global batch; gradients flow back to each rank's own part.

        Where every rank computes the same loss of the whole, its gradients come back added up over the ranks, and
        ``mean_gradients`` divides by their number: the gradient of one process with the whole batch.
        """
        if self.size == 1:
            return mine
        return _Gather.apply(mine)

    def place(self, networks: Iterable[nn.Module], *, channels_last: bool, compile: bool) -> None:
        """Moves networks to the device in place and makes them equal on all ranks; parameters keep their identity."""
        for net in networks:
            net.to(self.device)
            if self.size > 1 and self.device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(net)  # swaps the layers inside; torch has it for GPUs only
            if self.size > 1:
                for tensor in net.state_dict().values():
                    dist.broadcast(tensor, src=0)
            if channels_last:
                net.to(memory_format=torch.channels_last)
            if compile:
                net.compile()

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages gradients over the ranks, in one message. With equal slices this is the global batch's gradient."""
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the ranks."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def weighted_mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """This rank's share in the weighted mean of the global batch: its own sum over the ranks' mean sum of weights.

        So the mean over the ranks, of losses and of gradients, is that of one process with the whole batch, however
        unevenly the weights are spread. values, weights: of one shape; returns (), 0 where there are no weights.
        """
        total = self.mean(weights.detach().sum().float())
        return (values * weights).sum() / total.clamp(min=1)

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; all ranks must ask together."""
        if self.size == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(votes)
        return votes.item() > 0

    def from_main(self, text: str) -> str:
        """The main rank's string, on every rank."""
        if self.size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def main_first(self) -> contextlib.AbstractContextManager[None]:
        """The main rank runs the body first (it builds a cache, say), the others after it."""
        return _main_first(self)


class _Gather(torch.autograd.Function):
    """All ranks' parts, one after the other; backward: the sum over the ranks of the gradients of this rank's part."""

    @staticmethod
    def forward(context: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


@contextlib.contextmanager
def _main_first(world: World) -> Iterator[None]:
    if world.size > 1 and not world.is_main:
        dist.barrier()
    try:
        yield
    finally:  # also when the main rank fails: the others must meet the same error, not wait for it
        if world.size > 1 and world.is_main:
            dist.barrier()


def keep_freed_memory() -> None:
    """Has this process keep the memory that tensors give back, for those of the next step.

    glibc hands large blocks back to the system at once, which clears them anew, page by page, whenever they are asked
    for again: a tenth of a training step on a CPU. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextlib.contextmanager
def open_world(device: Device, precision: Precision, batch: int) -> Iterator[World]:
    """Joins torchrun's process group if there is one. ValueError where device or batch do not fit; ConnectionError,
    in the body, where another rank has died."""
    compute = Compute.of(device, precision)
    kind, bf16 = compute.device.type, compute.bf16
    if kind == "cpu":
        keep_freed_memory()
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if batch % size:
        raise ValueError(f"--batch {batch} does not split over {size} ranks: use a multiple of {size}")
    if size == 1:
        yield World(torch.device(kind), bf16=bf16)
        return
    place = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if rank > 0:  # what all would print, the main rank prints, to the end of the process
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    # Rank 0 may render or decode a whole data set before the others' first message.
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield World(place, rank, size, bf16=bf16)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        why = str(error).splitlines()[0][:200]
        raise ConnectionError(
            f"another process of this run has ended, so rank {rank} ends too: "
            f"see what that one has said, and go on with --resume ({why})"
        ) from None
    finally:
        dist.destroy_process_group()
