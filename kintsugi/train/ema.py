"""Exponential moving averages (EMA) of weights: for the targets of MoCo and BYOL, and for the generator of a GAN."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kintsugi.train import optim

M = TypeVar("M", bound=nn.Module)


def ema_copy(network: M) -> M:
    """A copy of a network without gradients, for ``ema_update`` to change."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, network: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * network, in place (He 2020, arXiv:1911.05722, eq. 2).

    Only weights change. The target's batch norms keep their own running statistics, because it gets other images.
    """
    torch._foreach_lerp_(list(target.parameters()), [p.detach() for p in network.parameters()], 1 - momentum)


def cosine_momentum(base: float, step: int, steps: int) -> float:
    """A momentum that rises along a cosine, from ``base`` at step 0 to 1 at step ``steps``.

    As in Grill 2020 (arXiv:2006.07733).
    """
    return optim.cosine(base, 1, step, steps)


class RunningAverage(AveragedModel):
    """torch's ``AveragedModel`` of weights and buffers, with the decay min(``decay``, (1 + n) / (10 + n)).

    n is the number of updates so far. At first the average forgets quickly, so that it is useful in short runs too. An
    update is one operation for all tensors and does not wait for the device, because n stays on the CPU.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self.decay = decay

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningAverage:
        count = self.n_averaged
        super()._apply(fn, recurse)
        self.n_averaged = count
        return self

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes in the values that ``model`` has now; the first time, it copies them."""
        count = self.n_averaged.float()
        weight = (1 - ((1 + count) / (10 + count)).clamp(max=self.decay)).item()
        averages, values = (list(itertools.chain(net.parameters(), net.buffers())) for net in (self.module, model))
        floats = [(old, new) for old, new in zip(averages, values, strict=True) if old.is_floating_point()]
        if self.n_averaged == 0:
            torch._foreach_copy_(averages, values)
        else:
            torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], weight)
            counters = [(old, new) for old, new in zip(averages, values, strict=True) if not old.is_floating_point()]
            if counters:  # of batch norms
                torch._foreach_copy_([old for old, _ in counters], [new for _, new in counters])
        self.n_averaged += 1
