"""Context prediction: its patches, that its shortcuts are closed, its pictures and its command."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Refused
from helpers.puzzle_cases import check_shares_of_two_ranks, linear_accuracy
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from kintsugi.augment import cropping
from kintsugi.pictures import GREEN, RED
from kintsugi.pretext import context
from kintsugi.rng import generator
from kintsugi.train.dist import World

WORLD = World(torch.device("cpu"))
TINY = (
    "--size 48 --short-side 48 --patch 12 --gap 5 --jitter 1 --dim 8 --hidden 16 --batch 4 --steps 2 --log-every 1 "
    "--show-every 2 --eval-every 2 --save-every 1 --eval-images 4 --device cpu"
).split()
CONFIG = replace(context.demo(), dim=16, hidden=32)


def small(**settings: Any) -> context.Context:
    torch.manual_seed(0)
    return context.Context(replace(CONFIG, **settings), WORLD)


def test_the_eight_places_are_around_the_middle_and_within_the_crop():
    places = context.places(CONFIG)  # patches of 32 px in 128 px, 14 px apart
    expected = [(48 + 46 * i, 48 + 46 * j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    assert places.tolist() == [list(place) for place in expected]
    pairs = context.draw(4000, CONFIG, generator(1))
    assert pairs.side.bincount(minlength=8).amin() > 400
    assert pairs.corner.amin() == 0
    assert pairs.corner.amax() == 128 - 32
    moved = pairs.corner - torch.stack([torch.full((4000, 2), 48), places[pairs.side]], 1)
    for which, axis in itertools.product((0, 1), (0, 1)):  # each patch and axis on its own
        assert moved[:, which, axis].unique().tolist() == [-2, -1, 0, 1, 2]
    assert (moved[:, 0] != moved[:, 1]).any(1).float().mean() > 0.9


def test_patches_are_cut_as_by_a_loop():
    image = torch.rand(3, 3, 128, 128, generator=generator(1))
    pairs = context.draw(3, CONFIG, generator(2))
    patches = context.cut(image, pairs.corner, 32)
    for n, which in itertools.product(range(3), (0, 1)):
        top, left = pairs.corner[n, which].tolist()
        assert torch.equal(patches[n, which], image[n, :, top : top + 32, left : left + 32])


def test_dropped_colors_become_noise_of_a_hundredth():
    method = small()
    patches = torch.rand(40, 2, 3, 32, 32, generator=generator(1)) * 0.5
    pairs = context.draw(40, CONFIG, generator(3))
    found = context.dropped(patches, pairs.kept, pairs.noise)
    seen = method.encoder.normalized(found.flatten(0, 1)).unflatten(0, (40, 2))
    for n, which in itertools.product(range(40), (0, 1)):
        kept = pairs.kept[n, which].item()
        assert torch.equal(found[n, which, kept], patches[n, which, kept])
        deviation = patches[n, which, kept].std(correction=0)
        for channel in {0, 1, 2} - {kept}:
            assert found[n, which, channel].std() == pytest.approx(0.01 * deviation.item(), rel=0.15)
            assert abs(seen[n, which, channel].mean()) < 0.01
    assert pairs.kept.flatten().bincount().tolist() == pytest.approx([80 / 3] * 3, abs=12)
    assert (pairs.kept[:, 0] != pairs.kept[:, 1]).any()


def test_projected_colors_equal_the_papers():
    """B = I - a^T a / (a a^T), a = (-1, 2, -1), on each pixel: gray is kept, green against magenta is removed."""
    patches = torch.rand(2, 2, 3, 4, 4, generator=generator(1))
    found = context.projected(patches)
    a = (-1, 2, -1)
    for n, which, i, j in itertools.product(range(2), range(2), range(4), range(4)):
        pixel = patches[n, which, :, i, j].tolist()
        along = sum(x * y for x, y in zip(a, pixel, strict=True)) / 6
        expected = [x - along * y for x, y in zip(pixel, a, strict=True)]
        assert found[n, which, :, i, j].tolist() == pytest.approx(expected, abs=1e-6)
    gray = torch.rand(1, 1, 1, 4, 4).expand(1, 1, 3, 4, 4)
    torch.testing.assert_close(context.projected(gray), gray)


# --- shortcuts ------------------------------------------------------------------------------------------------


def match_borders(inputs: Tensor) -> Tensor:
    """The side (n,) on which the neighbor's border or corner matches the middle patch's best, without any learning."""
    middle, other = inputs.unbind(1)
    here = {-1: slice(0, 2), 0: slice(None), 1: slice(-2, None)}  # the middle patch's pixels on this side
    there = {-1: slice(-2, None), 0: slice(None), 1: slice(0, 2)}
    differences = []
    for down, right in context.SIDES.tolist():
        side = middle[:, :, here[down], here[right]].mean(2 if down else 3)
        other_side = other[:, :, there[down], there[right]].mean(2 if down else 3)
        differences.append((side - other_side).abs().flatten(1).mean(1))
    return torch.stack(differences, 1).argmin(1)


@pytest.mark.parametrize(("settings", "limits"), [({"gap": 0, "jitter": 0}, (0.35, 1)), ({}, (0.08, 0.17))])
def test_borders_reveal_the_side_only_if_patches_touch(settings: dict[str, int], limits: tuple[float, float]):
    """Noise that is smooth over some 4 px, in which only borders can be matched. Chance is one in eight sides."""
    image = interpolate(torch.rand(500, 3, 32, 32, generator=generator(5)), scale_factor=4, mode="bilinear")
    method = small(color="keep", **settings)
    inputs, truth = method.puzzle(image, generator(6), 500, slice(None))
    assert limits[0] <= (match_borders(inputs) == truth).float().mean() <= limits[1]


def displacement(inputs: Tensor) -> Tensor:
    """Displacement of red against green in each patch, down and right, px, by least squares: (n,m,3,p,p) -> (n,m,2)."""
    red, green = inputs[:, :, 0, 1:-1, 1:-1], inputs[:, :, 1]
    down = (green[:, :, 2:, 1:-1] - green[:, :, :-2, 1:-1]) / 2
    right = (green[:, :, 1:-1, 2:] - green[:, :, 1:-1, :-2]) / 2
    off = red - green[:, :, 1:-1, 1:-1]
    return torch.stack([(off * d).sum((-1, -2)) / d.square().sum((-1, -2)) for d in (down, right)], -1)


@pytest.mark.parametrize(("color", "limits"), [("keep", (0.7, 1)), ("drop", (0.05, 0.2)), ("project", (0.05, 0.2))])
def test_aberration_reveals_the_side_only_if_colors_are_kept(color: str, limits: tuple[float, float]):
    """Gray noise through a lens that enlarges red and blue by a twentieth: their displacement against green reveals
    where in the image a patch is."""
    count = 600
    gray = interpolate(torch.rand(count, 1, 32, 32, generator=generator(5)), scale_factor=4, mode="bilinear")
    box = torch.tensor([[3.0, 3.0, 122.0, 122.0]]).repeat(count, 1)
    enlarged = cropping.crop_resize(gray.expand(-1, 3, -1, -1), box, 128)
    image = torch.cat([enlarged[:, :1], gray, enlarged[:, 2:]], 1)
    inputs, truth = small(color=color).puzzle(image, generator(6), count, slice(None))
    off = displacement(inputs + 1e-6 * torch.rand(inputs.shape, generator=generator(7))).flatten(1)
    assert limits[0] <= linear_accuracy(off, truth, 8) <= limits[1]


# --- the method -----------------------------------------------------------------------------------------------


def test_each_rank_makes_its_share_of_the_puzzles():
    check_shares_of_two_ranks(small(), torch.rand(4, 3, 128, 128, generator=generator(1)))


BATCH = {
    "image": torch.randint(0, 256, (4, 3, 128, 130), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[128, 130]]).repeat(4, 1),
}


@pytest.mark.parametrize("right", [True, False])
def test_the_picture_frames_the_predicted_and_the_true_place(right: bool, monkeypatch: pytest.MonkeyPatch):
    method = small()
    image, random = method.shown_images(BATCH)
    pairs = context.draw(4, method.config, random)
    predicted = pairs.side if right else (pairs.side + 3) % 8
    monkeypatch.setattr(method, "predict", lambda _: one_hot(predicted, 8).float())
    ((title, picture),) = method.show(BATCH).items()
    assert torch.equal(method.show(BATCH)[title], picture)  # the same at every call
    patches = context.dropped(context.cut(image, pairs.corner, 32), pairs.kept, pairs.noise)
    for n in range(4):
        row = picture[:, 2 + 258 * n : 258 * (n + 1)]
        for which in (0, 1):  # each of the 32 pixels is 8 px wide
            seen = row[:, 4::8, 2 + 258 * which + 4 : 258 * (which + 1) : 8]
            torch.testing.assert_close(seen, patches[n, which].clamp(0, 1))
        plan = row[:, ::2, 2 + 258 * 2 : 258 * 3 : 2]  # (3,128,128)
        corner = pairs.corner[n, 1] if right else context.places(CONFIG)[predicted[n]]
        frames = (corner.tolist(), GREEN if right else RED), (pairs.corner[n, 0].tolist(), (1, 1, 1))
        for (top, left), color in frames:
            for i, j in ((0, 16), (31, 16), (16, 0), (16, 31)):
                torch.testing.assert_close(
                    plan[:, top + i, left + j], torch.tensor(color, dtype=torch.float32), atol=0.003, rtol=0
                )
        if not right:
            top, left = pairs.corner[n, 1].tolist()
            assert plan[2, top, left + 16] > 0.9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--size", "127"], "--size 127 is too small for three patches, two gaps and the jitter: use at least 128"),
        (["--patch", "1"], "--patch must be at least 2, not 1"),
        (["--gap", "-1"], "--gap must be at least 0, not -1"),
        (["--jitter", "-1"], "--jitter must be at least 0, not -1"),
        (["--color", "gray"], "'gray'"),
    ],
)
def test_bad_settings_are_one_line(args: list[str | Path], message: str, refused: Refused):
    assert message in refused(context.main, args)
