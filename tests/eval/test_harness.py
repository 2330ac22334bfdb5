"""Checks of transfer on real data: a good network, poor features, and meaningless labels give the figures they should.

KINTSUGI_DATA names the folder of data; weights/ is next to it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kintsugi.data.image_set import Images
from kintsugi.eval.classification import Classification, ClassificationSettings
from kintsugi.eval.dense import DenseSettings, Labeled
from kintsugi.eval.results import Figure, figures
from kintsugi.eval.segmentation import Segmentation
from kintsugi.eval.tasks import FrozenFeatures, run
from kintsugi.eval.weights import Weights, with_random
from kintsugi.nets.pixels import Pixels
from kintsugi.nets.pretrained import load_published
from kintsugi.rng import generator
from kintsugi.train.compute import Compute

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.slow,
    pytest.mark.skipif("KINTSUGI_DATA" not in os.environ, reason="KINTSUGI_DATA names no folder"),
]
DATA = Path(os.environ.get("KINTSUGI_DATA", ""))
CPU = Compute(torch.device("cpu"))
SETTINGS = ClassificationSettings(
    classification_protocols=("knn", "linear"), pooled_features=1000, steps_linear=200, cache=None
)


@pytest.fixture(scope="module")
def weights() -> list[Weights]:
    """SqueezeNet trained on ImageNet's labels, SqueezeNet with random weights, and pixels."""
    net = load_published("squeezenet1_0", DATA.parent / "weights/squeezenet1_0_imagenet.safetensors")[0]
    return [
        *with_random([Weights("squeezenet", net.spec.plain(), (net.state_dict(),))]),
        Weights("pixels", Pixels().plain(), ({},)),
    ]


@pytest.fixture(scope="module")
def caltech() -> Classification:
    return Classification(str(DATA / "caltech101"), 64, SETTINGS, CPU)


def test_a_good_net_is_far_above_random_weights_and_pixels_are_poor(
    weights: list[Weights], caltech: Classification, tmp_path: Path
):
    found = figures(run(weights, [caltech], 3, tmp_path, CPU), weights)
    print({name: {title: f"{figure.mean:.1f}" for (_, title), figure in row.items()} for name, row in found.items()})
    for name, margin in (("kNN", 15), ("linear", 10)):
        good = found["squeezenet"][caltech.name, name]
        assert min(good.gains) > margin
        assert won_on_all(good, found["pixels"][caltech.name, name], margin)
    assert won_on_all(found[weights[1].name][caltech.name, "linear"], found["pixels"][caltech.name, "linear"], 5)


def test_segmentation_ranks_a_good_net_first_too(weights: list[Weights], tmp_path: Path):
    settings = DenseSettings(dense_protocols=("frozen",), steps_frozen=200)
    task = Segmentation(str(DATA / "camvid"), settings, CPU, void=11)
    found = figures(run(weights, [task], 3, tmp_path, CPU), weights)
    print({name: {title: f"{figure.mean:.1f}" for (_, title), figure in row.items()} for name, row in found.items()})
    (column,) = found["squeezenet"]
    assert min(found["squeezenet"][column].gains) > 5
    assert won_on_all(found["squeezenet"][column], found["pixels"][column], 10)


def test_meaningless_labels_give_chance(weights: list[Weights], caltech: Classification):
    """The training labels are shuffled, so that each class is as common in training as in the test."""
    labels = caltech.split.train.labels
    assert labels is not None
    mixed = caltech.split.train.source.labels.clone()  # type: ignore[union-attr]
    mixed[caltech.split.train.rows] = labels[torch.randperm(len(labels), generator=generator(1))]
    shuffled = Classification.__new__(Classification)
    shuffled.__dict__.update(caltech.__dict__)
    source = replace(caltech.split.train.source, labels=mixed)
    shuffled.split = replace(caltech.split, train=Images(source, caltech.split.train.rows))
    result = shuffled.measure(FrozenFeatures(weights[0], 0, CPU), "linear", 0)
    truth = caltech.split.heldout.labels
    assert truth is not None
    commonest = truth.bincount().amax().item() / len(truth)
    assert result.figures["linear"] < 1.2 * commonest


def test_masks_of_other_images_give_no_more_than_their_mean(weights: list[Weights]):
    """Only the usual place of each class in a street is left to learn."""
    settings = DenseSettings(dense_protocols=("frozen",), steps_frozen=100)
    task = Segmentation(str(DATA / "camvid"), settings, CPU, void=11)
    true = task.measure(FrozenFeatures(weights[0], 0, CPU), "frozen", 0)
    order = torch.randperm(len(task.train), generator=generator(2))
    task.train = Labeled(task.train.images, task.train.targets[order])
    mixed = task.measure(FrozenFeatures(weights[0], 0, CPU), "frozen", 0)
    (good,), (chance,) = true.figures.values(), mixed.figures.values()
    assert chance < 0.6 * good


def won_on_all(better: Figure, worse: Figure, margin: float) -> bool:
    return all(100 * (better.values[seed] - worse.values[seed]) > margin for seed in better.values)
