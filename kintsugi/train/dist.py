"""The device and precision of this process, and its place among the ranks that torchrun started.

``World.backward`` averages gradients over the ranks by torch's DistributedDataParallel, which sends those of the last
layers while those of the first ones are computed. It wraps the loss instead of the networks: so a method calls its
networks as it likes, and the names in checkpoints do not change. ``World.mean_gradients`` sends all of them at the end.
It is for discriminators: their gradients add up over several backward passes, and DistributedDataParallel would send
them after each one.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

# Must be imported before any process group exists, because its functions hold the current group as a default argument.
# torch's optimizers import it when the first one is built. That would keep the group and gloo's threads alive after
# training, and a thread that frees a tensor while Python ends aborts the process.
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from kintsugi.train.compiled import Compiling, compile_network
from kintsugi.train.compute import Compute, Device, Precision

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass
class World(Compute):
    """The device and precision of this process, and its ``rank`` among ``size`` processes, which share each batch."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    """The ranks over which ``sharding.shard`` has spread the weights."""
    _averaging: dict[Optimizer, DistributedDataParallel] = field(default_factory=dict, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the first rank, which prints, logs and saves."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each rank holds only its share of the weights."""
        return self.mesh is not None

    @property
    def evaluates(self) -> bool:
        """Whether this rank makes pictures and evaluates: the first one. All do if the weights are sharded, because a
        rank alone cannot compute with them."""
        return self.is_main or self.sharded

    def slice(self, whole: Tensor) -> Tensor:
        """This rank's share (N/size,...) of a tensor (N,...) for the global batch."""
        return whole[self.part(len(whole))]

    def part(self, count: int) -> builtins.slice:
        """This rank's share, as a slice of a global batch of ``count`` samples."""
        share = count // self.size
        return builtins.slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, mine: Tensor) -> Tensor:
        """Concatenates the equal shares (n,...) of all ranks to the global batch (n*size,...), on every rank.

        Gradients flow back to each rank's own share, summed over the ranks. If every rank computes the same loss of the
        global batch, the mean of their gradients is the gradient that one process would have with the global batch.
        """
        if self.size == 1:
            return mine
        return _Gather.apply(mine)

    def place(self, networks: Iterable[nn.Module], *, channels_last: bool, compiling: Compiling = "no") -> None:
        """Moves networks to the device, in place, and copies the main rank's weights to all ranks.

        On several GPUs, batch norms are synchronized from then on. The parameters stay the same objects, so optimizers
        may be built before.
        """
        for net in networks:
            net.to(self.device)
            if self.size > 1 and self.device.type == "cuda":
                from timm.layers import convert_sync_batchnorm  # knows timm's own batch norms too; slow to import

                convert_sync_batchnorm(net)  # replaces the layers inside; GPUs only
            if self.size > 1:
                for tensor in net.state_dict().values():
                    if tensor.device.type == self.device.type:  # a running average's count stays on the CPU
                        dist.broadcast(tensor, src=0)
            if channels_last:
                net.to(memory_format=torch.channels_last)
            compile_network(net, compiling)

    def backward(self, loss: Tensor, *optimizers: Optimizer) -> None:
        """The backward pass of this rank's loss, (), during which the gradients are averaged over the ranks.

        With equal shares the result is the gradient of the global batch. optimizers: those whose parameters the loss
        trains, which must be all their parameters at every step; no other backward pass may add to their gradients.
        Sharded networks average their gradients themselves.
        """
        if self.size > 1 and not self.sharded:
            for optimizer in optimizers:
                if optimizer not in self._averaging:
                    self._averaging[optimizer] = _averaging([p for g in optimizer.param_groups for p in g["params"]])
                loss = self._averaging[optimizer](loss)
        loss.backward()

    def mean_gradients(self, optimizer: Optimizer) -> None:
        """Averages the gradients of an optimizer's parameters over the ranks, in one message, after backward passes.

        With equal shares the result is the gradient of the global batch.
        """
        if self.size == 1:
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the ranks. With several ranks, ``values`` is overwritten."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def weighted_mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """A loss, (), whose mean over the ranks is the weighted mean of the global batch.

        values, weights: of the same shape. The loss is this rank's weighted sum, divided by the mean over the ranks of
        the sum of weights. So its mean over the ranks, and that of its gradient, is the same as in one process with the
        global batch, however the weights are spread over the ranks. The sum of all weights counts as 1 if it is less;
        the loss is then 0 if all weights are 0.
        """
        total = self.mean(weights.detach().sum().float())
        return (values * weights).sum() / total.clamp(min=1 / self.size)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank. All ranks must call it together."""
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

    def close(self) -> None:
        """Frees all that holds the process group; else gloo's threads could wait or abort when Python ends."""
        self._averaging.clear()
        if self.mesh is not None:
            getattr(self.mesh, "_pg_registry", {}).clear()  # torch's caches keep the mesh
            error = sys.exc_info()[1]
            while error is not None:  # the frames of its traceback keep the networks
                traceback.clear_frames(error.__traceback__)
                error = error.__context__
            gc.collect()  # sharded networks are circles of references

    def main_first(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the main rank runs the body first, to build a cache for example; then all others do."""
        return _main_first(self)


class _Loss(nn.Module):
    """Returns the loss that it is given, which depends on its parameters."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def _averaging(parameters: list[nn.Parameter]) -> DistributedDataParallel:
    """What averages the gradients of parameters over the ranks in the backward pass of a loss that passes through it.

    After its first backward pass it sorts the messages anew, by the order in which gradients came. More than two ranks
    then add in another order, with other rounding errors, so that the first step of a resumed run would differ from
    that of a run that was never stopped. Therefore the first pass is made here, with gradients of zero.
    """
    # About weights of 1x1 convolutions, whose one memory layout has two descriptions.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    averaging = DistributedDataParallel(_Loss(parameters), init_sync=False, gradient_as_bucket_view=True)
    averaging(torch.stack([0 * p.sum() for p in parameters]).sum()).backward()
    for p in parameters:
        p.grad = None
    return averaging


class _Gather(torch.autograd.Function):
    """Concatenates the shares of all ranks. Backward: the gradient of this rank's share, summed over the ranks."""

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
    finally:  # also if the main rank fails: the others must meet the same error, not wait
        if world.size > 1 and world.is_main:
            dist.barrier()


def keep_freed_memory() -> None:
    """Makes this process keep the memory of freed tensors, for the tensors of the next step.

    By default glibc returns large blocks to the system at once. When they are allocated again, the system clears them
    page by page, which takes a tenth of a training step on a CPU. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # constants of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextlib.contextmanager
def open_world(device: Device, precision: Precision, batch: int) -> Iterator[World]:
    """A context with this process's ``World``. Joins torchrun's process group if there is one.

    Raises ValueError with one line if there is no such device or ``batch`` is not a multiple of the number of ranks. If
    another rank dies, the body raises ConnectionError.
    """
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
    if rank > 0:  # only the main rank prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    # The other ranks wait while rank 0 renders or decodes a whole data set.
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(hours=2))
    world = World(place, rank, size, bf16=bf16)
    try:
        yield world
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        why = str(error).splitlines()[0][:200]
        raise ConnectionError(
            f"another process of this run has ended, so rank {rank} ends too: "
            f"see its messages above, and continue with --resume ({why})"
        ) from None
    finally:
        world.close()
        dist.destroy_process_group()
