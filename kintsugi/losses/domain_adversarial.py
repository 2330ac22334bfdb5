"""Gradient reversal for a discriminator of domains, and the discriminator's accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """Returns x unchanged; its gradient is multiplied by -``weight`` (Ganin 2015, arXiv:1409.7495, eq. 6)."""
    return _Reversal.apply(x, weight)


def domain_accuracy(on_real: Tensor, on_fake: Tensor) -> Tensor:
    """The accuracy of a discriminator of domains, 0-d in [0,1]; real and fake images have equal weight.

    on_real, on_fake: its logits, of any shape; above 0 means real.
    """
    return ((on_real > 0).float().mean() + (on_fake <= 0).float().mean()) / 2
