from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kintsugi.fill.areas import CELL, pieces


def holes(*boxes: tuple[int, int, int, int]) -> Tensor:
    """A mask of 900x1000 px with some boxes: top, left, height, width."""
    hole = torch.zeros(900, 1000, dtype=torch.bool)
    for top, left, height, width in boxes:
        hole[top : top + height, left : left + width] = True
    return hole


@pytest.mark.parametrize(
    "hole",
    [
        holes((100, 100, 60, 60), (300, 40, 20, 900)),
        holes((0, 0, 500, 700)),
        holes((850, 950, 50, 50), (400, 400, 1, 1)),
        torch.eye(900, 1000) > 0,
    ],
)
def test_the_pieces_are_the_hole_each_pixel_once(hole: Tensor) -> None:
    filled = torch.zeros_like(hole)
    for piece in pieces(hole, (16, 32)):
        assert torch.equal(piece.hole, (hole & ~filled)[piece.y, piece.x])  # what was filled before is seen
        assert not (piece.now & filled[piece.y, piece.x]).any()
        assert (piece.now & piece.hole).equal(piece.now)
        rows, columns = piece.now.any(1).nonzero()[:, 0], piece.now.any(0).nonzero()[:, 0]
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) < CELL
        filled[piece.y, piece.x] |= piece.now
    assert torch.equal(filled, hole)


def test_the_area_reaches_as_far_as_the_hole_is_thick() -> None:
    (piece,) = pieces(holes((400, 300, 100, 120)), (16, 200))
    assert piece.thickness == 100
    assert (piece.y, piece.x) == (slice(300, 600), slice(200, 520))
    (piece,) = pieces(holes((400, 300, 4, 90)), (16, 200))
    assert (piece.y, piece.x) == (slice(384, 420), slice(284, 406))


def test_memory_is_bounded_for_any_hole() -> None:
    """A scratch across the photo would have the whole photo as its area."""
    scratch = torch.eye(900, 1000) > 0
    assert max(piece.hole.numel() for piece in pieces(scratch, (48, 160))) < 300**2
    assert max(piece.hole.numel() for piece in pieces(torch.ones(900, 1000) > 0, (48, 160))) <= (CELL + 320) ** 2


def test_larger_cells_may_be_allowed() -> None:
    (piece,) = pieces(holes((100, 100, 500, 600)), (16, 32), lambda thickness: round(2 * thickness))
    assert piece.now.sum() == 500 * 600
