"""Random crops of images: parameters are drawn on the CPU and applied in batch, on the images' device.

A box is (top, left, height, width), int64, in whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.upload import upload

SMALLEST_CROP = (1e-3, 1.0)
"""The range allowed for methods' settings of the smallest fraction of an image's area that a view may show."""


def chunks(count: int, pixels: int) -> list[slice]:
    """Splits ``count`` images of ``pixels`` pixels each into slices of the size that is fastest on a CPU.

    A chunk is small enough for its pixels to stay in the CPU's cache from one operation to the next, and large enough
    for each operation to have some work.
    """
    step = 1 if pixels >= 2**15 else 2**18 // pixels
    return [slice(first, first + step) for first in range(0, count, step)]


def crop_draws(n: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0,1), (n,4), from which ``random_boxes`` makes one box for each of ``n`` images."""
    return torch.rand(n, 4, generator=generator)


def random_flips(n: int, generator: torch.Generator) -> Tensor:
    """Whether to mirror each of ``n`` images, with a probability of 0.5; bool (n,)."""
    return torch.rand(n, generator=generator) < 0.5


def random_boxes(
    extent: Tensor, draws: Tensor, scale: tuple[float, float] = (0.35, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Tensor:
    """Boxes (n,4), int64, of random area and aspect ratio at random places in their images (Szegedy 2015, section 6).

    extent: heights and widths, px, (n,2). draws: from ``crop_draws``, (n,4). scale: fraction of the image's area,
    uniform. ratio: width over height, uniform in the logarithm. A box that would stick out is shrunk to fit, with the
    same ratio, so that the number of draws is fixed; torchvision's RandomResizedCrop draws again.
    """
    height, width = extent.float().unbind(1)
    area_draw, ratio_draw, top_draw, left_draw = upload(extent.device, draws)[0].unbind(1)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    root = torch.exp((low + (high - low) * ratio_draw) / 2)  # the square root of the ratio
    box_height, box_width = area.sqrt() / root, area.sqrt() * root
    shrink = torch.minimum(height / box_height, width / box_width).clamp(max=1)
    box_height = (shrink * box_height).round().clamp(min=1).minimum(height)
    box_width = (shrink * box_width).round().clamp(min=1).minimum(width)
    top = (top_draw * (height - box_height + 1)).floor().minimum(height - box_height)
    left = (left_draw * (width - box_width + 1)).floor().minimum(width - box_width)
    return torch.stack([top, left, box_height, box_width], dim=1).long()


def shrunk_squares(extent: Tensor, draws: Tensor, size: int, smallest: float) -> Tensor:
    """Squares (n,4), int64, at random places, that ``crop_resize`` leaves at ``size`` px or shrinks to it.

    Half of the squares have ``size`` px. The others are larger: the factor that shrinks them is from ``smallest`` to 1,
    uniform in the logarithm. A square larger than its image becomes the largest that fits.

    extent: heights and widths, px, (n,2), at least ``size``. draws: from ``crop_draws``, (n,4). smallest: in (0,1].
    """
    half, scale_draw, top_draw, left_draw = upload(extent.device, draws)[0].unbind(1)
    factor = torch.where(half < 0.5, smallest**scale_draw, 1.0)
    side = (size / factor).round().minimum(extent.amin(1))
    room = extent - side[:, None]
    corner = (torch.stack([top_draw, left_draw], 1) * (room + 1)).floor().minimum(room)
    return torch.cat([corner, side[:, None], side[:, None]], 1).long()


def center_boxes(extent: Tensor) -> Tensor:
    """The largest central square of each image; extent (n,2), height and width, px -> boxes (n,4)."""
    side = extent.amin(1, keepdim=True)
    corner = (extent - side) // 2
    return torch.cat([corner, side, side], dim=1)


def crop_resize(
    image: Tensor,
    boxes: Tensor,
    size: int,
    flip: Tensor | None = None,
    apply: Callable[[Tensor, slice], object] = lambda views, rows: None,
) -> Tensor:
    """Crops each image to its box and resizes it to ``size`` px: (n,3,H,W) -> float (n,3,size,size) in [0,1].

    image: uint8 in 0..255 or float in [0,1]. boxes: int64 (n,4). flip: bool (n,), mirrored left to right where true.
    apply: called with views, which it may change in place, and the slice of the batch that they are. For uint8 images
    on a CPU it is called for each of the ``chunks``, while its pixels are still in the CPU's cache; otherwise once, for
    the whole batch.

    Resampling is bilinear with antialiasing: a triangle filter, widened when shrinking, which reads nothing outside the
    box. It equals ``interpolate(crop, size, mode="bilinear", antialias=True)``. For uint8 images on a CPU it is that
    call, image by image and in 8 bits, which is three times faster if the channels of a pixel lie together. Otherwise
    it is two matrix products for the whole batch, rows @ image @ columns^T, with weights for each image; this is
    possible because the filter is separable and linear.
    """
    if image.dtype == torch.uint8 and image.device.type == "cpu":
        views = torch.empty(len(image), image.shape[1], size, size)
        places = boxes.tolist()
        mirrored = [False] * len(image) if flip is None else flip.tolist()
        for chunk in chunks(len(image), size**2):
            for i in range(len(image))[chunk]:
                top, left, height, width = places[i]
                boxed = image[i : i + 1, :, top : top + height, left : left + width]
                resized = interpolate(boxed, (size, size), mode="bilinear", antialias=True)[0]
                torch.div(resized.flip(2) if mirrored[i] else resized, 255, out=views[i])
            apply(views[chunk], chunk)
        return views
    image = image.contiguous()  # as planes, which the products below read without a copy
    height, width = image.shape[-2:]
    boxes = boxes.to(image.device, torch.float32)
    rows = _filters(boxes[:, 0], boxes[:, 2], height, size)  # (n,size,H)
    columns = _filters(boxes[:, 1], boxes[:, 3], width, size)  # (n,size,W)
    if flip is not None:
        (flip,) = upload(image.device, flip)
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    if image.dtype == torch.uint8:
        rows = rows / 255
    narrow = image.float().flatten(1, 2) @ columns.mT  # (n,3*H,W) @ (n,W,size) -> (n,3*H,size)
    views = rows[:, None] @ narrow.unflatten(1, (3, height))  # (n,1,size,H) @ (n,3,H,size) -> (n,3,size,size)
    apply(views.clamp_(0, 1), slice(None))  # rounding may leave [0,1]
    return views


def random_crops(
    batch: Mapping[str, Tensor],
    size: int,
    count: int,
    mine: slice,
    random: torch.Generator,
    smallest: float = 0.35,
    apply: Callable[[Tensor, slice], object] = lambda views, rows: None,
    largest: float = 1.0,
) -> Tensor:
    """Random crops of a batch's images, resized to ``size`` px, half of them mirrored: (n,3,size,size) in [0,1].

    batch: ``image`` and ``extent`` as in ``Images.batch``. count: number of images in the global batch; boxes are drawn
    for all of them. mine: this rank's slice of the global batch. smallest, largest: the smallest and the largest
    fraction of an image's area that a crop may show. apply: as in ``crop_resize``.
    """
    draws, flip = upload(batch["image"].device, crop_draws(count, random)[mine], random_flips(count, random)[mine])
    boxes = random_boxes(batch["extent"], draws, scale=(smallest, largest))
    return crop_resize(batch["image"], boxes, size, flip, apply)


def center_crops(batch: Mapping[str, Tensor], size: int) -> Tensor:
    """The largest central square of each image of a batch, resized to ``size`` px: (n,3,size,size) in [0,1]."""
    return crop_resize(batch["image"], center_boxes(batch["extent"]), size)


def crop(image: Tensor, extent: Tensor, size: int, draws: Tensor | None = None, flip: Tensor | None = None) -> Tensor:
    """Crops squares of ``size`` px without resampling: (n,C,H,W) of any type -> (n,C,size,size).

    extent (n,2): height and width, px, at least ``size``. draws (n,2): uniform numbers in [0,1), from which top and
    left are computed, in whole pixels; None = the center. flip: bool (n,), mirrored left to right where true.
    """
    device = image.device
    room = upload(device, extent)[0] - size
    corner = room // 2 if draws is None else (upload(device, draws)[0] * (room + 1)).long().minimum(room)
    line = torch.arange(size, device=device)
    rows, columns = corner[:, :1] + line, corner[:, 1:] + line  # (n,size)
    if flip is not None:
        columns = torch.where(upload(device, flip)[0][:, None], columns.flip(1), columns)
    n = torch.arange(len(image), device=device)[:, None, None]
    # Indices of the first, third and fourth dimension; the result is (n,size,size,C).
    return image[n, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def square_crops(
    batch: Mapping[str, Tensor],
    size: int,
    count: int,
    mine: slice,
    random: torch.Generator,
    *,
    turned: bool = False,
    smallest: float = 1.0,
) -> Tensor:
    """Random squares of ``size`` px of a batch's images, half of them mirrored: (n,3,size,size) in [0,1].

    batch, count, mine: as in ``random_crops``; images are uint8. turned: also turn them by random quarter turns.
    smallest: as in ``shrunk_squares``; 1: all squares have the images' own resolution.
    """
    drawn = [torch.rand(count, 2, generator=random), random_flips(count, random)]
    drawn += [torch.randint(4, (count,), generator=random), crop_draws(count, random)]
    place, flip, turns, draws = upload(batch["image"].device, *(each[mine] for each in drawn))
    if smallest < 1:
        boxes = shrunk_squares(batch["extent"], draws, size, smallest)
        crops = crop_resize(batch["image"], boxes, size, flip)
    else:
        crops = crop(batch["image"], batch["extent"], size, place, flip) / 255
    return quarter_turned(crops, turns) if turned else crops


def quarter_turned(image: Tensor, turns: Tensor) -> Tensor:
    """Turns each square image counterclockwise by its number of quarter turns: (n,C,S,S), (n,) of 0..3 -> (n,C,S,S)."""
    turns = upload(image.device, turns)[0][:, None, None, None]
    half = torch.where(turns >= 2, torch.rot90(image, 2, (2, 3)), image)
    return torch.where(turns % 2 == 1, torch.rot90(half, 1, (2, 3)), half)


def _filters(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """Filter weights, (n,size,pixels), that resize a section of a line of pixels to ``size`` pixels.

    start, length: (n,), px; the section is [start, start+length). pixels: length of the whole line.
    """
    start, length = start[:, None, None], length[:, None, None]
    edge = torch.arange(pixels, device=start.device)  # (pixels,), the left edges of the pixels
    step = length / size
    center = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * step  # (n,size,1)
    triangle = (1 - (edge + 0.5 - center).abs() / step.clamp(min=1)).clamp(min=0)  # (n,size,pixels)
    inside = (edge >= start) & (edge < start + length)  # (n,1,pixels)
    weights = triangle * inside
    return weights / weights.sum(2, keepdim=True)
