from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.random_surfaces import random_surfaces
from torch import nn

from kintsugi.losses.depth import MaskedMean, depth_loss, masked_mean, normal_loss
from kintsugi.rng import generator
from kintsugi.train.dist import World

WORLD = World(torch.device("cpu"))
MEANS = pytest.mark.parametrize("mean", [masked_mean, WORLD.weighted_mean])


@MEANS
def test_the_squared_depth_loss_is_that_of_a_loop_over_known_pixels(mean: MaskedMean):
    guess = torch.randn(2, 1, 3, 4, generator=generator(1))
    depth = 5 * torch.rand(2, 1, 3, 4, generator=generator(2))
    depth[0, 0, 1] = 0
    squares = [
        (g - math.log(d)) ** 2 for g, d in zip(guess.flatten().tolist(), depth.flatten().tolist(), strict=True) if d > 0
    ]
    assert depth_loss(guess, depth, torch.square, mean).item() == pytest.approx(sum(squares) / 20, rel=1e-5)
    assert depth_loss(guess, torch.zeros_like(depth), torch.square, mean).item() == 0
    guess.requires_grad_()
    depth_loss(guess, depth, torch.square, mean).backward()
    assert guess.grad is not None
    assert torch.equal(guess.grad == 0, depth == 0)


@MEANS
def test_the_normal_loss_is_that_of_a_loop_over_known_pixels(mean: MaskedMean):
    guess, truth = (nn.functional.normalize(torch.randn(2, 3, 4, 5, generator=generator(i)), dim=1) for i in (1, 2))
    truth[1, :, 2] = 0
    losses = [
        1 - sum(guess[n, c, y, x].item() * truth[n, c, y, x].item() for c in range(3))
        for n in range(2)
        for y in range(4)
        for x in range(5)
        if (n, y) != (1, 2)
    ]
    assert normal_loss(guess, truth, mean).item() == pytest.approx(sum(losses) / 35, rel=1e-5)
    assert normal_loss(truth[:1], truth[:1], mean).item() == pytest.approx(0, abs=1e-6)


def test_absolute_losses_against_nested_loops():
    torch.manual_seed(1)
    prediction, targets = random_surfaces()
    depths, cosines = [], []
    for n in range(2):
        for y in range(5):
            for x in range(6):
                (p, *normal), (t, *truth) = prediction[n, :, y, x].tolist(), targets[n, :, y, x].tolist()
                if t > 0:
                    depths.append(abs(p - math.log(t)))
                if any(truth):
                    cosines.append(1 - sum(a * b for a, b in zip(normal, truth, strict=True)))
    assert depth_loss(prediction[:, :1], targets[:, :1]).item() == pytest.approx(np.mean(depths), rel=1e-5)
    assert normal_loss(prediction[:, 1:], targets[:, 1:]).item() == pytest.approx(np.mean(cosines), rel=1e-4)
    nothing = torch.zeros(1, 4, 5, 6)
    assert depth_loss(nothing[:, :1], nothing[:, :1]) == normal_loss(nothing[:, 1:], nothing[:, 1:]) == 0
