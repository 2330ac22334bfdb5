"""Several crops per image: the parts of the image that they show, and on what they depend."""

from __future__ import annotations

import torch

from kintsugi.augment.color_jitter import ColorAugmentation, random_views
from kintsugi.augment.multi_crop import Crops, multi_crop
from kintsugi.rng import generator

STILL = ColorAugmentation(jitter=0, gray=0, blur=0)
SOLARIZED = ColorAugmentation(jitter=0, gray=0, blur=0, solarize=1)
EXTENT = torch.tensor([[60, 80]]).repeat(40, 1)
NOISE = torch.randint(0, 256, (40, 3, 60, 80), generator=generator(0), dtype=torch.uint8)
BATCH = {"image": NOISE, "extent": EXTENT}
WHOLE = slice(0, 40)


def test_counts_sizes_and_range():
    kinds = [Crops((STILL, SOLARIZED), 24, 0.4), Crops((STILL,) * 3, 12, 0.05, 0.3)]
    whole, local = multi_crop(BATCH, kinds, 40, WHOLE, (0, 1))
    assert whole.shape == (2, 40, 3, 24, 24)
    assert local.shape == (3, 40, 3, 12, 12)
    for crops in (whole, local):
        assert crops.min() >= 0
        assert crops.max() <= 1


def test_each_crop_is_a_view_of_its_own_number_and_recipe():
    kinds = [Crops((STILL, SOLARIZED), 24, 0.4), Crops((STILL,) * 2, 12, 0.05, 0.3)]
    crops = [crop for kind in multi_crop(BATCH, kinds, 40, WHOLE, (7, 1)) for crop in kind]
    expected = [
        random_views(BATCH, recipe, size, smallest, 40, WHOLE, (7, 1, number), largest)
        for number, (recipe, size, smallest, largest) in enumerate(
            [(STILL, 24, 0.4, 1.0), (SOLARIZED, 24, 0.4, 1.0), (STILL, 12, 0.05, 0.3), (STILL, 12, 0.05, 0.3)]
        )
    ]
    assert all(torch.equal(one, other) for one, other in zip(crops, expected, strict=True))
    assert not torch.equal(crops[2], crops[3])


def test_a_rank_gets_its_share_of_the_global_batch():
    kinds = [Crops((STILL, SOLARIZED), 24, 0.4), Crops((STILL,), 12, 0.05, 0.3)]
    whole = multi_crop(BATCH, kinds, 40, WHOLE, (0, 1))
    second = {name: value[20:] for name, value in BATCH.items()}
    shares = multi_crop(second, kinds, 40, slice(20, 40), (0, 1))
    assert all(torch.equal(share, every[:, 20:]) for share, every in zip(shares, whole, strict=True))


def test_areas_are_uniform_within_the_scale():
    """Of images whose red is the column and whose green is the row, a crop's range of colors is its box."""
    rows, columns = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    image = (torch.stack([columns, rows, 0 * rows]) / 199).expand(300, -1, -1, -1)
    batch = {"image": image, "extent": torch.full((300, 2), 200)}
    whole, local = multi_crop(
        batch, [Crops((STILL,), 32, 0.3), Crops((STILL,), 32, 0.05, 0.3)], 300, slice(0, 300), (0,)
    )
    for crops, smallest, largest in ((whole, 0.3, 1.0), (local, 0.05, 0.3)):
        sides = crops[0, :, :2].amax((2, 3)) - crops[0, :, :2].amin((2, 3))
        area = sides.prod(1)
        assert area.min() > 0.8 * smallest
        assert area.max() < 1.05 * largest
        # A box too wide for its image is shrunk, so the largest areas are rarer than those of a uniform distribution.
        assert abs(area.mean() - (smallest + largest) / 2) < 0.12 * (smallest + largest)
