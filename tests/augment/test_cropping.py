from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from kintsugi.augment.cropping import (
    center_boxes,
    crop,
    crop_draws,
    crop_resize,
    quarter_turned,
    random_boxes,
    random_flips,
    shrunk_squares,
)
from kintsugi.rng import generator


def images(n: int = 4, height: int = 50, width: int = 71, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    drawn = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator(0))
    return drawn if dtype == torch.uint8 else drawn.to(dtype) / 255


BOXES = torch.tensor(
    [
        [0, 0, 50, 71],  # the whole image, both sides shrunk
        [7, 20, 9, 11],  # enlarged
        [30, 40, 20, 31],  # touches the right and lower borders
        [3, 5, 40, 12],  # one side shrunk, the other enlarged
    ]
)


@pytest.mark.parametrize("size", [2, 16, 33])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_whole_pixel_boxes_equal_torchvisions_crop_and_flip(size: int, dtype: torch.dtype) -> None:
    image = images()
    scaled = image.float() / 255
    flip = torch.tensor([False, True, True, False])
    views = crop_resize(image if dtype == torch.uint8 else scaled, BOXES, size, flip)
    assert views.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 1.01 / 255  # 8 bits are rounded in between
    for i, (top, left, height, width) in enumerate(BOXES.tolist()):
        expected = tv.resized_crop(scaled[i], top, left, height, width, [size, size], antialias=True)
        expected = tv.horizontal_flip(expected) if flip[i] else expected
        torch.testing.assert_close(views[i], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_nothing_outside_the_box_is_read(dtype: torch.dtype) -> None:
    image = images(1, dtype=dtype)
    boxes = torch.tensor([[10, 20, 17, 23]])
    spoilt = torch.ones_like(image)
    spoilt[..., 10:27, 20:43] = image[..., 10:27, 20:43]
    assert torch.equal(crop_resize(image, boxes, 24), crop_resize(spoilt, boxes, 24))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_view_does_not_depend_on_the_padding_or_the_rest_of_the_batch(dtype: torch.dtype) -> None:
    image = images(2, 40, 40, dtype)
    boxes = torch.tensor([[1, 2, 30, 20], [0, 0, 40, 40]])
    padded = torch.nn.functional.pad(image, (0, 30, 0, 9))
    torch.testing.assert_close(crop_resize(padded, boxes, 16), crop_resize(image, boxes, 16))
    torch.testing.assert_close(crop_resize(image[1:], boxes[1:], 16), crop_resize(image, boxes, 16)[1:])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_memory_format_does_not_matter(dtype: torch.dtype) -> None:
    image = images(dtype=dtype)
    last = image.contiguous(memory_format=torch.channels_last)
    tolerance = 1.01 / 255 if dtype == torch.uint8 else 0  # torch rounds uint8 differently for the two formats
    torch.testing.assert_close(crop_resize(last, BOXES, 16), crop_resize(image, BOXES, 16), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [8, 200])
def test_apply_is_called_once_for_each_view_with_its_row(dtype: torch.dtype, size: int) -> None:
    image, number = images(dtype=dtype), torch.arange(4.0)[:, None, None, None]
    found = crop_resize(image, BOXES, size, apply=lambda views, rows: views.add_(number[rows]))
    torch.testing.assert_close(found, crop_resize(image, BOXES, size) + number)


def test_random_boxes_stay_inside_and_have_the_given_area_and_ratio() -> None:
    n = 4000
    extent = torch.tensor([[600, 600], [480, 970], [1300, 500], [330, 4000]]).repeat(n // 4, 1)
    boxes = random_boxes(extent, crop_draws(n, generator(1)), scale=(0.2, 0.6))
    top, left, height, width = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= extent[:, 0]).all()
    assert (left + width <= extent[:, 1]).all()
    ratio, area = width / height, height * width / extent.prod(1)
    pixel = 0.01  # error of rounding to whole pixels
    assert ratio.min() > 3 / 4 - pixel
    assert ratio.max() < 4 / 3 + pixel
    assert (area <= 0.6 + pixel).all()
    square = area[::4]  # square images, in which no box of at most 60 % has to be shrunk
    assert square.min() >= 0.2 - pixel
    assert square.mean() == pytest.approx(0.4, abs=0.02)
    assert square.std() == pytest.approx(0.4 / 12**0.5, abs=0.02)  # uniform


def test_random_boxes_fit_into_the_smallest_images() -> None:
    """Also in images of one or two pixels."""
    extent = torch.tensor([[1, 1], [1, 9], [2, 3], [3, 1]]).repeat(500, 1)
    top, left, height, width = random_boxes(extent, crop_draws(2000, generator(3)), scale=(0.01, 1)).unbind(1)
    for start, length, whole in ((top, height, extent[:, 0]), (left, width, extent[:, 1])):
        assert (length >= 1).all()
        assert (start >= 0).all()
        assert (start + length <= whole).all()


def test_random_boxes_reach_every_place() -> None:
    extent = torch.tensor([[100, 100]]).repeat(2000, 1)
    top, left, height, width = random_boxes(extent, crop_draws(2000, generator(2)), scale=(0.25, 0.25)).unbind(1)
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


def test_crops_are_those_of_a_loop():
    image = torch.randint(0, 256, (3, 10, 9, 11), generator=generator(5), dtype=torch.uint8)
    extent = torch.tensor([[9, 11], [9, 11], [7, 8]])
    draws = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.7, 0.3]])
    found = crop(image, extent, 5, draws, flip=torch.tensor([False, True, False]))
    for n, (top, left) in enumerate([(0, 0), (4, 6), (2, 1)]):
        expected = image[n, :, top : top + 5, left : left + 5]
        assert torch.equal(found[n], expected.flip(2) if n == 1 else expected)
    assert torch.equal(crop(image, extent, 5)[2], image[2, :, 1:6, 1:6])


def test_crops_are_uniform_over_all_places():
    image = torch.arange(12).view(1, 1, 1, 12).expand(4000, 1, 12, 12)
    draws = torch.rand(4000, 2, generator=generator(6))
    left = crop(image, torch.tensor([[12, 12]]).expand(4000, 2), 8, draws)[:, 0, 0, 0]
    assert torch.bincount(left).tolist() == pytest.approx([800] * 5, rel=0.15)


def test_shrunk_squares_stay_inside_and_have_the_native_size_or_more() -> None:
    n, size = 4000, 96
    extent = torch.tensor([[321, 481], [96, 300], [768, 1152], [110, 110]]).repeat(n // 4, 1)
    boxes = shrunk_squares(extent, crop_draws(n, generator(2)), size, 0.4)
    top, left, height, width = boxes.unbind(1)
    assert torch.equal(height, width)
    assert (height >= size).all()
    assert (height <= extent.amin(1).clamp(max=240)).all()  # 96 / .4
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= extent[:, 0]).all()
    assert (left + width <= extent[:, 1]).all()
    assert (height[1::4] == size).all()  # no room to shrink
    for room, corner in ((extent[:, 0] - height, top), (extent[:, 1] - width, left)):
        free = room > 100
        assert (corner[free] / room[free]).mean() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(shrunk_squares(extent, crop_draws(n, generator(2)), size, 1.0)[:, 2], torch.full((n,), size))


def test_quarter_turns_are_numpys() -> None:
    image, turns = images(5, 30, 30), torch.tensor([0, 1, 2, 3, 1])
    found = quarter_turned(image, turns)
    for i, k in enumerate(turns.tolist()):
        np.testing.assert_array_equal(found[i].numpy(), np.rot90(image[i].numpy(), k, (1, 2)))
