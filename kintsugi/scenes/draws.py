"""Random draws of the built-in scenes (numbers, choices, colors), made from one row of uniform numbers per scene."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DRAWS = 1536
"""Number of uniform numbers for each scene, more than a scene needs."""


class Draws:
    """Draws for N scenes at once, from ``uniform`` (N,DRAWS) in [0,1). Each draw uses the next unused column.

    All scenes make the same draws in the same order, whether or not they need the result. So a scene depends only on
    its own row, never on the others of its batch. A change in the order of draws changes every scene.
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
        """Integers in 0..count-1 with equal probability, int64 (N,)."""
        return (self.unit() * count).long()

    def choice(self, options: Sequence[int]) -> Tensor:
        """One of the options with equal probability, int64 (N,)."""
        return torch.tensor(options, device=self.uniform.device)[self.integer(len(options))]

    def color(self, palette: Sequence[str], spread: float = 0.06) -> Tensor:
        """A color of the palette, each channel varied by at most ``spread``; linear RGB (N,3).

        palette: hex codes of sRGB colors, such as "ece4d6".
        """
        known = torch.tensor([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in palette])
        chosen = known.to(self.uniform.device)[self.integer(len(palette))]
        varied = chosen + torch.stack([self.between(-spread, spread) for _ in range(3)], -1)
        # In double, because the last bit of a power in float depends on the position in the batch.
        return (varied.clamp(0.02, 0.98).double() ** 2.2).float()
