"""One optimizer step, the same for every network of every method."""

from __future__ import annotations

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
