from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.fill.choice import better_fit
from kintsugi.fill.painting import paint
from kintsugi.rng import generator


def photo(height: int, width: int) -> Tensor:
    """A smooth picture, (3,height,width) in [0,1]."""
    small = torch.rand(1, 3, 5, 6, generator=generator(0))
    return interpolate(small, (height, width), mode="bicubic")[0].clamp(0, 1)


def box(height: int, width: int, *sides: int) -> Tensor:
    top, left, down, right = sides
    mask = torch.zeros(1, height, width)
    mask[:, top : top + down, left : left + right] = 1
    return mask


def test_each_hole_is_painted_at_the_scale_at_which_it_is_96_px_wide():
    image, mask, seen = photo(700, 800), box(700, 800, 100, 100, 40, 50) + box(700, 800, 300, 300, 288, 300), []

    def painter(images: Tensor, holes: Tensor) -> Tensor:
        seen.append((tuple(images.shape[2:]), int(holes.sum())))
        return torch.full_like(images, 0.5)

    done: list[float] = []
    paint(image, mask, painter, done.append)
    (first, thin), (second, wide) = seen
    assert first == (40 + 2 * 64, 50 + 2 * 64)
    assert thin == 40 * 50
    assert max(second) < 300
    assert abs(wide - 96 * 100) < 300
    assert done[-1] == 1
    assert done == sorted(done)


def test_outside_the_hole_nothing_changes_and_the_content_of_the_hole_is_not_used():
    image, mask = photo(300, 260), box(300, 260, 40, 50, 120, 130)
    other = torch.where(mask > 0.5, 1 - image, image)

    def painter(images: Tensor, holes: Tensor) -> Tensor:
        return images.flip(3)

    first, second = (paint(each, mask, painter) for each in (image, other))
    assert torch.equal(first, second)
    assert torch.equal(first[:, mask[0] < 0.5], image[:, mask[0] < 0.5])


def test_a_painting_of_other_colors_meets_the_photo_without_a_seam():
    """Its error at the border is continued into the hole, so a constant error vanishes."""
    image = photo(200, 220)
    for side in (40, 150):
        mask = box(200, 220, 20, 25, side, side)
        painted = paint(image, mask, lambda images, holes: interpolate(image[None], images.shape[2:]) * 0 + 0.3)
        edge = (painted[:, 19, 25 : 25 + side] - painted[:, 20, 25 : 25 + side]).abs()
        assert edge.max() < 0.05


def test_patches_are_taken_unless_they_depart_from_the_painting():
    mask = box(60, 90, 10, 10, 20, 20) + box(60, 90, 10, 60, 20, 20)
    painted = photo(60, 90)
    grain = 0.2 * (torch.rand(3, 60, 90, generator=generator(1)) - 0.5)
    completed = torch.where(mask > 0.5, painted + grain, painted)
    completed[:, 10:30, 60:80] += 0.3  # the second hole has other colors
    chosen = better_fit(painted, completed, mask)
    assert torch.equal(chosen[..., :50], completed[..., :50])
    assert torch.equal(chosen[..., 50:], painted[..., 50:])
