"""The figures of features that need no labels: what is measured, how much, and that methods' own figures stay."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.tiny_method import TinyMethod, demo
from torch import Tensor

from kintsugi.contrastive import simclr
from kintsugi.nets.encoder import Encoder
from kintsugi.recon import splitbrain
from kintsugi.train import feature_quality, inference
from kintsugi.train.dist import World
from kintsugi.train.method import Batch

WORLD = World(torch.device("cpu"))


def batches(*counts: int) -> list[Batch]:
    random = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (n, 3, 40, 44), generator=random, dtype=torch.uint8),
            "extent": torch.tensor([[40, 44]]).repeat(n, 1),
        }
        for n in counts
    ]


@pytest.fixture(scope="module")
def method() -> splitbrain.SplitBrain:
    return splitbrain.SplitBrain(replace(splitbrain.demo(), size=32, batch=4), WORLD)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All images of which features were taken, in the order."""
    images: list[Tensor] = []

    def watched(encoder: Encoder, image: Tensor, world: World) -> Tensor:
        images.append(image)
        return image.mean((2, 3))

    monkeypatch.setattr(inference, "features", watched)
    return images


def test_at_most_some_images_are_measured(method: splitbrain.SplitBrain, seen: list[Tensor]):
    feature_quality.quality(method, batches(100, 100, 100, 100), {})
    assert [len(image) for image in seen] == 3 * [100] + 3 * [100] + 3 * [feature_quality.IMAGES - 200]
    assert all(image.shape[1:] == (3, 32, 32) for image in seen)
    center, first, second = seen[:3]
    assert not torch.equal(first, second)
    assert not torch.equal(first, center)


def test_rank_is_that_of_the_formula(method: splitbrain.SplitBrain, seen: list[Tensor]):
    found = feature_quality.quality(method, batches(6, 3), {})
    features = torch.cat([seen[0], seen[3]]).mean((2, 3)).double()
    unit = features / features.norm(dim=1, keepdim=True)
    values = torch.linalg.svd(unit - unit.mean(0)).S
    shares = [float(value / values.sum()) for value in values if value > 1e-9]
    assert found["rank"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-3)


def test_what_a_method_computes_itself_is_not_measured_again(method: splitbrain.SplitBrain, seen: list[Tensor]):
    assert feature_quality.quality(method, batches(4), {"rank": 5.0, "same_image": 6.0, "psnr": 7.0}) == {}
    assert not seen
    assert feature_quality.quality(method, batches(4), {"rank": 5.0}).keys() == {"same_image"}


def test_rows_of_pixels_and_random_weights(method: splitbrain.SplitBrain):
    known = {"mean color": {"psnr": 10.0}, "random init": {"rank": 3.0}}
    rows = feature_quality.baselines(method, batches(8), known, {"psnr": 20.0})
    assert list(rows) == ["mean color", "random init", "pixels"]
    assert rows["mean color"] == {"psnr": 10.0}
    assert rows["random init"]["rank"] == 3.0
    assert rows["random init"].keys() == rows["pixels"].keys() == {"rank", "same_image"}
    assert known["random init"] == {"rank": 3.0}
    assert feature_quality.baselines(method, batches(8), known, {"rank": 1.0, "same_image": 1.0}) == known


def test_modes_and_weights_stay(method: splitbrain.SplitBrain):
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    feature_quality.quality(method, batches(4), {})
    assert all(module.training for module in method.modules())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_methods_without_encoders_and_empty_data(method: splitbrain.SplitBrain):
    tiny = TinyMethod(demo(), WORLD)
    assert feature_quality.quality(tiny, batches(4), {}) == {}
    assert feature_quality.baselines(tiny, batches(4), {"none": {"a": 1.0}}, {}) == {"none": {"a": 1.0}}
    assert feature_quality.quality(method, [], {}) == {}


def test_contrastive_methods_compute_both_themselves(seen: list[Tensor]):
    """With their own views."""
    contrastive = simclr.SimCLR(replace(simclr.demo(), size=32, batch=4, encoder="alexnet"), WORLD)
    assert contrastive.evaluate(batches(4)).keys() >= feature_quality.NAMES
    assert seen
