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
    """The spec of ``PixelEncoder``, which has no settings."""

    def build(self) -> PixelEncoder:
        return PixelEncoder(self)

    def plain(self) -> dict[str, Any]:
        return {"kind": "pixels"}


class PixelEncoder(Encoder):
    """Each block of 8x8 pixels as one position with 192 channels. Sides are padded with 0 to whole blocks."""

    def __init__(self, spec: Pixels) -> None:
        super().__init__()
        self.spec: Pixels = spec
        self.channels = {STRIDE: 3 * STRIDE**2}

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        height, width = image.shape[-2:]
        whole = pad(image, (0, -width % STRIDE, 0, -height % STRIDE))
        return {STRIDE: pixel_unshuffle(whole, STRIDE)}

    def vector(self, maps: dict[int, Tensor]) -> Tensor:
        """The image at 32x32 px, (N,3072)."""
        image = pixel_shuffle(maps[STRIDE], STRIDE)
        return interpolate(image.float(), (32, 32), mode="bilinear", antialias=True).flatten(1)
