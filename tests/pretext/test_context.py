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
from torch.nn.functional import cross_entropy, interpolate, one_hot

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
CONFIG = replace(context.demo(), dim=16, hidden=32, color="drop")


def small(**settings: Any) -> context.Context:
    torch.manual_seed(0)
    return context.Context(replace(CONFIG, **settings), WORLD)


def test_the_nine_places_are_a_grid_within_the_crop():
    places = context.places(CONFIG)  # patches of 32 px in 128 px, 14 px apart
    assert places.tolist() == [[48 + 46 * i, 48 + 46 * j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    grids = context.draw(4000, CONFIG, generator(1))
    assert grids.corner.amin() == 0
    assert grids.corner.amax() == 128 - 32
    moved = grids.corner - places
    for which, axis in itertools.product(range(9), (0, 1)):  # each patch and axis on its own
        assert moved[:, which, axis].unique().tolist() == [-2, -1, 0, 1, 2]
    assert (moved[:, 0] != moved[:, 1]).any(1).float().mean() > 0.9


def test_the_pairs_are_all_neighbors_in_the_grid():
    found = dict(zip(map(tuple, context.PAIRS.tolist()), context.TRUTH.tolist(), strict=True))
    expected = {}
    for (i, j), (down, right) in itertools.product(itertools.product(range(3), repeat=2), context.SIDES.tolist()):
        if 0 <= i + down < 3 and 0 <= j + right < 3:
            expected[3 * i + j, 3 * (i + down) + j + right] = context.SIDES.tolist().index([down, right])
    assert len(expected) == 40
    assert found == expected


def test_logits_are_those_of_each_pair_on_its_own():
    method = small().eval()
    inputs = torch.rand(2, 9, 3, 32, 32, generator=generator(1))
    logits = method.logits(inputs)
    for k, (first, second) in enumerate(context.PAIRS.tolist()):
        pair = method.fusion(method.encoder.vectors(inputs[:, [first, second]].flatten(0, 1)).unflatten(0, (2, 2)))
        torch.testing.assert_close(logits[:, k], pair)


def test_chance_is_the_best_that_needs_no_image():
    """With the same logits for every pair, which fit the frequencies of the sides."""
    chance = small().baselines([])["chance"]
    counts = context.TRUTH.bincount()
    logits = counts.log().expand(40, 8)
    assert chance["loss"] == pytest.approx(cross_entropy(logits, context.TRUTH).item())
    assert chance["accuracy"] == pytest.approx(100 * (counts.argmax() == context.TRUTH).double().mean().item())


def test_patches_are_cut_as_by_a_loop():
    image = torch.rand(3, 3, 128, 128, generator=generator(1))
    grids = context.draw(3, CONFIG, generator(2))
    patches = context.cut(image, grids.corner, 32)
    for n, which in itertools.product(range(3), range(9)):
        top, left = grids.corner[n, which].tolist()
        assert torch.equal(patches[n, which], image[n, :, top : top + 32, left : left + 32])


def test_dropped_colors_become_noise_of_a_hundredth():
    method = small()
    patches = torch.rand(9, 9, 3, 32, 32, generator=generator(1)) * 0.5
    grids = context.draw(9, CONFIG, generator(3))
    found = context.dropped(patches, grids.kept, grids.noise)
    seen = method.encoder.normalized(found.flatten(0, 1)).unflatten(0, (9, 9))
    for n, which in itertools.product(range(9), range(9)):
        kept = grids.kept[n, which].item()
        assert torch.equal(found[n, which, kept], patches[n, which, kept])
        deviation = patches[n, which, kept].std(correction=0)
        for channel in {0, 1, 2} - {kept}:
            assert found[n, which, channel].std() == pytest.approx(0.01 * deviation.item(), rel=0.15)
            assert abs(seen[n, which, channel].mean()) < 0.01
    assert grids.kept.flatten().bincount().tolist() == pytest.approx([81 / 3] * 3, abs=12)
    assert (grids.kept[:, 0] != grids.kept[:, 1]).any()


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
    """The side (40n,) on which the neighbor's border or corner matches the first patch's best, without learning."""
    middle, other = inputs[:, context.PAIRS].flatten(0, 1).unbind(1)  # (40n,3,p,p)
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
    image = interpolate(torch.rand(50, 3, 32, 32, generator=generator(5)), scale_factor=4, mode="bilinear")
    method = small(color="keep", **settings)
    inputs, truth = method.puzzle(image, generator(6), 50, slice(None))
    assert limits[0] <= (match_borders(inputs) == truth.flatten()).float().mean() <= limits[1]


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
    count = 120
    gray = interpolate(torch.rand(count, 1, 32, 32, generator=generator(5)), scale_factor=4, mode="bilinear")
    box = torch.tensor([[3.0, 3.0, 122.0, 122.0]]).repeat(count, 1)
    enlarged = cropping.crop_resize(gray.expand(-1, 3, -1, -1), box, 128)
    image = torch.cat([enlarged[:, :1], gray, enlarged[:, 2:]], 1)
    inputs, truth = small(color=color).puzzle(image, generator(6), count, slice(None))
    off = displacement(inputs + 1e-6 * torch.rand(inputs.shape, generator=generator(7)))  # (n,9,2)
    assert limits[0] <= linear_accuracy(off[:, context.PAIRS].flatten(2).flatten(0, 1), truth.flatten(), 8) <= limits[1]


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
    grids = context.draw(4, method.config, random)
    predicted = context.TRUTH if right else (context.TRUTH + 3) % 8
    monkeypatch.setattr(method, "predict", lambda inputs: one_hot(predicted, 8).float().expand(len(inputs), -1, -1))
    ((title, picture),) = method.show(BATCH).items()
    assert torch.equal(method.show(BATCH)[title], picture)  # the same at every call
    patches = context.dropped(context.cut(image, grids.corner, 32), grids.kept, grids.noise)
    around = [0, 1, 2, 3, 5, 6, 7, 8]  # the neighbors of the middle patch
    for n in range(4):
        row = picture[:, 2 + 258 * n : 258 * (n + 1)]
        for which, patch in enumerate((4, around[n])):  # each of the 32 pixels is 8 px wide
            seen = row[:, 4::8, 2 + 258 * which + 4 : 258 * (which + 1) : 8]
            torch.testing.assert_close(seen, patches[n, patch].clamp(0, 1))
        plan = row[:, ::2, 2 + 258 * 2 : 258 * 3 : 2]  # (3,128,128)
        corner = grids.corner[n, around[n]] if right else context.places(CONFIG)[around[n + 3]]
        frames = (corner.tolist(), GREEN if right else RED), (grids.corner[n, 4].tolist(), (1, 1, 1))
        for (top, left), color in frames:
            for i, j in ((0, 16), (31, 16), (16, 0), (16, 31)):
                torch.testing.assert_close(
                    plan[:, top + i, left + j], torch.tensor(color, dtype=torch.float32), atol=0.003, rtol=0
                )
        if not right:
            top, left = grids.corner[n, around[n]].tolist()
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
