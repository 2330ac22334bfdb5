"""One optimizer step, and a running average of weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.train.dist import World


def step(optimizer: torch.optim.Optimizer, world: World) -> Tensor:
    """Averages the gradients over the ranks, steps, clears them; returns their total norm, a 0-d tensor."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    world.mean_gradients(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


Tensors = tuple[Tensor, ...] | list[Tensor]


def warmed_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Running averages for torch's ``AveragedModel(multi_avg_fn=...)``: decay min(``decay``, (1 + n) / (10 + n)).

    n counts the updates: a young average forgets its beginnings quickly, so that short runs are averaged too.
    """

    @torch.no_grad()
    def update(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # a batch norm's counter
            torch._foreach_copy_(averages, values)
            return
        count = torch.as_tensor(count)
        weight = 1 - ((1 + count) / (10 + count)).clamp(max=decay)
        change = torch._foreach_sub(values, averages)
        torch._foreach_mul_(change, weight.to(averages[0]))
        torch._foreach_add_(averages, change)

    return update
