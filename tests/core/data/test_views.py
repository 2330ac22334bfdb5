from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from core.data.views import center_boxes, crop_draws, crop_resize, cut, random_boxes, random_flips
from core.rng import generator


def images(n: int = 4, height: int = 50, width: int = 71) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator(0))


BOXES = torch.tensor(
    [
        [0, 0, 50, 71],  # the whole image, both sides shrunk
        [7, 20, 9, 11],  # enlarged
        [30, 40, 20, 31],  # to the right and lower border
        [3, 5, 40, 12],  # one side shrunk, the other enlarged
    ]
)


@pytest.mark.parametrize("size", [1, 16, 33])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_whole_pixel_boxes_equal_torchvisions_crop_and_flip(size: int, dtype: torch.dtype) -> None:
    image = images()
    scaled = image.float() / 255
    flip = torch.tensor([False, True, True, False])
    views = crop_resize(image if dtype == torch.uint8 else scaled, BOXES.float(), size, flip)
    assert views.dtype == torch.float32
    for i, (top, left, height, width) in enumerate(BOXES.tolist()):
        expected = tv.resized_crop(scaled[i], top, left, height, width, [size, size], antialias=True)
        expected = tv.horizontal_flip(expected) if flip[i] else expected
        torch.testing.assert_close(views[i], expected, atol=1e-5, rtol=0)


def test_fractional_box_averages_the_parts_of_pixels() -> None:
    """One output pixel, the filter as wide as the box: weights (1 - distance/width) x covered part."""
    line = torch.tensor([0.1, 0.7, 0.3, 0.9])
    image = line.expand(1, 3, 1, 4)
    view = crop_resize(image, torch.tensor([[0.0, 0.5, 1.0, 2.2]]), 1)  # [0.5, 2.7), centre 1.6
    weights = [(1 - abs(j + 0.5 - 1.6) / 2.2) * part for j, part in enumerate((0.5, 1.0, 0.7))]
    expected = sum(w * v for w, v in zip(weights, line.tolist(), strict=False)) / sum(weights)
    torch.testing.assert_close(view, torch.full((1, 3, 1, 1), expected))


def test_fractional_boxes_vary_smoothly() -> None:
    """A box that slides by a hundredth of a pixel changes its view by about that part of a step."""
    image = images(1).float() / 255
    starts = torch.arange(0, 2, 0.01)
    boxes = torch.stack([starts, 3 + starts, torch.full_like(starts, 21.3), torch.full_like(starts, 30.7)], 1)
    views = crop_resize(image.expand(len(starts), -1, -1, -1), boxes, 16)
    assert views.isfinite().all()
    assert (views[1:] - views[:-1]).abs().max() < 0.04


def test_nothing_outside_the_box_is_read() -> None:
    image = images(1)
    boxes = torch.tensor([[10.0, 20.0, 17.0, 23.0]])
    spoilt = torch.full_like(image, 255)
    spoilt[..., 10:27, 20:43] = image[..., 10:27, 20:43]
    assert torch.equal(crop_resize(image, boxes, 24), crop_resize(spoilt, boxes, 24))


def test_a_view_does_not_depend_on_the_padding_or_the_rest_of_the_batch() -> None:
    image = images(2, 40, 40)
    boxes = torch.tensor([[1.5, 2.5, 30.0, 20.0], [0.0, 0.0, 40.0, 40.0]])
    padded = torch.nn.functional.pad(image, (0, 30, 0, 9))
    torch.testing.assert_close(crop_resize(padded, boxes, 16), crop_resize(image, boxes, 16))
    torch.testing.assert_close(crop_resize(image[1:], boxes[1:], 16), crop_resize(image, boxes, 16)[1:])


def test_random_boxes_stay_inside_with_the_asked_area_and_ratio() -> None:
    n = 4000
    extent = torch.tensor([[60, 60], [48, 97], [130, 50], [33, 400]]).repeat(n // 4, 1)
    boxes = random_boxes(extent, crop_draws(n, generator(1)), scale=(0.2, 0.6))
    top, left, height, width = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= extent[:, 0] + 1e-3).all()
    assert (left + width <= extent[:, 1] + 1e-3).all()
    ratio, area = width / height, height * width / extent.prod(1)
    assert ratio.min() > 0.749
    assert ratio.max() < 1.334
    assert (area <= 0.6 + 1e-4).all()
    square = area[::4]  # where no box of at most 60 % has to be shrunk
    assert square.min() >= 0.2 - 1e-4
    assert square.mean() == pytest.approx(0.4, abs=0.02)
    assert square.std() == pytest.approx(0.4 / 12**0.5, abs=0.02)  # uniform


def test_random_boxes_reach_every_place() -> None:
    extent = torch.tensor([[100, 100]]).repeat(2000, 1)
    top, left, height, width = random_boxes(
        extent, crop_draws(2000, generator(2)), scale=(0.25, 0.25)
    ).unbind(1)
    for start, length in ((top, height), (left, width)):
        place = start / (100 - length)
        assert place.mean() == pytest.approx(0.5, abs=0.03)
        assert place.std() == pytest.approx(1 / 12**0.5, abs=0.03)
    assert torch.corrcoef(torch.stack([top, left, height]))[0, 1].abs() < 0.1


def test_draws_are_a_function_of_the_generator() -> None:
    assert torch.equal(crop_draws(5, generator(3, 1)), crop_draws(5, generator(3, 1)))
    assert not torch.equal(crop_draws(5, generator(3, 1)), crop_draws(5, generator(3, 2)))
    flips = random_flips(2000, generator(4))
    assert flips.dtype == torch.bool
    assert flips.float().mean() == pytest.approx(0.5, abs=0.05)


def test_center_boxes() -> None:
    extent = torch.tensor([[40, 61], [61, 40], [8, 8]])
    assert center_boxes(extent).tolist() == [[0, 10, 40, 40], [10, 0, 40, 40], [0, 0, 8, 8]]


def test_cuts_are_those_of_a_loop():
    image = torch.randint(0, 256, (3, 10, 9, 11), generator=generator(5), dtype=torch.uint8)
    extent = torch.tensor([[9, 11], [9, 11], [7, 8]])
    draws = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.7, 0.3]])
    found = cut(image, extent, 5, draws, flip=torch.tensor([False, True, False]))
    for n, (top, left) in enumerate([(0, 0), (4, 6), (2, 1)]):
        expected = image[n, :, top : top + 5, left : left + 5]
        assert torch.equal(found[n], expected.flip(2) if n == 1 else expected)
    assert torch.equal(cut(image, extent, 5)[2], image[2, :, 1:6, 1:6])


def test_cuts_fall_evenly_on_all_places():
    image = torch.arange(12).view(1, 1, 1, 12).expand(4000, 1, 12, 12)
    draws = torch.rand(4000, 2, generator=generator(6))
    left = cut(image, torch.tensor([[12, 12]]).expand(4000, 2), 8, draws)[:, 0, 0, 0]
    assert torch.bincount(left).tolist() == pytest.approx([800] * 5, rel=0.15)
