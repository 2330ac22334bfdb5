"""Batch norms fitted to images, and the features of random weights, which need that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kintsugi.nets.backbones import Backbone
from kintsugi.nets.layers import Norm
from kintsugi.nets.specs import fresh
from kintsugi.train.compute import Compute
from kintsugi.train.dist import World
from kintsugi.train.inference import fit_batch_norms, untrained_features

WORLD = World(torch.device("cpu"))


def batches(*counts: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.rand(count, 3, 32, 32, generator=random) for count in counts]


@pytest.mark.parametrize("norm", ["batch", "split"])
def test_statistics_are_the_mean_over_batches_and_nothing_else_changes(norm: Norm):
    torch.manual_seed(0)
    net = Backbone("alexnet", norm).build()
    net.features.add_module("dropout", nn.Dropout())
    layer = next(each for each in net.modules() if hasattr(each, "running_mean"))
    layer.running_mean.fill_(7.0)
    momentum, weights = layer.momentum, [p.clone() for p in net.parameters()]
    before = torch.get_rng_state()
    images = batches(4, 4)
    fit_batch_norms(net, images, Compute(torch.device("cpu")))
    with torch.no_grad():
        maps = [net.features[0](net.normalized(image)) for image in images]
    parts = 2 if norm == "split" else 1  # at least two images in each
    cut = [part for x in maps for part in x.chunk(parts)]
    torch.testing.assert_close(layer.running_mean, torch.stack([x.mean((0, 2, 3)) for x in cut]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([x.var((0, 2, 3)) for x in cut]).mean(0))
    assert layer.momentum == momentum
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), weights, strict=True))
    assert torch.equal(torch.get_rng_state(), before)  # dropout draws nothing


def test_features_of_random_weights_have_fitted_norms():
    images = batches(4, 3)
    encoder = Backbone("alexnet").build()
    found = untrained_features(encoder, 5, images, WORLD)
    assert list(found) == ["pixels", "random init"]
    net = fresh(encoder, 5)
    unfitted = net.vectors(images[0])
    fit_batch_norms(net, images, WORLD)
    torch.testing.assert_close(found["random init"](images[0]), net.vectors(images[0]))
    assert not torch.allclose(unfitted, net.vectors(images[0]))


def test_a_single_held_out_image_whose_coarsest_map_is_one_pixel():
    (image,) = batches(1)
    features = untrained_features(Backbone().build(), 0, [image], WORLD)["random init"](image)
    assert features.shape == (1, 512)
    assert features.isfinite().all()
