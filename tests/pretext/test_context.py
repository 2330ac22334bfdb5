"""Context prediction: its patches, that what the defences remove is removed, its pictures and its command."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Refused
from helpers.nested import tensors
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from kintsugi.augment import cropping
from kintsugi.pictures import GREEN, RED
from kintsugi.pretext import context
from kintsugi.rng import generator
from kintsugi.train import checkpoint
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
    places = context.places(CONFIG)  # of 32 px in 128, 14 px apart
    expected = [(48 + 46 * i, 48 + 46 * j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    assert places.tolist() == [list(place) for place in expected]
    pairs = context.draw(4000, CONFIG, generator(1))
    assert pairs.side.bincount(minlength=8).amin() > 400
    assert pairs.corner.amin() == 0
    assert pairs.corner.amax() == 128 - 32
    moved = pairs.corner - torch.stack([torch.full((4000, 2), 48), places[pairs.side]], 1)
    for which, axis in itertools.product((0, 1), (0, 1)):  # each patch and axis by itself
        assert moved[:, which, axis].unique().tolist() == [-2, -1, 0, 1, 2]
    assert (moved[:, 0] != moved[:, 1]).any(1).float().mean() > 0.9


def test_patches_are_cut_as_by_a_loop():
    image = torch.rand(3, 3, 128, 128, generator=generator(1))
    pairs = context.draw(3, CONFIG, generator(2))
    patches = context.cut(image, pairs.corner, 32)
    for n, which in itertools.product(range(3), (0, 1)):
        top, left = pairs.corner[n, which].tolist()
        assert torch.equal(patches[n, which], image[n, :, top : top + 32, left : left + 32])


def test_of_dropped_colors_a_hundredth_is_noise():
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


def test_projected_colors_are_the_papers():
    """B = I - a^T a / (a a^T), a = (-1, 2, -1), on each pixel: gray stays, green against magenta goes."""
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


def match_borders(shown: Tensor) -> Tensor:
    """The side (n,) on which the neighbor's border, or corner, fits the middle patch's best, without any learning."""
    middle, other = shown.unbind(1)
    here = {-1: slice(0, 2), 0: slice(None), 1: slice(-2, None)}  # what of the middle patch lies on this side
    there = {-1: slice(-2, None), 0: slice(None), 1: slice(0, 2)}
    gaps = []
    for down, right in context.SIDES.tolist():
        mine = middle[:, :, here[down], here[right]].mean(2 if down else 3)
        yours = other[:, :, there[down], there[right]].mean(2 if down else 3)
        gaps.append((mine - yours).abs().flatten(1).mean(1))
    return torch.stack(gaps, 1).argmin(1)


@pytest.mark.parametrize(("settings", "told"), [({"gap": 0, "jitter": 0}, (0.35, 1)), ({}, (0.08, 0.17))])
def test_borders_tell_the_side_only_where_patches_touch(settings: dict[str, int], told: tuple[float, float]):
    """Noise whose pixels are alike over some 4 px: borders are all there is. One side in eight is chance."""
    image = interpolate(torch.rand(500, 3, 32, 32, generator=generator(5)), scale_factor=4, mode="bilinear")
    method = small(color="keep", **settings)
    shown, truth = method.question(image, generator(6), 500, slice(None))
    assert told[0] <= (match_borders(shown) == truth).float().mean() <= told[1]


def displacement(shown: Tensor) -> Tensor:
    """By how many px each patch's red lies off its green, down and right, by least squares: (n,m,3,p,p) -> (n,m,2)."""
    red, green = shown[:, :, 0, 1:-1, 1:-1], shown[:, :, 1]
    down = (green[:, :, 2:, 1:-1] - green[:, :, :-2, 1:-1]) / 2
    right = (green[:, :, 1:-1, 2:] - green[:, :, 1:-1, :-2]) / 2
    off = red - green[:, :, 1:-1, 1:-1]
    return torch.stack([(off * d).sum((-1, -2)) / d.square().sum((-1, -2)) for d in (down, right)], -1)


def linear_accuracy(features: Tensor, truth: Tensor, answers: int) -> float:
    """On the second half, of a least-squares classifier of the first; features (n,D)."""
    features = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    half = len(features) // 2
    weights = torch.linalg.lstsq(features[:half], one_hot(truth[:half], answers).double()).solution
    return ((features[half:] @ weights).argmax(1) == truth[half:]).float().mean().item()


