"""Frozen features of labeled images, computed once: what kNN and linear probes read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from kintsugi.augment import cropping
from kintsugi.data.image_set import Images
from kintsugi.eval.cells import Machine
from kintsugi.nets.encoder import Encoder


@dataclass(frozen=True)
class Features:
    """Of one set of images: each stride's map, pooled and flattened, (N,D); one vector an image, (N,C); labels.

    labels: int64 (N,), indices of classes; or (N,K), 1 where a class is present, 0 where not, -1 where unknown.
    """

    layers: dict[int, Tensor]
    vector: Tensor
    labels: Tensor


@torch.no_grad()
def extract(encoder: Encoder, images: Images, size: int, numbers: int, machine: Machine) -> Features:
    """Of the central squares of ``size`` px; maps are pooled to about ``numbers`` numbers, or one a channel."""
    encoder.eval()
    layers: dict[int, list[Tensor]] = {stride: [] for stride in encoder.channels}
    vectors, labels = [], []
    for image, label in squares(images, size, machine, torch.arange(len(images))):
        with machine.autocast():
            maps = encoder(image)
        for stride, x in maps.items():
            side = max(1, math.isqrt(numbers // x.shape[1]))
            pooled = adaptive_avg_pool2d(x.float(), (min(side, x.shape[2]), min(side, x.shape[3])))
            layers[stride].append(pooled.flatten(1).to(machine.dtype))
        vectors.append(encoder.vector(maps).float())
        labels.append(label)
    return Features({s: torch.cat(each) for s, each in layers.items()}, torch.cat(vectors), torch.cat(labels))


def squares(images: Images, size: int, machine: Machine, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Central squares (n,3,size,size) in [0,1] and labels, in batches, on the device."""
    for some in tqdm(rows.split(64), desc="features", leave=False, disable=None):
        batch = {name: value.to(machine.device) for name, value in images.batch(some).items()}
        yield cropping.center_crops(batch, size), batch["label"]
