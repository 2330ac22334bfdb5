"""The contract that all encoders fulfill, so that their features can be transferred to other tasks."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor, nn


class Spec(Protocol):
    """The settings from which an encoder is built."""

    def plain(self) -> dict[str, Any]:
        """The settings as a plain dict for a checkpoint; ``kintsugi.nets.specs.build_spec`` reads it."""


class Encoder(nn.Module):
    """RGB (N,3,H,W) in [0,1] -> {stride: feature map (N,C,H/stride,W/stride)}, fine to coarse.

    Fully convolutional: takes images of any size with sides of at least 32 px. Normalizes its input itself. ``spec``
    holds its settings, ``channels`` the C of each stride.
    """

    spec: Spec
    channels: dict[int, int]
    planes: int = 3
    """Channels of the input: 3 for RGB, or 6 for RGB and HHA (``kintsugi.data.hha``), which only few tasks have."""

    other_passes: ClassVar[tuple[str, ...]] = ()
    """Names of the methods besides ``forward`` that compute with the network's own weights."""

    @property
    def vector_length(self) -> int:
        """D, the length of a vector of ``vector``."""
        return self.channels[max(self.channels)]

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        raise NotImplementedError

    def vector(self, maps: dict[int, Tensor]) -> Tensor:
        """One vector per image, (N,D), from the maps of ``forward``: the coarsest map, averaged over its positions."""
        return maps[max(maps)].mean((2, 3))

    def vectors(self, image: Tensor) -> Tensor:
        """One vector per image, (N,3,H,W) -> (N,D)."""
        return self.vector(self(image))