@pytest.mark.parametrize(("color", "told"), [("keep", (0.7, 1)), ("drop", (0.05, 0.2)), ("project", (0.05, 0.2))])
def test_aberration_tells_the_side_only_where_colors_are_left(color: str, told: tuple[float, float]):
    """Gray noise through a lens that enlarges red and blue by a twentieth: how far they lie off green tells where in
    the image a patch is."""
    count = 600
    gray = interpolate(torch.rand(count, 1, 32, 32, generator=generator(5)), scale_factor=4, mode="bilinear")
    box = torch.tensor([[3.0, 3.0, 122.0, 122.0]]).repeat(count, 1)
    enlarged = cropping.crop_resize(gray.expand(-1, 3, -1, -1), box, 128)
    image = torch.cat([enlarged[:, :1], gray, enlarged[:, 2:]], 1)
    shown, truth = small(color=color).question(image, generator(6), count, slice(None))
    off = displacement(shown + 1e-6 * torch.rand(shown.shape, generator=generator(7))).flatten(1)
    assert told[0] <= linear_accuracy(off, truth, 8) <= told[1]


# --- the method -----------------------------------------------------------------------------------------------


def test_each_rank_asks_its_part_of_the_same_questions():
    method, image = small(), torch.rand(4, 3, 128, 128, generator=generator(1))
    shown, truth = method.question(image, generator(2), 4, slice(None))
    for rank in (0, 1):
        mine = World(torch.device("cpu"), rank, 2).part(4)
        found = method.question(image[mine], generator(2), 4, mine)
        assert torch.equal(found[0], shown[mine])
        assert torch.equal(found[1], truth[mine])


BATCH = {
    "image": torch.randint(0, 256, (4, 3, 128, 130), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[128, 130]]).repeat(4, 1),
}


@pytest.mark.parametrize("right", [True, False])
def test_the_picture_frames_the_said_and_the_true_place(right: bool, monkeypatch: pytest.MonkeyPatch):
    method = small()
    image, random = method.shown_images(BATCH)
    pairs = context.draw(4, method.config, random)
    said = pairs.side if right else (pairs.side + 3) % 8
    monkeypatch.setattr(method, "answer", lambda _: one_hot(said, 8).float())
    ((title, picture),) = method.show(BATCH).items()
    assert torch.equal(method.show(BATCH)[title], picture)  # the same at every call
    patches = context.dropped(context.cut(image, pairs.corner, 32), pairs.kept, pairs.noise)
    for n in range(4):
        row = picture[:, 2 + 258 * n : 258 * (n + 1)]
        for which in (0, 1):  # each of its 32 px is 8 px wide
            seen = row[:, 4::8, 2 + 258 * which + 4 : 258 * (which + 1) : 8]
            torch.testing.assert_close(seen, patches[n, which].clamp(0, 1))
        plan = row[:, ::2, 2 + 258 * 2 : 258 * 3 : 2]  # (3,128,128)
        guess = pairs.corner[n, 1] if right else context.places(CONFIG)[said[n]]
        for (top, left), color in ((guess.tolist(), GREEN if right else RED), (pairs.corner[n, 0].tolist(), (1, 1, 1))):
            for i, j in ((0, 16), (31, 16), (16, 0), (16, 31)):
                torch.testing.assert_close(
                    plan[:, top + i, left + j], torch.tensor(color, dtype=torch.float32), atol=0.003, rtol=0
                )
        if not right:
            top, left = pairs.corner[n, 1].tolist()
            assert plan[2, top, left + 16] > 0.9


def test_the_command_resumes_bit_for_bit(photos: Path, tmp_path: Path):
    context.main([*TINY, "--data", str(photos), "--out", str(tmp_path / "whole")])
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts/step-00000002.pt").unlink()
    context.main(["--resume", "--out", str(tmp_path / "parts")])
    whole, parts = (checkpoint.load(checkpoint.find(tmp_path / run))["state"] for run in ("whole", "parts"))
    assert len(tensors(whole)) > 100
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(parts), strict=True))
    assert "| chance" in (tmp_path / "whole/quality.md").read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--size", "127"], "--size 127 is too small for three patches, two gaps and the jitter: use at least 128"),
        (["--patch", "1"], "--patch must be at least 2, not 1"),
        (["--gap", "-1"], "--gap must be at least 0, not -1"),
        (["--jitter", "-1"], "--jitter must be at least 0, not -1"),
        (["--color", "gray"], "'gray'"),
    ],
)
def test_bad_settings_are_one_line(args: list[str | Path], said: str, refused: Refused):
    assert said in refused(context.main, args)


def test_presets_are_called_by_their_names():
    for preset in (context.demo, context.small, context.paper):
        assert preset().preset == preset.__name__
