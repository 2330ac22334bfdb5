"""What the built-in scenes draw at random: numbers, choices and colors, from one row of uniform numbers per scene."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DRAWS = 1536
"""Uniform numbers per scene, more than a scene uses."""


class Draws:
    """Draws for N scenes at once from ``uniform`` (N,DRAWS) in [0,1). Each draw uses up the next column.

    All scenes draw the same things in the same order, whether they show them or not. So a scene depends on its own row
    alone, never on its batch. A change in the order of draws changes every scene.
    """

    def __init__(self, uniform: Tensor) -> None:
        self.uniform, self.used = uniform, 0

    def unit(self) -> Tensor:
        """Numbers in [0,1), (N,)."""
        self.used += 1
        return self.uniform[:, self.used - 1]

    def between(self, low: float, high: float) -> Tensor:
        """Numbers in [low,high), (N,)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> Tensor:
        """True with this probability, bool (N,)."""
        return self.unit() < probability

    def integer(self, count: int) -> Tensor:
        """Integers in 0..count-1, int64 (N,)."""
        return (self.unit() * count).long()

    def choice(self, options: Sequence[int]) -> Tensor:
        """One of the options, int64 (N,)."""
        return torch.tensor(options, device=self.uniform.device)[self.integer(len(options))]

    def color(self, palette: Sequence[str], spread: float = 0.06) -> Tensor:
        """A color of the palette (hex codes, sRGB), each channel varied by at most ``spread``; linear RGB (N,3)."""
        known = torch.tensor([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in palette])
        chosen = known.to(self.uniform.device)[self.integer(len(palette))]
        varied = chosen + torch.stack([self.between(-spread, spread) for _ in range(3)], -1)
        # In double, because the last bit of a power in float depends on the position in the batch.
        return (varied.clamp(0.02, 0.98).double() ** 2.2).float()
