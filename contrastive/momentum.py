"""A slowly following copy of a network, and the queue of what it said: MoCo's and BYOL's."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def follower(network: M) -> M:
    """A copy that gets no gradients, to be moved by ``follow``."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, network: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * network, weights alone (He 2020, arXiv:1911.05722, eq. 2).

    Batch norms' statistics are not touched: the target sees images of its own.
    """
    torch._foreach_lerp_(list(target.parameters()), [p.detach() for p in network.parameters()], 1 - momentum)


def rising(base: float, step: int, steps: int) -> float:
    """Momentum that rises from ``base`` to 1 along a cosine (Grill 2020, arXiv:2006.07733, section 3.2)."""
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2


class Queue(nn.Module):
    """The last ``length`` keys, unit vectors (length,D): a ring written in place; a checkpoint holds it whole.

    Places that no key was written to are no candidates. (The authors fill them with random vectors, to which the
    quickest answer is a collapse: one and the same embedding tells all images from noise. Long runs recover from it.)
    """

    keys: Tensor
    written: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(length, dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    def similarities(self, query: Tensor) -> Tensor:
        """Of queries (N,D) with all keys, (N,length); -inf where there is none yet."""
        empty = torch.arange(len(self.keys), device=query.device) >= self.written
        return (query @ self.keys.T).masked_fill(empty, -torch.inf)

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replaces the oldest keys by these (N,D)."""
        places = (self.written + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[places] = keys.to(self.keys)
        self.written += len(keys)
