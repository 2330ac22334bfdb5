"""The network of the dense tasks: a fully convolutional head (Long et al. 2015, arXiv:1411.4038) on an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kintsugi.nets.encoder import Encoder

STRIDES = (8, 16, 32)


class FCN(nn.Module):
    """Encoder and head: RGB (N,3,H,W) in [0,1] -> K = ``planes`` values per pixel, float (N,K,H,W)."""

    def __init__(self, encoder: Encoder, planes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.strides = strides(encoder)
        # Each map is normalized first, because the features of random networks have an unusual scale.
        self.scores = nn.ModuleDict(
            {
                str(s): nn.Sequential(nn.BatchNorm2d(encoder.channels[s]), nn.Conv2d(encoder.channels[s], planes, 1))
                for s in self.strides
            }
        )

    def forward(self, image: Tensor) -> Tensor:
        features = self.encoder(image)
        return self.head([features[s] for s in self.strides], image.shape[-2:])

    def head(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Maps of ``strides``, fine to coarse, each (N,C,h,w) -> (N,K,*size).

        From coarse to fine, each score map is enlarged to the size of the next and added to it (FCN-8s).
        """
        total: Tensor | None = None
        for stride, features in reversed(list(zip(self.strides, maps, strict=True))):
            score = self.scores[str(stride)](features).float()
            if total is not None:
                score = score + enlarged(total, score.shape[-2:])
            total = score
        assert total is not None
        return enlarged(total, size)


def strides(encoder: Encoder) -> list[int]:
    """Strides of the maps that a head reads, fine to coarse: those of 8, 16 and 32 that exist, or else the coarsest."""
    return [s for s in STRIDES if s in encoder.channels] or [max(encoder.channels)]


def enlarged(image: Tensor, size: Sequence[int]) -> Tensor:
    """``interpolate(image, size, mode="bilinear")`` for (N,C,h,w) float, as two matrix products.

    On a CPU the backward pass of torch's function would take most of the time of training a head.
    """
    with torch.autocast(image.device.type, enabled=False):
        columns, rows = (
            interpolate(torch.eye(now, device=image.device)[None], new, mode="linear")[0]  # (now,new)
            for now, new in ((image.shape[-1], size[-1]), (image.shape[-2], size[-2]))
        )
        return rows.mT @ (image @ columns)  # (N,C,H,W)
