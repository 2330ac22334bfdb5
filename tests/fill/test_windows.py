from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kintsugi.fill.windows import paint_squares

S = 16


def average_painter(image: Tensor, mask: Tensor) -> Tensor:
    """Fills each hole with the mean color of the visible pixels in its square; checks its inputs."""
    assert image.shape[1:] == (3, S, S)
    assert mask.shape == (len(image), 1, S, S)
    assert len(image) <= 16
    assert (image * mask).abs().max() == 0
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    visible = 1 - mask
    color = (image * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp(min=1)
    return image * visible + color * mask


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def disc(height: int, width: int, y: float, x: float, radius: float) -> Tensor:
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return (((rows - y) ** 2 + (columns - x) ** 2) <= radius**2).float()[None]


SHAPES = {
    "a thin line across an odd image": (noise(37, 53), disc(37, 53, 0, 0, 40) - disc(37, 53, 0, 0, 38)),
    "a large disc": (noise(80, 61), disc(80, 61, 40, 30, 22)),
    "a corner": (noise(50, 50), disc(50, 50, 0, 49, 20)),
    "an image smaller than a square": (noise(9, 11), disc(9, 11, 4, 4, 2)),
    "one line of pixels": (noise(1, 30), disc(1, 30, 0, 15, 4)),
    "nearly everything": (noise(40, 70), 1 - disc(40, 70, 20, 20, 5)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_whole_hole_is_painted_and_nothing_else(name: str):
    image, mask = SHAPES[name]

    def red(image: Tensor, mask: Tensor) -> Tensor:
        painted = torch.tensor([1.0, 0.25, 0.0]).view(1, 3, 1, 1).expand_as(image)
        return torch.where(mask > 0.5, painted, image)

    result = paint_squares(image, mask, lambda i, m: red(torch.ones_like(i), torch.ones_like(m)), S)
    inside = (mask > 0.5).expand_as(image)
    assert torch.equal(result[~inside], image[~inside])
    expected = torch.tensor([1.0, 0.25, 0.0]).view(3, 1, 1).expand_as(image)
    torch.testing.assert_close(result[inside], expected[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_a_constant_image_stays_constant_and_the_holes_content_is_ignored(name: str):
    image, mask = SHAPES[name]
    constant = torch.tensor([0.2, 0.5, 0.8]).view(3, 1, 1).expand_as(image)
    damaged = torch.where(mask > 0.5, image, constant)
    torch.testing.assert_close(paint_squares(damaged, mask, average_painter, S), constant, atol=1e-5, rtol=0)


def test_windows_leave_no_edges_in_the_picture():
    """The painter fills each window with a random gray level: the differences between neighboring pixels stay small."""
    levels = iter(torch.rand(10_000, generator=torch.Generator().manual_seed(0)))

    def flat(image: Tensor, mask: Tensor) -> Tensor:
        return torch.stack([level.expand(3, S, S) for level in (next(levels) for _ in image)])

    mask = torch.ones(1, 96, 96)
    mask[:, ::4] = 0  # a grid: three quarters are hole, so only the whole photo fits
    mask[:, 40:] = 0
    mask[:, 60:, 20:70] = disc(36, 50, 18, 25, 14)
    result = paint_squares(torch.zeros(3, 96, 96), mask, flat, S)
    both = (mask[0, :, 1:] * mask[0, :, :-1]) > 0
    assert result[0].max() - result[0][mask[0] > 0].min() > 0.1  # the windows do differ
    assert (result[0, :, 1:] - result[0, :, :-1])[both].abs().max() < 0.2  # a Hann window of 16 rises by 0.1


def test_windows_are_as_small_as_their_fraction_of_hole_allows():
    image = torch.full((3, 128, 128), 0.5)
    fractions: list[float] = []

    def record(image: Tensor, mask: Tensor) -> Tensor:
        fractions.extend(mask.mean((1, 2, 3)).tolist())
        return image

    line = torch.zeros(1, 128, 128)
    line[:, 60:63, 20:100] = 1
    paint_squares(image, line, record, S)
    assert max(fractions) <= 3 / S + 1e-6  # all at full resolution: in shrunk windows the line would fill more

    fractions.clear()
    paint_squares(image, disc(128, 128, 64, 64, 20), record, S)
    assert max(fractions) < 0.4  # a third, of shrunk pixels
    assert len(fractions) > 4


def test_windows_are_painted_in_batches():
    sizes: list[int] = []

    def count(image: Tensor, mask: Tensor) -> Tensor:
        sizes.append(len(image))
        return image

    mask = torch.zeros(1, 100, 100)
    mask[:, 10:90:10, 10:90] = 1
    paint_squares(torch.zeros(3, 100, 100), mask, count, S, batch=5)
    assert max(sizes) == 5
