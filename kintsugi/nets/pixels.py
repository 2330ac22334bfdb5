"""Raw pixels as an encoder: a baseline without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate, pad, pixel_shuffle, pixel_unshuffle

from kintsugi.nets.encoder import Encoder

STRIDE = 8


@dataclass(frozen=True)
class Pixels:
    """The settings of ``PixelEncoder``, which has none."""

    def build(self) -> PixelEncoder:
        return PixelEncoder(self)

    def plain(self) -> dict[str, Any]:
        return {"kind": "pixels"}


class PixelEncoder(Encoder):
    """Takes each block of 8x8 pixels as one position with 192 channels: {8: (N,192,H/8,W/8)}.

    Images whose sides are not multiples of 8 px are padded with 0.
    """

    def __init__(self, spec: Pixels) -> None:
        super().__init__()
        self.spec: Pixels = spec
        self.channels = {STRIDE: 3 * STRIDE**2}

    @property
    def vector_length(self) -> int:
        return 3 * 32**2

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        height, width = image.shape[-2:]
        whole = pad(image, (0, -width % STRIDE, 0, -height % STRIDE))
        return {STRIDE: pixel_unshuffle(whole, STRIDE)}

    def vector(self, maps: dict[int, Tensor]) -> Tensor:
        """The image at 32x32 px, (N,3072)."""
        image = pixel_shuffle(maps[STRIDE], STRIDE)
        return interpolate(image.float(), (32, 32), mode="bilinear", antialias=True).flatten(1)
