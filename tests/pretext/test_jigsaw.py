"""Jigsaw: its permutations, its tiles, that its shortcuts are closed, its pictures and its command."""

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

from kintsugi.pictures import GREEN, RED
from kintsugi.pretext import jigsaw
from kintsugi.rng import generator
from kintsugi.train.dist import World

WORLD = World(torch.device("cpu"))
TINY = (
    "--size 48 --short-side 48 --tile 12 --permutations 4 --dim 8 --hidden 16 --batch 4 --steps 2 --log-every 1 "
    "--show-every 2 --eval-every 2 --save-every 1 --eval-images 4 --device cpu"
).split()
CONFIG = replace(jigsaw.demo(), permutations=8, dim=16, hidden=32)


def small(**settings: Any) -> jigsaw.Jigsaw:
    torch.manual_seed(0)
    return jigsaw.Jigsaw(replace(CONFIG, **settings), WORLD)


def apart(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("distance", ["least", "mean"])
def test_permutations_equal_a_nested_loop(distance: jigsaw.Farthest):
    found = [tuple(p) for p in jigsaw.choose_permutations(12, distance, generator(7), tiles=4).tolist()]
    every = list(itertools.permutations(range(4)))
    chosen = [found[0]]
    while len(chosen) < 12:
        best, best_merit = None, (-1.0, -1.0)
        for candidate in every:
            if candidate in chosen:
                continue
            distances = [apart(candidate, other) for other in chosen]
            merit = (float(min(distances)), sum(distances) / len(distances))
            merit = merit if distance == "least" else merit[::-1]
            if merit > best_merit:
                best, best_merit = candidate, merit
        chosen.append(best)
    assert found == chosen


@pytest.mark.parametrize(("distance", "least"), [("least", 7), ("mean", 4)])
def test_least_and_mean_distance_of_sixty_four_permutations(distance: jigsaw.Farthest, least: int):
    orders = jigsaw.choose_permutations(64, distance, generator(0))
    assert torch.equal(orders.sort(1).values, torch.arange(9).expand(64, 9))
    upper = torch.ones(64, 64).triu(1).bool()
    distances = (orders[:, None] != orders).sum(2)[upper]
    assert distances.amin() >= least
    assert distances.float().mean() == pytest.approx(8.12, abs=0.01)


def test_tiles_are_cut_as_by_a_loop_inside_their_cells():
    image = torch.rand(3, 3, 120, 120, generator=generator(1))
    puzzles = jigsaw.draw(3, replace(CONFIG, gray=0.5, shift=2), generator(2))
    assert puzzles.corner.amin() == 2
    assert puzzles.corner.amax() == 6
    assert 0 < puzzles.gray.sum() < 3
    tiles = jigsaw.cut(image, puzzles, 32)
    weights = (0.2989, 0.587, 0.114)  # ITU-R BT.601, rounded as in Pillow and torchvision
    for n, place, channel in itertools.product(range(3), range(9), range(3)):
        top, left = puzzles.corner[n, place, channel].tolist()
        cell = image[n, :, place // 3 * 40 : place // 3 * 40 + 40, place % 3 * 40 : place % 3 * 40 + 40]
        plane = sum(w * cell[c] for c, w in enumerate(weights)) if puzzles.gray[n] else cell[channel]
        torch.testing.assert_close(tiles[n, place, channel], plane[top : top + 32, left : left + 32])


def test_offsets_are_uniform_and_channels_shift_a_little():
    config = replace(CONFIG, shift=1)
    corner = jigsaw.draw(500, config, generator(3)).corner  # (n,9,3,2)
    counts = corner[:, :, 1, 0].flatten().bincount(minlength=7)
    assert (counts[2:] > 0.15 * counts.sum()).all()
    assert (corner.amax(2) - corner.amin(2)).amax() == 2  # one channel a px up, one a px down
    fixed = jigsaw.draw(500, replace(config, offset=False, shift=0), generator(3)).corner
    assert (fixed == 4).all()


def test_normalized_tiles_have_no_mean_and_no_deviation_for_the_encoder():
    method = small()
    tiles = torch.rand(2, 9, 3, 32, 32, generator=generator(4)) * torch.rand(2, 9, 3, 1, 1) + torch.rand(2, 9, 3, 1, 1)
    seen = method.encoder.normalized(jigsaw.normalized(tiles).flatten(0, 1))
    torch.testing.assert_close(seen.mean((2, 3)), torch.zeros(18, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std((2, 3), correction=0), torch.ones(18, 3), atol=1e-4, rtol=0)
    flat = jigsaw.normalized(torch.full((1, 9, 3, 32, 32), 0.3))
    assert flat.isfinite().all()
    assert method.encoder.normalized(flat.flatten(0, 1)).abs().amax() < 1e-3


# --- shortcuts ------------------------------------------------------------------------------------------------


def match_borders(inputs: Tensor, orders: Tensor) -> Tensor:
    """The permutation (n,) after whose inversion the tiles' borders match best, without any learning."""
    tiles = inputs.transpose(0, 1)  # (9,n,3,t,t)
    fits = {
        (a, b, axis): (tiles[a].select(axis, -1) - tiles[b].select(axis, 0)).abs().mean((1, 2))  # (n,)
        for a, b, axis in itertools.product(range(9), range(9), (-1, -2))
    }
    costs = []
    for order in orders.argsort(1).tolist():  # the input tile that comes to each place
        across = [fits[order[p], order[p + 1], -1] for p in range(9) if p % 3 < 2]
        down = [fits[order[p], order[p + 3], -2] for p in range(6)]
        costs.append(torch.stack(across + down).sum(0))
    return torch.stack(costs, 1).argmin(1)


@pytest.mark.parametrize(
    ("settings", "limits"), [({"tile": 40, "margin": 0}, (0.95, 1)), ({"margin": 0}, (0.19, 0.4)), ({}, (0.05, 0.19))]
)
def test_borders_reveal_the_order_only_if_tiles_touch(settings: dict[str, Any], limits: tuple[float, float]):
    """Smooth noise, in which only borders can be matched. Chance is one in eight permutations."""
    image = interpolate(torch.rand(200, 3, 60, 60, generator=generator(5)), scale_factor=2, mode="bilinear")
    method = small(normalize=False, gray=0.0, shift=0, **settings)
    inputs, truth = method.puzzle(image, generator(6), 200, slice(None))
    right = (match_borders(inputs, method.orders) == truth).float().mean()
    assert limits[0] <= right <= limits[1]


@pytest.mark.parametrize("normalize", [False, True])
def test_means_and_deviations_reveal_the_order_only_if_they_are_kept(normalize: bool):
    """Noise that is lighter at the top and has more contrast at the left, as in many photos."""
    count = 400
    lighter = torch.linspace(0.7, 0.3, 120).view(1, 1, -1, 1)
    contrast = torch.linspace(0.3, 0.1, 120).view(1, 1, 1, -1)
    image = lighter + contrast * (torch.rand(count, 3, 120, 120, generator=generator(8)) - 0.5)
    method = small(normalize=normalize)
    inputs, truth = method.puzzle(image, generator(9), count, slice(None))
    statistics = torch.cat([inputs.mean((-1, -2)), inputs.std((-1, -2))], 2).flatten(1)  # (n,54)
    accuracy = linear_accuracy(statistics, truth, 8)
    assert abs(accuracy - 1 / 8) < 0.08 if normalize else accuracy > 0.95


# --- the method -----------------------------------------------------------------------------------------------


def test_each_place_holds_the_tile_of_its_permutation():
    method = small(normalize=False, gray=0.0)
    cell = torch.arange(9).view(3, 3).repeat_interleave(40, 0).repeat_interleave(40, 1) / 10  # the cell's number
    inputs, truth = method.puzzle(cell.expand(6, 3, 120, 120), generator(1), 6, slice(None))
    for n in range(6):
        for place in range(9):
            assert torch.equal(inputs[n, place], torch.full((3, 32, 32), method.orders[truth[n], place].item() / 10))
    assert len(set(truth.tolist())) > 1


def test_each_rank_makes_its_share_of_the_puzzles():
    check_shares_of_two_ranks(small(), torch.rand(4, 3, 120, 120, generator=generator(1)))


def test_tiles_are_encoded_on_their_own():
    """Context-free: a tile does not change the features of other tiles."""
    method = small()
    inputs = torch.rand(1, 9, 3, 32, 32, generator=generator(1))
    method.encoder.eval()
    codes: list[Tensor] = []
    method.fusion.single.register_forward_hook(lambda _, __, out: codes.append(out))
    method.logits(inputs)
    other = inputs.clone()
    other[:, 4] = 0
    method.logits(other)
    same = (codes[0] - codes[1])[0].abs().amax(1) < 1e-5
    assert same.tolist() == [True] * 4 + [False] + [True] * 4


BATCH = {
    "image": torch.randint(0, 256, (4, 3, 124, 130), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[124, 130]]).repeat(4, 1),
}


@pytest.mark.parametrize("right", [True, False])
def test_the_picture_reorders_tiles_as_predicted(right: bool, monkeypatch: pytest.MonkeyPatch):
    method = small()
    _, random = method.shown_images(BATCH)
    puzzles = jigsaw.draw(4, method.config, random)
    predicted = puzzles.order if right else (puzzles.order + 1) % 8
    monkeypatch.setattr(method, "predict", lambda _: one_hot(predicted, 8).float())
    ((title, picture),) = method.show(BATCH).items()
    assert torch.equal(method.show(BATCH)[title], picture)  # the same at every call
    # Three tiles of 32 px in a row, with white lines and margins, all enlarged twice.
    side, tile = (2 * (3 * 34 + 6), 2 * 34)
    rows = picture[:, 2:].unfold(1, side, side + 2)  # (3,4,W,side)
    columns = rows[:, :, 2:].unfold(2, side, side + 2)[..., 6:-6, 6:-6].permute(1, 2, 0, 3, 4)
    pieces = columns.unfold(3, tile, tile).unfold(4, tile, tile).flatten(3, 4).permute(0, 1, 3, 2, 4, 5)
    shuffled, back, truth = pieces[:, 0], pieces[:, 2], pieces[:, 3]  # (4,9,3,68,68)
    orders = method.orders
    for n in range(4):
        true, inferred = orders[puzzles.order[n]].tolist(), orders[predicted[n]].tolist()
        for place in range(9):
            assert torch.equal(shuffled[n, place], truth[n, true[place]])
            fits = true[place] == inferred[place]
            there = back[n, inferred[place]]
            torch.testing.assert_close(there[:, 3, 30], torch.tensor(GREEN if fits else RED))
            assert torch.equal(there[:, 6:62, 6:62], shuffled[n, place, :, 6:62, 6:62])
            assert fits or not right


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--size", "100"], "--size 100: use a multiple of 3"),
        (["--tile", "41"], "--tile must be from 2 to 40, a third of --size, not 41"),
        (["--permutations", "1"], "--permutations must be from 2 to 10000, not 1"),
        (["--margin", "5"], "--margin must be from 0 to 4, half of what --tile leaves of a cell, not 5"),
        (["--gray", "1.5"], "--gray must be in [0, 1], not 1.5"),
        (["--shift", "-1"], "--shift must be at least 0, not -1"),
        (["--hidden", "0"], "--hidden must be at least 1, not 0"),
        (["--distance", "far"], "'far'"),
    ],
)
def test_bad_settings_are_one_line(args: list[str | Path], message: str, refused: Refused):
    assert message in refused(jigsaw.main, args)
