"""Exponential moving averages (EMA) of weights: for the targets of MoCo and BYOL, and for the generator of a GAN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

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


Tensors = tuple[Tensor, ...] | list[Tensor]


def warmed_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An update for torch's ``AveragedModel(multi_avg_fn=...)`` with the decay min(``decay``, (1 + n) / (10 + n)).

    n is the number of updates so far. At first the average forgets quickly, so that it is useful in short runs too.
    """

    @torch.no_grad()
    def update(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # a batch norm's counter
            torch._foreach_copy_(averages, values)
            return
        count = torch.as_tensor(count)
        weight = (1 - ((1 + count) / (10 + count)).clamp(max=decay)).to(averages[0])
        if weight.device.type == "cpu":  # one pass over the memory; on a GPU this would launch a kernel for each tensor
            torch._foreach_lerp_(averages, values, [weight] * len(averages))
            return
        change = torch._foreach_sub(values, averages)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(averages, change)

    return update
