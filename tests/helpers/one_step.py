"""One training step of every method.

Runs in the test's process, and under torchrun in each of several ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from helpers import clip_cases, cluster_cases
from helpers.tiny_runs import TEACHER, class_of
from kintsugi.contrastive import byol, cpc, dino, distill, lejepa, moco, simclr
from kintsugi.data import labeled
from kintsugi.data.cache import Source
from kintsugi.data.image_set import Images
from kintsugi.data.loader import Loader
from kintsugi.eval import supervised
from kintsugi.pretext import context, jigsaw, rotation
from kintsugi.recon import (
    colorization,
    inpainting,
    mae,
    mender,
    spark,
    splitbrain,
    splitbrain_hha,
    superresolution,
    synthetic,
)
from kintsugi.rng import generator
from kintsugi.train import sharding
from kintsugi.train.dist import World, open_world
from kintsugi.train.method import Batch, Method

COUNT = 8
# Group norm, because torch has batch statistics over several processes for GPUs only.
SAME = {"batch": COUNT, "norm": "group", "log_every": 1}
FEW = {"dim": 8, "hidden": 16}


def photos(height: int, width: int) -> dict[str, Tensor]:
    image = torch.randint(0, 256, (COUNT, 3, height, width), generator=generator(0), dtype=torch.uint8)
    return {"image": image, "extent": torch.tensor([[height, width]]).repeat(COUNT, 1)}


def with_depth() -> dict[str, Tensor]:
    """RGB, HHA, and a mask of known depth: nearly everywhere in the first images, almost nowhere in the last."""
    image = photos(40, 44)["image"].repeat(1, 3, 1, 1)[:, :7]
    image[:, 6] = 0
    for number in range(COUNT):
        image[number, 6, number * 5 :] = 255
    return photos(40, 44) | {"image": image}


def two_domains() -> dict[str, Tensor]:
    """Synthetic images with random labels, and real ones."""
    planes = torch.randint(0, 256, (COUNT, labeled.PLANES, 72, 76), generator=generator(2), dtype=torch.uint8)
    each = {**photos(72, 76), "first": torch.ones(COUNT, dtype=torch.bool)}
    sets = {"synthetic": {**each, "image": planes}, "real": each}
    return {f"{domain}/{name}": value for domain, batch in sets.items() for name, value in batch.items()}


def with_labels() -> tuple[Images, dict[str, Tensor]]:
    """A set of images of three classes, and a batch of it."""
    labels = torch.arange(COUNT) % 3
    images = Images(Source([f"{i}" for i in range(COUNT)], lambda rows: [], labels, ["a", "b", "c"]))
    return images, photos(40, 44) | {"label": labels}


def moco_with_keys(world: World) -> moco.MoCo:
    """With keys in its queue: with an empty queue the first step has no negatives, and its loss is 0."""
    method = moco.MoCo(replace(moco.demo(), **SAME, size=32, queue=20, symmetric=True), world)
    method.queue.push(normalize(torch.randn(20, method.config.dim, generator=generator(1)), dim=1))
    return method


SMALL, LARGE = photos(40, 44), photos(48, 52)
CLUSTERED = cluster_cases.Noise().batch(Loader(cluster_cases.Noise(), COUNT, 0).indices(0))
Case = tuple[Callable[[World], Method], Batch]
"""A function that builds the method, and the global batch."""
LABELED_IMAGES, LABELED = with_labels()
# The discriminators hardly move: Adam's first step is of one size whatever the gradient's, and would turn rounding
# errors in it into differences of the generator's loss.
STILL = 1e-9
CASES: dict[str, Case] = {
    "inpainting": (
        lambda w: inpainting.Inpainting(
            replace(
                inpainting.demo(),
                **SAME,
                encoder="alexnet",
                discriminator_norm="group",
                mask="blocks",
                adversarial_start=0,
                adversarial=0.1,
                lr_discriminator=STILL,
                lpips="off",
            ),
            w,
        ),
        photos(72, 76),
    ),
    "mender": (
        lambda w: mender.PhotoMending(
            replace(
                mender.demo(),
                **SAME,
                width=4,
                blocks=1,
                adversarial_start=0,
                lr_discriminator=STILL,
                content_weights="off",
                lpips="off",
            ),
            w,
        ),
        photos(72, 76),
    ),
    "colorization": (
        lambda w: colorization.Colorization(replace(colorization.demo(), **SAME, encoder="alexnet", hints=True), w),
        photos(72, 76),
    ),
    "superresolution": (
        lambda w: superresolution.SuperResolution(
            replace(
                superresolution.demo(),
                **SAME,
                blocks=1,
                width=8,
                adversarial_start=0,
                lr_adversarial=STILL,
                content_weights="off",
            ),
            w,
        ),
        photos(72, 76),
    ),
    "splitbrain": (lambda w: splitbrain.SplitBrain(replace(splitbrain.demo(), **SAME), w), photos(72, 76)),
    "mae": (lambda w: mae.MAE(replace(mae.demo(), batch=COUNT, log_every=1, size=32, encoder="test_vit"), w), SMALL),
    "spark": (lambda w: spark.SparK(replace(spark.demo(), **SAME, decoder_width=64), w), photos(72, 76)),
    "synthetic": (
        lambda w: synthetic.Synthetic(replace(synthetic.demo(), **SAME, pool=6, lr_discriminator=STILL), w),
        two_domains(),
    ),
    "supervised": (
        lambda w: supervised.Supervised(replace(supervised.demo(), **SAME, size=32), w, LABELED_IMAGES),
        LABELED,
    ),
    "simclr": (lambda w: simclr.SimCLR(replace(simclr.demo(), **SAME, size=32, optimizer="lars"), w), SMALL),
    "moco": (moco_with_keys, SMALL),
    "byol": (lambda w: byol.BYOL(replace(byol.demo(), **SAME, **FEW, size=32), w), SMALL),
    "dino": (
        lambda w: dino.DINO(replace(dino.demo(), **SAME, size=32, hidden=16, bottleneck=8, outputs=32, frozen=0), w),
        SMALL,
    ),
    "lejepa": (lambda w: lejepa.LeJEPA(replace(lejepa.demo(), **SAME, **FEW, size=32, directions=16), w), SMALL),
    "cpc": (lambda w: cpc.CPC(replace(cpc.demo(), size=32, batch=COUNT, patch=8, dim=16), w), SMALL),
    "distill": (
        lambda w: distill.Distill(
            replace(distill.demo(), **SAME, size=32, teacher=TEACHER, teacher_size=48, strength=0.5), w
        ),
        SMALL,
    ),
    "rotation": (lambda w: rotation.Rotation(replace(rotation.demo(), **SAME, size=48), w), LARGE),
    "jigsaw": (
        lambda w: jigsaw.Jigsaw(replace(jigsaw.demo(), **SAME, **FEW, size=48, tile=12, permutations=4), w),
        LARGE,
    ),
    "context": (
        lambda w: context.Context(replace(context.demo(), **SAME, **FEW, size=48, patch=12, gap=5, jitter=1), w),
        LARGE,
    ),
    "deepcluster": (lambda w: cluster_cases.build("deepcluster", w), CLUSTERED),
    "sela": (lambda w: cluster_cases.build("sela", w), CLUSTERED),
    "cliquecnn": (lambda w: cluster_cases.build("cliquecnn", w), CLUSTERED),
    "splitbrain-hha": (
        lambda w: splitbrain_hha.SplitBrainHha(replace(splitbrain_hha.demo(), **SAME, size=32), w),
        with_depth(),
    ),
    "frame-order": (lambda w: clip_cases.build("frame-order", w), clip_cases.BATCHES["frame-order"]),
    "odd-one-out": (lambda w: clip_cases.build("odd-one-out", w), clip_cases.BATCHES["odd-one-out"]),
}


def one_step(name: str, world: World, *, shard: bool = False) -> dict[str, Tensor]:
    """Trains one step on the global batch. Returns the loss, the gradients (LARS: scaled ones), and what else the ranks
    share: MoCo's keys, and the clusters of all images. shard: as the option --shard."""
    torch.manual_seed(0)
    build, whole = CASES[name]
    method = build(world)
    world.place(method.children(), channels_last=False)
    if shard:
        sharding.shard(method, method.optimizers.values(), world)
    method.on_train_data(cluster_cases.Noise())
    batch = {key: world.slice(value) for key, value in whole.items()}
    scalars = method.update(method.inputs(batch, 0), 0)
    states = [inner for optimizer in method.optimizers.values() for inner in optimizer.state.values()]
    moments = [inner.get("exp_avg", inner.get("momentum_buffer")) for inner in states]
    loss = next(value for key, value in scalars.items() if key.startswith("loss/"))
    result = {"loss": world.mean(loss), "gradients": torch.cat([sharding.whole(m).flatten() for m in moments])}
    if isinstance(method, moco.MoCo):
        result["keys"] = method.queue.keys
    elif isinstance(method, cluster_cases.ClustersMethod):
        result |= {key: value for key, value in method.clusters.items() if key in ("labels", "members")}
    if world.evaluates:  # these must not wait for the other ranks, which do not run them
        method.show(batch)
        method.evaluate([batch])
    return result


if __name__ == "__main__":
    with open_world("cpu", "fp32", COUNT) as world:
        result = {name: one_step(name, world) for name in CASES}
        sharded = {name: one_step(name, replace(world), shard=True) for name in CASES if class_of(name).shardable}
        if world.is_main:
            torch.save({"averaged": result, "sharded": sharded}, Path(sys.argv[1]))
