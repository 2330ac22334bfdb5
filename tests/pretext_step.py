"""One step of each clustering method: in the test's process, and, under torchrun, in each of several ranks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from core.data.loader import Loader
from core.rng import generator
from core.train.dist import World, open_world
from pretext import cliquecnn, deepcluster, sela
from pretext.clusters import ClustersMethod

COUNT = 8
WORLD = World(torch.device("cpu"))
# Group norm, because torch has batch statistics over several processes for GPUs only.
SAME = {"size": 32, "batch": COUNT, "encoder": "alexnet", "norm": "group", "optimizer": "sgd", "lr": 0.05}


class Noise:
    """``Indexed``: 25 images, which do not split evenly over two ranks, with labels, some unknown."""

    images = torch.randint(0, 256, (25, 3, 40, 44), generator=generator(0), dtype=torch.uint8)
    labels = torch.arange(25) % 4 - 1

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {
            "image": self.images[indices], "extent": torch.tensor([[40, 44]]).repeat(len(indices), 1),
            "index": indices, "label": self.labels[indices],
        }  # fmt: skip


def build(name: str, world: World = WORLD) -> ClustersMethod:
    torch.manual_seed(0)
    if name == "deepcluster":
        few = replace(deepcluster.demo(), **SAME, clusters=5, components=6)
        return deepcluster.DeepCluster(few, world)
    if name == "sela":
        return sela.SeLa(replace(sela.demo(), **SAME, clusters=5, heads=2, labellings=2), world)
    cliques = replace(cliquecnn.demo(), **SAME, cliques=8, members=3, group=4, components=6)
    return cliquecnn.CliqueCNN(cliques, world)


def one_step(world: World) -> dict[str, dict[str, Tensor]]:
    """What a step on the same global batch leaves: loss, gradients, and what was found of all images before it."""
    left = {}
    for name in ("deepcluster", "sela", "cliquecnn"):
        method = build(name, world)
        world.place(method.networks.values(), channels_last=False, compile=False)
        method.attach(Noise())
        loader = Loader(Noise(), COUNT, 0, world.rank, world.size)
        batch = Noise().batch(loader.indices(0))
        scalars = method.update(batch, 0)
        (optimizer,) = method.optimizers.values()
        moments = [inner["momentum_buffer"].flatten() for inner in optimizer.state.values()]
        loss = next(value for key, value in scalars.items() if key.startswith("loss/"))
        found = {key: value for key, value in method.clusters.items() if key in ("labels", "members")}
        left[name] = {"loss": world.mean(loss), "gradients": torch.cat(moments), **found}
        if world.is_main:  # alone: waiting here for the others would be for ever
            method.show(batch)
            method.evaluate([batch])
    return left


if __name__ == "__main__":
    with open_world("cpu", "fp32", COUNT) as world:
        left = one_step(world)
        if world.is_main:
            torch.save(left, Path(sys.argv[1]))
