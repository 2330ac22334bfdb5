from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kintsugi.fill import patches
from kintsugi.fill.classical import mean_color
from kintsugi.fill.patches import PATCH, _open_level, complete, with_patches


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def box(height: int, width: int, top: int, left: int, side: int) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top : top + side, left : left + side] = 1
    return mask


def tiles(height: int, width: int) -> Tensor:
    """An image that repeats every 8 px in both directions."""
    tile = noise(8, 8, seed=1)
    return tile.repeat(1, math.ceil(height / 8), math.ceil(width / 8))[:, :height, :width]


def test_the_search_over_all_pairs_is_that_of_a_loop():
    image, mask = noise(18, 20), box(18, 20, 7, 8, 3)
    level = _open_level(image, mask[0] > 0.5, mask[0] > 0.5)
    assert level is not None
    wanted = level.wanted(image)
    matches, distances = level.search(wanted, level.random_matches(torch.Generator()), torch.Generator())
    half = PATCH // 2
    centers = [(y, x) for y in range(half, 18 - half) for x in range(half, 20 - half)]

    def patch(of: Tensor, y: int, x: int) -> Tensor:
        return of[:, y - half : y + half + 1, x - half : x + half + 1]

    sources = [c for c in centers if patch(mask, *c).sum() == 0]
    targets = [c for c in centers if patch(mask, *c).sum() > 0]
    assert level.targets.tolist() == [y * 20 + x for y, x in targets]
    for (y, x), match, distance in zip(targets, matches.tolist(), distances.tolist(), strict=True):
        each = {c: (patch(image, *c) - patch(image, y, x)).square().sum().item() for c in sources}
        assert divmod(match, 20) == min(each, key=lambda c: each[c])
        assert distance == pytest.approx(min(each.values()), rel=1e-4)


def test_the_vote_is_that_of_a_loop():
    image, mask = noise(18, 20), box(18, 20, 0, 8, 4)  # at the border, where some patches would leave the image
    level = _open_level(image, mask[0] > 0.5, mask[0] > 0.5)
    assert level is not None
    matches = level.random_matches(torch.Generator().manual_seed(3))
    distances = level.distances(level.wanted(image), matches)
    spread = sorted(distances.tolist())[int(0.75 * (len(distances) - 1))]
    voted = level.vote(image, matches, distances)
    half = PATCH // 2
    for y, x in mask[0].nonzero().tolist():
        color, total = torch.zeros(3), 0.0
        for target, match, distance in zip(level.targets.tolist(), matches.tolist(), distances.tolist(), strict=True):
            (ty, tx), (sy, sx) = divmod(target, 20), divmod(match, 20)
            if abs(ty - y) <= half and abs(tx - x) <= half:
                weight = math.exp(-distance / (2 * spread)) * 3 ** -level.depth[target].item()
                color += weight * image[:, sy + y - ty, sx + x - tx]
                total += weight
        torch.testing.assert_close(voted[:, y, x], color / total, rtol=1e-4, atol=1e-5)
    outside = (mask < 0.5).expand_as(image)
    assert torch.equal(voted[outside], image[outside])


def test_patch_match_comes_close_to_the_search_over_all_pairs(monkeypatch: pytest.MonkeyPatch):
    image, mask = torch.nn.functional.avg_pool2d(noise(66, 66)[None], 3, 1)[0], box(64, 64, 24, 24, 14)
    level = _open_level(image, mask[0] > 0.5, mask[0] > 0.5)
    assert level is not None
    wanted, random = level.wanted(image), torch.Generator().manual_seed(0)
    start = level.random_matches(random)
    _, best = level.search(wanted, start, random)
    monkeypatch.setattr(patches, "_ALL_PAIRS", 0)
    matches, found = start, level.distances(wanted, start)
    for _ in range(6):
        before = found
        matches, found = level.search(wanted, matches, random)
        assert (found <= before + 1e-6).all()
        assert level.is_source[matches].all()
        torch.testing.assert_close(found, level.distances(wanted, matches))
    assert (found >= best - 1e-4).all()
    assert found.mean() < 1.25 * best.mean() < 0.7 * level.distances(wanted, start).mean()


@pytest.mark.parametrize("side", [5, 13, 40])
def test_a_repeating_texture_is_continued(side: int):
    """The patches find the texture's period, where a mean color is wrong by far."""
    truth, mask = tiles(96, 104), box(96, 104, 30, 33, side)
    guess = mean_color(truth[None], mask[None])[0]
    filled = complete(guess, mask)
    hole = (mask > 0.5).expand_as(truth)
    assert torch.equal(filled[~hole], truth[~hole])
    wrong = (filled - truth)[hole].abs().mean() / (guess - truth)[hole].abs().mean()
    assert wrong < (0.05 if side < 40 else 0.95)  # wide holes are sharp, but may be out of phase
    assert filled[hole].std() > 0.9 * truth[hole].std()


