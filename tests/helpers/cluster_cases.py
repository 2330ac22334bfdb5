"""The clustering methods at their smallest, and images for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kintsugi.pretext import cliquecnn, deepcluster, sela
from kintsugi.pretext.clusters import ClustersMethod
from kintsugi.rng import generator
from kintsugi.train.dist import World

COUNT = 8
WORLD = World(torch.device("cpu"))
# Group norm, because torch synchronizes batch statistics of several processes on GPUs only.
SAME = {"size": 32, "batch": COUNT, "encoder": "alexnet", "norm": "group", "optimizer": "sgd", "lr": 0.05}


class Noise:
    """A data set (``Indexed``) of 25 images, which two ranks cannot share evenly; some of the labels are unknown."""

    images = torch.randint(0, 256, (25, 3, 40, 44), generator=generator(0), dtype=torch.uint8)
    labels = torch.arange(25) % 4 - 1

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {
            "image": self.images[indices],
            "extent": torch.tensor([[40, 44]]).repeat(len(indices), 1),
            "index": indices,
            "label": self.labels[indices],
        }


def build(name: str, world: World = WORLD) -> ClustersMethod:
    torch.manual_seed(0)
    if name == "deepcluster":
        few = replace(deepcluster.demo(), **SAME, clusters=5, components=6)
        return deepcluster.DeepCluster(few, world)
    if name == "sela":
        return sela.SeLa(replace(sela.demo(), **SAME, clusters=5, heads=2, labelings=2), world)
    cliques = replace(cliquecnn.demo(), **SAME, cliques=8, members=3, group=4, components=6)
    return cliquecnn.CliqueCNN(cliques, world)
