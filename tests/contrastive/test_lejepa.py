"""LeJEPA: its losses compared with direct evaluations, and what it trains."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.command_line import Refused
from helpers.view_cases import BATCH, WORLD, small_lejepa
from torch import Tensor

from kintsugi.contrastive import lejepa
from kintsugi.contrastive.crops import encode_crops
from kintsugi.contrastive.lejepa import (
    characteristic,
    epps_pulley,
    prediction_loss,
    quadrature,
    random_directions,
    sigreg,
)
from kintsugi.rng import generator
from kintsugi.train.dist import World


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=generator(seed))


def statistic(samples: list[float], lowest: float = -20, highest: float = 20, steps: int = 4000) -> float:
    """N times the integral of |empirical - normal|^2 exp(-t^2/2), by the midpoint rule, sample by sample."""
    total, width = 0.0, (highest - lowest) / steps
    for step in range(steps):
        t = lowest + (step + 0.5) * width
        real = imaginary = 0.0
        for x in samples:
            real += math.cos(t * x) / len(samples)
            imaginary += math.sin(t * x) / len(samples)
        normal = math.exp(-t * t / 2)
        total += ((real - normal) ** 2 + imaginary**2) * normal * width
    return len(samples) * total


def closed_form(samples: list[float]) -> float:
    """The statistic as Epps and Pulley (1983) give it: sums over samples and over pairs of them."""
    count = len(samples)
    pairs = sum(math.exp(-((one - other) ** 2) / 2) for one in samples for other in samples) / count
    singles = math.sqrt(2) * sum(math.exp(-(x**2) / 4) for x in samples)
    return pairs - singles + count / math.sqrt(3)


def test_the_statistic_equals_a_sum_over_samples_and_its_closed_form():
    projections, directions = 1.5 * random(2, 6, 3).double() + 0.4, random_directions(3, 2, generator(1)).double()
    t, weights = (values.double() for values in quadrature(401, 12))
    found = epps_pulley(characteristic(projections, directions, t), 6, t, weights)
    assert found.shape == (2, 2)
    for crop in range(2):
        for direction in range(2):
            line = [
                sum(float(a * b) for a, b in zip(x, directions[:, direction], strict=True)) for x in projections[crop]
            ]
            assert found[crop, direction].item() == pytest.approx(statistic(line), rel=1e-4)
            assert found[crop, direction].item() == pytest.approx(math.sqrt(2 * math.pi) * closed_form(line), rel=1e-4)


def test_seventeen_knots_up_to_three_nearly_give_the_whole_integral():
    t, weights = quadrature()
    assert t.tolist() == pytest.approx([3 * k / 16 for k in range(17)])
    for scale, shift in ((1.0, 0.0), (0.3, 0.0), (1.0, 1.0), (0.0, 0.0), (3.0, 0.0)):
        line = scale * random(50) + shift
        found = epps_pulley(characteristic(line[None, :, None], torch.ones(1, 1), t), 50, t, weights)
        within = statistic(line.tolist(), -3, 3, 600)
        assert found.item() == pytest.approx(within, rel=0.01, abs=0.01)
        assert found.item() == pytest.approx(math.sqrt(2 * math.pi) * closed_form(line.tolist()), rel=0.05, abs=0.05)


def test_sigreg_is_the_mean_over_crops_and_directions():
    projections, directions = random(3, 8, 5), random_directions(5, 7, generator(1))
    total = 0.0
    for crop in projections:
        for direction in directions.T:
            total += math.sqrt(2 * math.pi) * closed_form((crop @ direction).tolist())
    assert sigreg(projections, directions, WORLD).item() == pytest.approx(total / 21, rel=0.05)


def test_sigreg_of_normal_samples_is_small_and_of_collapsed_ones_large():
    directions = random_directions(16, 64, generator(1))
    samples = random(64, 256, 16)
    normal = sigreg(samples, directions, WORLD).item()
    # The expected value for normal samples is sqrt(2 pi) (1 - 1/sqrt(3)), for any count.
    assert normal == pytest.approx(math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3)), rel=0.1)
    one_point = sigreg(0 * samples, directions, WORLD).item()
    one_line = sigreg(samples[..., :1].expand(-1, -1, 16), directions, WORLD).item()
    other_scale = sigreg(3 * samples, directions, WORLD).item()
    assert one_point > 40 * normal
    assert one_line > 10 * normal
    assert other_scale > 10 * normal


def test_gradients_lead_from_a_collapse_to_a_normal_distribution():
    samples = (0.01 * random(1, 64, 4)).requires_grad_()
    optimizer = torch.optim.Adam([samples], 0.05)
    for step in range(200):
        optimizer.zero_grad()
        sigreg(samples, random_directions(4, 32, generator(step)), WORLD).backward()
        optimizer.step()
    covariance = torch.cov(samples[0].detach().T)
    assert (covariance - torch.eye(4)).abs().max() < 0.3


def test_two_shares_give_the_value_of_the_whole():
    whole, directions = random(2, 8, 5), random_directions(5, 7, generator(1))
    t, _ = quadrature()

    class Pair(World):
        def gather(self, mine: Tensor) -> Tensor:
            return torch.cat([mine, characteristic(whole[:, 4:], directions, t)[None]])

    found = sigreg(whole[:, :4], directions, Pair(torch.device("cpu"), rank=0, size=2))
    torch.testing.assert_close(found, sigreg(whole, directions, WORLD))


def test_the_prediction_loss_equals_nested_loops():
    projections, total = random(5, 3, 4), 0.0
    for image in range(3):
        for coordinate in range(4):
            mean = sum(projections[crop, image, coordinate].item() for crop in range(2)) / 2
            total += sum((projections[crop, image, coordinate].item() - mean) ** 2 for crop in range(5))
    assert prediction_loss(projections, 2).item() == pytest.approx(total / (5 * 3 * 4), rel=1e-5)


def test_directions_are_unit_vectors_drawn_anew_at_each_step():
    one, other = (random_directions(8, 100, generator(0, step)) for step in (0, 1))
    torch.testing.assert_close(one.norm(dim=0), torch.ones(100))
    assert not torch.equal(one, other)
    assert one.mean(1).abs().max() < 0.15


def test_the_logged_loss_is_the_weighted_sum():
    method = small_lejepa()
    found = method.update(method.inputs(BATCH, 0), 0)
    weight = method.config.sigreg
    expected = (1 - weight) * found["loss/prediction"] + weight * found["loss/sigreg"]
    torch.testing.assert_close(found["loss/lejepa"], expected)


def test_the_loss_of_a_step_equals_one_computed_crop_by_crop():
    method = small_lejepa(norm="group")
    crops = method.crops(BATCH, 3)
    assert [tuple(kind.shape) for kind in crops] == [(2, 8, 3, 32, 32), (3, 8, 3, 32, 32)]
    with torch.no_grad():
        each = [method.projector(method.encoder.vectors(crop)) for kind in crops for crop in kind]
        joined = method.projector(encode_crops(method.encoder, crops)).unflatten(0, (5, 8))
    torch.testing.assert_close(joined, torch.stack(each))
    predicted = prediction_loss(torch.stack(each), 2)
    torch.testing.assert_close(method.update(method.inputs(BATCH, 3), 3)["loss/prediction"], predicted)


def test_training_lowers_the_loss_without_a_collapse():
    method = small_lejepa()
    scalars = [method.update(method.inputs(BATCH, step), step) for step in range(20)]
    assert scalars[-1]["loss/lejepa"] < 0.8 * scalars[0]["loss/lejepa"]
    assert scalars[-1]["spread/deviation"] > 0.5


def test_a_vision_transformer_takes_the_local_crops_too():
    config = replace(lejepa.demo(), size=32, batch=8, encoder="test_vit", local_size=32, hidden=16, dim=8, directions=8)
    torch.manual_seed(0)
    method = lejepa.LeJEPA(config, WORLD)
    found = method.update(method.inputs(BATCH, 0), 0)
    assert all(value.isfinite() for value in found.values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sigreg", "1.5"], "--sigreg must be in [0, 1], not 1.5"),
        (["--directions", "0"], "--directions must be at least 1, not 0"),
        (["--global-crops", "0"], "--global-crops must be at least 1, not 0"),
        (["--global-crops", "1", "--local-crops", "0"], "a crop predicts the others"),
        (["--local-size", "16"], "--local-size must be 0 or at least 32, not 16"),
        (["--smallest-local", "0.5"], "--smallest-local 0.5 is larger than --largest-local 0.3"),
        (["--local-crops", "-1"], "--local-crops must be at least 0, not -1"),
    ],
)
def test_bad_settings_are_one_line(args: list[str], message: str, refused: Refused):
    assert message in refused(lejepa.main, args)
