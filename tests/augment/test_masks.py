from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from kintsugi.augment import masks
from kintsugi.rng import generator

RANDOM: list[masks.Kind] = ["blocks", "regions"]


@pytest.mark.parametrize("size", [32, 64, 97])
@pytest.mark.parametrize("kind", RANDOM)
def test_random_masks_are_binary_bounded_and_all_different(kind: masks.Kind, size: int) -> None:
    n = 500
    mask = masks.draw(kind, n, size, generator(0, size))
    assert mask.shape == (n, 1, size, size)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    area = mask.mean((1, 2, 3))
    assert area.max() <= 0.25
    assert area.min() >= 0.095
    assert area.std() > 0.02  # of varied size
    assert len({m.numpy().tobytes() for m in mask}) == n


@pytest.mark.parametrize("kind", RANDOM)
def test_masks_are_a_function_of_the_generator(kind: masks.Kind) -> None:
    first, again, other = (masks.draw(kind, 3, 48, generator(*key)) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("kind", "least", "most"), [("blocks", 0.06, 0.26), ("regions", 0.12, 0.24)])
def test_holes_are_about_equally_likely_everywhere(kind: masks.Kind, least: float, most: float) -> None:
    """Blocks cover corners less often, because their centers are inside the image."""
    often = masks.draw(kind, 2000, 32, generator(5)).mean((0, 1))
    assert often.min() > least
    assert often.max() < most


def test_blocks_are_unions_of_rectangles() -> None:
    """Each pixel of a hole lies in a square of 1/8 of the side that is all hole, so opening changes nothing."""
    for mask in masks.blocks(20, 64, generator(6))[:, 0].numpy():
        padded = np.pad(mask, 8, mode="edge")  # undoes the cut at the border
        opened = ndimage.binary_opening(padded, structure=np.ones((8, 8)))
        assert np.array_equal(opened, padded)


def test_regions_are_smooth_shapes_not_noise() -> None:
    """Few pieces; pixel noise of this area would have hundreds."""
    for mask in masks.regions(50, 64, generator(7))[:, 0].numpy():
        pieces = ndimage.label(mask)[1]
        assert 1 <= pieces <= 12


DRAWN: list[masks.Kind] = ["strokes", "scratches", "boxes", "mixed"]


@pytest.mark.parametrize("kind", DRAWN)
def test_drawn_masks_are_binary_varied_and_a_function_of_the_generator(kind: masks.Kind) -> None:
    mask = masks.draw(kind, 300, 48, generator(0))
    assert mask.shape == (300, 1, 48, 48)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    area = mask.mean((1, 2, 3))
    least, most = {"strokes": (0.1, 0.25), "scratches": (0.02, 0.08), "boxes": (0.12, 0.25), "mixed": (0.1, 0.2)}[kind]
    assert least < area.mean() < most
    assert (area > 0).float().mean() > 0.95
    assert area.amax() <= (0.5 if kind == "mixed" else 0.9)
    assert torch.equal(mask, masks.draw(kind, 300, 48, generator(0)))
    assert not torch.equal(mask, masks.draw(kind, 300, 48, generator(1)))


def test_lines_are_those_of_a_loop_over_pixels() -> None:
    """A pixel is hole if its center is nearer to one of the segments than half the width."""
    size, pieces = 24, 2
    drawn = masks._lines(1, size, generator(3), "cpu", lines=1, pieces=pieces, width=(0.1, 0.1), step=0.5)[0, 0]
    draws = torch.rand(1, 1, 4 + 2 * pieces, generator=generator(3))[0, 0].double()
    y, x, angle = draws[0].item(), draws[1].item(), draws[2].item() * 2 * np.pi
    points = [(y, x)]
    for piece in range(pieces):
        angle += 2.2 * (draws[4 + piece].item() - 0.5)
        length = 0.5 * (0.2 + 0.8 * draws[4 + pieces + piece].item())
        y, x = y + np.sin(angle) * length, x + np.cos(angle) * length
        points.append((y, x))
    for row in range(size):
        for column in range(size):
            place = np.array([(row + 0.5) / size, (column + 0.5) / size])
            nearest = min(
                np.linalg.norm(place - (np.array(a) + t * (np.array(b) - np.array(a))))
                for a, b in pairwise(points)
                for t in np.linspace(0, 1, 2001)
            )
            if abs(nearest - 0.05) > 1e-3:
                assert drawn[row, column].item() == float(nearest < 0.05)


def test_boxes_are_whole_in_the_image_and_no_smaller_than_an_eighth() -> None:
    for mask in masks.boxes(50, 64, generator(4))[:, 0].numpy():
        assert np.array_equal(ndimage.binary_opening(mask, structure=np.ones((7, 7))), mask)


def test_center_is_the_square_of_half_the_side() -> None:
    mask = masks.draw("center", 2, 64, generator(0))
    assert mask.shape == (2, 1, 64, 64)
    rows, columns = mask[1, 0].nonzero().unbind(1)
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [16, 47, 16, 47]
    assert mask[1].sum() == 32 * 32


@pytest.mark.parametrize("pixels", [0, 1, 4])
def test_dilate_equals_scipy(pixels: int) -> None:
    mask = masks.regions(3, 40, generator(8))
    grown = masks.dilate(mask, pixels)
    square = np.ones((2 * pixels + 1, 2 * pixels + 1))
    for before, after in zip(mask[:, 0].numpy(), grown[:, 0].numpy(), strict=True):
        assert np.array_equal(after, ndimage.binary_dilation(before, square))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="use center, blocks, regions, strokes"):
        masks.draw("middle", 1, 32, generator(0))  # type: ignore[arg-type]
