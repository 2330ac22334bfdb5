"""Rotation: its rotations are exact and leave no other trace; its command; what all puzzle methods share."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from torch.nn.functional import cross_entropy, interpolate

from kintsugi.augment import cropping
from kintsugi.pictures import GREEN, RED, framed, right_wrong_colors
from kintsugi.pretext import rotation
from kintsugi.pretext.puzzles import captioned, square_crops
from kintsugi.rng import generator
from kintsugi.train.dist import World

WORLD = World(torch.device("cpu"))
TINY = (
    "--size 32 --short-side 40 --batch 4 --steps 2 --log-every 1 --show-every 2 --eval-every 2 --save-every 1 "
    "--eval-images 4 --device cpu"
).split()
BATCH = {
    "image": torch.randint(0, 256, (8, 3, 40, 56), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[40, 56]]).repeat(8, 1),
    "index": torch.arange(8),
}


def small(**settings: Any) -> rotation.Rotation:
    torch.manual_seed(0)
    return rotation.Rotation(replace(rotation.demo(), size=32, batch=8, **settings), WORLD)


@pytest.mark.parametrize("turns", range(-4, 5))
def test_turns_are_exact_and_counterclockwise(turns: int):
    image = torch.rand(2, 3, 5, 5, generator=generator(1))
    found = rotation.turned(image, turns)
    expected = image.clone()
    for _ in range(turns % 4):  # the right column becomes the top row
        before = expected.clone()
        for i in range(5):
            for j in range(5):
                expected[:, :, i, j] = before[:, :, j, 4 - i]
    assert torch.equal(found, expected)
    assert torch.equal(rotation.turned(found, -turns), image)
    np.testing.assert_array_equal(found[0, 0].numpy(), np.rot90(image[0, 0].numpy(), turns))


def test_a_puzzle_has_all_four_rotations_of_each_image():
    image = torch.rand(3, 3, 32, 32, generator=generator(1))
    inputs, turns = small().puzzle(image, generator(2), 3, slice(None))
    assert inputs.shape == (12, 3, 32, 32)
    for i in range(12):
        assert torch.equal(inputs[i], rotation.turned(image[i % 3][None], i // 3)[0])
        assert turns[i] == i // 3


def test_no_statistic_of_pixels_or_of_their_differences_reveals_the_rotation():
    """Exact rotations keep every value and every difference of neighbors; interpolation would smooth some of them."""
    inputs, _ = small().puzzle(cropping.center_crops(BATCH, 32), generator(0), 8, slice(None))
    turns = inputs.unflatten(0, (4, 8))
    values = turns.flatten(3).sort().values
    steps = torch.cat([turns.diff(dim=-1).abs().flatten(2), turns.diff(dim=-2).abs().flatten(2)], 2)
    for k in range(1, 4):
        assert torch.equal(values[k], values[0])
        assert torch.equal(steps.sort().values[k], steps.sort().values[0])


def test_crops_resample_both_axes_alike():
    """In squares of noise, differences down and across are equally large; in stretched boxes they are not."""
    coarse = torch.rand(64, 3, 24, 24, generator=generator(3))
    noise = interpolate(coarse, scale_factor=4, mode="bilinear").mul(255).byte()
    batch = {"image": noise, "extent": torch.tensor([[96, 96]]).repeat(64, 1)}

    def imbalance(image: torch.Tensor) -> float:
        down, across = (image.diff(dim=axis).square().mean((1, 2, 3)) for axis in (-2, -1))
        return (down / across).log().abs().mean().item()

    squares = square_crops(batch, 32, 64, slice(None), generator(4), 0.35)
    boxes = cropping.random_crops(batch, 32, 64, slice(None), generator(4))
    assert imbalance(squares) < 0.1
    assert imbalance(boxes) > 2 * imbalance(squares)


def test_each_rank_has_its_share_of_the_crops():
    one = square_crops(BATCH, 32, 8, slice(None), generator(4), 0.35)
    halves = [{name: value[4 * rank : 4 * rank + 4] for name, value in BATCH.items()} for rank in (0, 1)]
    two = [
        square_crops(half, 32, 8, World(torch.device("cpu"), rank, 2).part(8), generator(4), 0.35)
        for rank, half in enumerate(halves)
    ]
    torch.testing.assert_close(torch.cat(two), one)


def test_accuracy_and_loss_equal_a_loop():
    method = small()
    halves = [{name: value[part] for name, value in BATCH.items()} for part in (slice(5), slice(5, 8))]
    found = method.evaluate(halves)
    assert method.evaluate(halves) == found
    method.encoder.eval()
    hits, losses = [], []
    for i in range(8):
        image = cropping.center_crops({name: value[i : i + 1] for name, value in BATCH.items()}, 32)
        for k in range(4):
            maps = method.encoder(rotation.turned(image, k))
            logits = method.classifier(maps[32].mean((2, 3)))
            hits.append(logits.argmax().item() == k)
            losses.append(cross_entropy(logits, torch.tensor([k])).item())
    assert found == pytest.approx({"accuracy": 100 * np.mean(hits), "loss": np.mean(losses)}, rel=1e-4)
    assert method.baselines([]) == {"chance": {"accuracy": 25, "loss": math.log(4)}}


def test_it_learns_which_side_is_up():
    """Images that are light at the top: after a few steps all rotations are predicted."""
    method = small(warmup=1)
    shade = torch.linspace(220, 30, 40).view(1, 1, 40, 1) + torch.randn(8, 3, 40, 56, generator=generator(5)) * 8
    batch = {**BATCH, "image": shade.clamp(0, 255).byte()}
    for step in range(5):
        scalars = method.update(method.inputs(batch, step), step)
    assert scalars["accuracy/training"] > 90


def test_the_papers_learning_rate_falls_at_its_epochs():
    factors = [rotation.step_schedule(step, 50) for step in (0, 14, 15, 29, 30, 44, 45, 49)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    method = small(optimizer="sgd", lr=0.01, steps=10)
    method.update(method.inputs(BATCH, 6), 6)
    (group,) = method.optimizers["all"].param_groups
    assert group["nesterov"]
    assert group["lr"] == pytest.approx(1e-4)


def test_pictures_are_the_same_at_every_call():
    method = small()
    ((title, picture),) = method.show(BATCH).items()
    assert title.startswith("input | turned back as predicted")
    method.update(method.inputs(BATCH, 0), 0)
    method.load_training_state(small().training_state())
    assert torch.equal(method.show(BATCH)[title], picture)


def test_frames_and_captions():
    image = torch.full((2, 3, 24, 64), 0.5)
    marked = framed(image, right_wrong_colors(torch.tensor([True, False])), line=2)
    for i, color in enumerate((GREEN, RED)):
        for place in (marked[i, :, 0, 5], marked[i, :, 23, 63], marked[i, :, 9, 1], marked[i, :, 1, 30]):
            torch.testing.assert_close(place, torch.tensor(color))
        assert (marked[i, :, 2:22, 2:62] == 0.5).all()
    assert (image == 0.5).all()
    below = captioned(image, ["turn 90°", ""])
    assert below.shape == (2, 3, 40, 64)
    assert torch.equal(below[:, :, :24], image)
    dark = (below[0, 0, 24:] < 0.5).any(0).nonzero()
    assert dark.amin() < 16
    assert dark.amax() > 48
    assert (below[1, :, 24:] == 1).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--smallest-crop", "0"], "--smallest-crop must be in [0.001, 1], not 0"),
        (["--lr", "-1"], "--lr must be at least 0, not -1"),
        (["--weight-decay", "-1"], "--weight-decay must be at least 0"),
        (["--encoder", "alexnet", "--stem", "small"], "--stem small is for ResNets only"),
        (["--encoder", "vgg"], "'vgg'"),
        (["--turns", "8"], "unknown option --turns"),
    ],
)
def test_bad_settings_are_one_line(args: list[str | Path], message: str, refused: Refused):
    assert message in refused(rotation.main, args)
