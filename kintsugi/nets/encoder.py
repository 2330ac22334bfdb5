"""The one contract by which features are moved to other tasks."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Spec(Protocol):
    """The settings an encoder is built from."""

    def plain(self) -> dict[str, Any]:
        """As a plain dict for a checkpoint; ``kintsugi.nets.specs.build_spec`` builds the encoder from it."""


class Encoder(nn.Module):
    """RGB (N,3,H,W) in [0,1] -> {stride: feature map (N,C,H/stride,W/stride)}, fine to coarse.

    Fully convolutional: any image of at least 32 px a side. What the network wants of its input beyond
    [0,1] (mean and deviation, say) is done inside. ``channels`` says the C of each stride.
    """

    spec: Spec
    channels: dict[int, int]
    planes: int = 3
    """Of the input: 3, or 6 for RGB and HHA (``kintsugi.data.hha``), which few tasks have."""

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        raise NotImplementedError

    def vector(self, maps: dict[int, Tensor]) -> Tensor:
        """One vector an image of what ``forward`` gave, (N,D): the coarsest map averaged over its positions."""
        return maps[max(maps)].mean((2, 3))

    def vectors(self, image: Tensor) -> Tensor:
        """One vector of each image, (N,D)."""
        return self.vector(self(image))