def test_the_content_of_the_hole_is_only_a_first_guess_and_nothing_is_copied_from_it():
    image, mask = tiles(60, 60), box(60, 60, 20, 22, 12)
    image[:, 20:32, 22:34] = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)
    filled = complete(image, mask)
    colors = tiles(60, 60)
    assert filled.amax((1, 2)).le(colors.amax((1, 2)) + 1e-5).all()
    assert filled.amin((1, 2)).ge(colors.amin((1, 2)) - 1e-5).all()


def test_a_seed_gives_one_result_and_another_seed_another(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patches, "_ALL_PAIRS", 0)  # the search over all pairs draws nothing
    image, mask = noise(50, 50), box(50, 50, 18, 18, 14)
    first, again, other = complete(image, mask, 1), complete(image, mask, 1), complete(image, mask, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("side", [6, 20])
def test_another_seed_gives_another_result_where_the_search_tries_all_pairs(side: int):
    image, mask = noise(70, 70), box(70, 70, 25, 22, side)
    none, first, again, other = (complete(image, mask, seed) for seed in (0, 1, 1, 2))
    assert torch.equal(first, again)
    hole = (mask > 0.5).expand_as(image)
    for one, another in ((none, first), (none, other), (first, other)):
        assert (one - another)[hole].abs().mean() > 0.02
    assert torch.equal(first[~hole], image[~hole])


def test_a_seed_leaves_out_whole_squares_of_sources():
    image, mask = noise(70, 90), box(70, 90, 30, 22, 6)
    level = _open_level(image, mask[0] > 0.5, mask[0] > 0.5)
    assert level is not None
    fewer = level.without_some(torch.Generator().manual_seed(1))
    assert torch.equal(fewer.sources, fewer.is_source.nonzero()[:, 0])
    assert 0.2 < len(fewer.sources) / len(level.sources) < 0.8
    side = patches._SQUARE
    for top in range(0, 70, side):
        for left in range(0, 90, side):
            before, after = (one.is_source.view(70, 90)[top : top + side, left : left + side] for one in (level, fewer))
            assert torch.equal(after, before) or not after.any()


def test_a_seed_that_would_leave_out_all_sources_leaves_out_none():
    image, mask = noise(13, 13), box(13, 13, 8, 8, 5)  # one square, which some seeds leave out
    filled = [complete(image, mask, seed) for seed in range(6)]
    assert all(torch.equal(one, filled[0]) for one in filled)


@pytest.mark.parametrize(
    ("height", "width", "mask"),
    [
        (6, 9, box(6, 9, 2, 2, 2)),  # smaller than a patch
        (1, 30, box(1, 30, 0, 9, 4)),
        (20, 20, 1 - box(20, 20, 0, 0, 3)),  # no whole patch is visible
        (30, 30, torch.zeros(1, 30, 30)),  # nothing to fill
    ],
)
def test_without_a_visible_patch_the_guess_stays(height: int, width: int, mask: Tensor):
    image = noise(height, width)
    assert torch.equal(complete(image, mask), image)


def test_each_hole_is_completed_from_its_own_surroundings():
    """Two textures far apart, with a hole in each: what is around one hole does not change the other."""
    image = torch.cat([tiles(80, 160), 0.1 * noise(80, 160, seed=2)], 2)
    mask = box(80, 320, 30, 40, 10) + box(80, 320, 30, 260, 10)
    both = complete(mean_color(image[None], mask[None])[0], mask)
    alone = box(80, 320, 30, 40, 10)
    guess = torch.where(alone > 0.5, mean_color(image[None], mask[None])[0], image)
    assert torch.equal(both[..., :160], complete(guess, alone)[..., :160])


def test_a_batch_is_completed_image_by_image():
    images = torch.stack([noise(40, 40), tiles(40, 40)])
    masks = torch.stack([box(40, 40, 9, 9, 8), box(40, 40, 20, 3, 9)])
    filled = with_patches(mean_color)(images, masks)
    for n in range(2):
        assert torch.equal(filled[n], complete(mean_color(images[n : n + 1], masks[n : n + 1])[0], masks[n]))


@pytest.mark.gpu
def test_the_gpu_completes_as_the_cpu_does():
    image, mask = tiles(64, 64), box(64, 64, 20, 22, 13)
    guess = mean_color(image[None], mask[None])[0]
    torch.testing.assert_close(complete(guess.cuda(), mask.cuda()).cpu(), complete(guess, mask), atol=0.02, rtol=0)
