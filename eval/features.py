"""Frozen features of labeled images, computed once: the input of kNN and of linear probes."""

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
from kintsugi.nets.encoder import Encoder
from kintsugi.train.compute import Compute


@dataclass(frozen=True)
class Features:
    """Features and labels of N images.

    layers: stride -> the pooled and flattened map, (N,D). vector: one vector per image, float (N,C). labels: class
    indices, int64 (N,); or (N,K), 1 where a class is present, 0 where it is not, -1 where that is unknown.
    """

    layers: dict[int, Tensor]
    vector: Tensor
    labels: Tensor


@torch.no_grad()
def extract(encoder: Encoder, images: Images, size: int, pooled_features: int, compute: Compute) -> Features:
    """The frozen features of all images' central squares of ``size`` px.

    Each map is pooled to at most ``pooled_features`` values, or to one per channel if there are more channels.
    """
    encoder.eval()
    layers: dict[int, list[Tensor]] = {stride: [] for stride in encoder.channels}
    vectors, labels = [], []
    for image, label in central_squares(images, size, compute, torch.arange(len(images))):
        with compute.autocast():
            maps = encoder(image)
        for stride, x in maps.items():
            side = max(1, math.isqrt(pooled_features // x.shape[1]))
            pooled = adaptive_avg_pool2d(x.float(), (min(side, x.shape[2]), min(side, x.shape[3])))
            layers[stride].append(pooled.flatten(1).to(compute.dtype))
        vectors.append(encoder.vector(maps).float())
        labels.append(label)
    return Features({s: torch.cat(each) for s, each in layers.items()}, torch.cat(vectors), torch.cat(labels))


def central_squares(images: Images, size: int, compute: Compute, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The central squares (n,3,size,size) in [0,1] of the images ``rows``, and their labels, in batches on the device.

    rows: indices, int64 (N,).
    """
    for some in tqdm(rows.split(64), desc="features", leave=False, disable=None):
        batch = {name: value.to(compute.device) for name, value in images.batch(some).items()}
        yield cropping.center_crops(batch, size), batch["label"]
