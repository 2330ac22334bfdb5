"""Random color changes of views, as in contrastive methods: drawn on the CPU, applied in batch on the device.

With the same parameters, each operation equals torchvision's. Unlike there, every image of a batch has its own
parameters and its own order of operations. The operations are written so that they are fast on a CPU too. Crops and
flips are in ``kintsugi.augment.cropping``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from kintsugi.augment import cropping
from kintsugi.rng import generator
from kintsugi.upload import constant, upload

_CROPS, _COLORS = 1, 2  # the last number of a random key: what is drawn with it


@dataclass(frozen=True)
class ColorAugmentation:
    """How strongly and how often the colors of a view change. Defaults: SimCLR's (Chen 2020, appendix A)."""

    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    """For brightness, contrast and saturation, x means a factor uniform in [1 - x, 1 + x].

    For hue, x means a turn of the color circle, uniform in [-x, x] of the full circle.
    """
    jitter: float = 0.8
    """Probability that the four changes above are applied, in random order."""
    gray: float = 0.2
    """Probability that the view becomes gray."""
    blur: float = 0.5
    """Probability of a Gaussian blur with sigma uniform in [.1, 2] px."""
    solarize: float = 0.0
    """Probability of solarization, which inverts values above 0.5 (BYOL)."""

    def with_strength(self, strength: float) -> ColorAugmentation:
        """A copy with brightness, contrast, saturation and hue multiplied by ``strength``."""
        return replace(
            self,
            brightness=strength * self.brightness,
            contrast=strength * self.contrast,
            saturation=strength * self.saturation,
            hue=strength * self.hue,
        )


@dataclass(frozen=True)
class ColorChanges:
    """The color changes of n images, for ``recolor``. All tensors are on the CPU.

    A factor of 1, a turn of 0 and a sigma of 0 change nothing.
    """

    factors: Tensor  # (n,4): factors of brightness, contrast, saturation; turn of the hue as a fraction of the circle
    order: Tensor  # (n,4) int64: the order in which the four are applied
    gray: Tensor  # (n,) bool
    sigma: Tensor  # (n,), px
    solarize: Tensor  # (n,) bool

    def __getitem__(self, rows: slice) -> ColorChanges:
        return ColorChanges(
            self.factors[rows], self.order[rows], self.gray[rows], self.sigma[rows], self.solarize[rows]
        )


def draw_changes(augmentation: ColorAugmentation, n: int, generator: torch.Generator) -> ColorChanges:
    """Draws color changes for ``n`` images."""

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    def chance(probability: float) -> Tensor:
        return uniform(n) < probability

    reach = torch.tensor([augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue])
    middle = torch.tensor([1.0, 1.0, 1.0, 0.0])
    jitter = chance(augmentation.jitter)[:, None]
    factors = torch.where(jitter, (middle + reach * (2 * uniform(n, 4) - 1)), middle)
    factors[:, :3].clamp_(min=0)
    sigma = torch.where(chance(augmentation.blur), 0.1 + 1.9 * uniform(n), 0.0)
    return ColorChanges(
        factors, uniform(n, 4).argsort(1), chance(augmentation.gray), sigma, chance(augmentation.solarize)
    )


def random_views(
    batch: Mapping[str, Tensor],
    augmentation: ColorAugmentation | None,
    size: int,
    smallest: float,
    count: int,
    mine: slice,
    key: tuple[int, ...],
    largest: float = 1.0,
) -> Tensor:
    """Random crops of a batch with random color changes: (n,3,size,size) in [0,1].

    batch, size, smallest, count, mine and largest are as in ``cropping.random_crops``. augmentation: None leaves the
    colors as they are. key: the key of the random numbers (``kintsugi.rng``).
    """
    crops = generator(*key, _CROPS)
    if augmentation is None:
        return cropping.random_crops(batch, size, count, mine, crops, smallest, largest=largest)
    changes = draw_changes(augmentation, count, generator(*key, _COLORS))[mine]
    return cropping.random_crops(
        batch, size, count, mine, crops, smallest, lambda image, rows: recolor_(image, changes[rows]), largest
    )


def recolor(image: Tensor, changes: ColorChanges) -> Tensor:
    """Changes the colors of images (n,3,H,W) in [0,1]: jitter, then gray, blur and solarization.

    Returns new images of the same shape, in [0,1] up to rounding.
    """
    changed = image.clone(memory_format=torch.contiguous_format)
    if image.device.type == "cpu":
        for rows in cropping.chunks(len(image), image.shape[2] * image.shape[3]):
            recolor_(changed[rows], changes[rows])
    else:
        recolor_(changed, changes)
    return changed


def recolor_(image: Tensor, changes: ColorChanges) -> None:
    """As ``recolor``, but in place. The images must be contiguous."""
    plan = _plan(changes)
    rows = torch.tensor([row for _, _, rows in plan for row in rows], dtype=torch.int64)
    factors, sigma, rows = upload(image.device, changes.factors.T, changes.sigma, rows)
    by = [*factors[..., None, None, None], sigma[:, None, None, None]]  # (n,1,1,1) each
    for (change, number, chosen), where in zip(plan, rows.split([len(each) for *_, each in plan]), strict=True):
        if len(chosen) == len(image):
            change(image, by[number])
        else:
            some = image[where]
            change(some, by[number][where])
            image[where] = some


def _plan(changes: ColorChanges) -> list[tuple[Change, int, list[int]]]:
    """What is to be done, in this order: the change, the number of its parameter (4: sigma), the rows of the images."""
    plan: list[tuple[Change, int, list[int]]] = []
    active = (changes.factors.T != _UNCHANGED).tolist()
    for steps in changes.order.T.tolist():
        todo: dict[int, list[int]] = {}  # operation -> rows of the images that have it next
        for row, step in enumerate(steps):
            if active[step][row]:
                todo.setdefault(step, []).append(row)
        plan += [(_JITTER[step], step, rows) for step, rows in todo.items()]
    # Beyond 3.5 sigma lie 5e-4 of the weights. Computed here, where sigma is on the CPU.
    reach = math.ceil(3.5 * max(changes.sigma.tolist()))
    last = ((_decolor, changes.gray), (partial(blur, reach=reach), changes.sigma), (_solarize, changes.solarize))
    plan += [(change, 4, [row for row, true in enumerate(chosen.tolist()) if true]) for change, chosen in last]
    return [each for each in plan if each[2]]


Change = Callable[[Tensor, Tensor], object]
"""Changes images (n,3,H,W) in place. The second argument is one parameter for each image, (n,1,1,1)."""

_UNCHANGED = torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None]  # (4,1): the factors that change nothing


# On a CPU each operation below is one pass of vector instructions, in place, over pixels that are still in the CPU's
# cache. It broadcasts at most one operand over the pixels, because torch is slow with more than one.


def _brighten(image: Tensor, factor: Tensor) -> None:
    image.mul_(factor).clamp_(0, 1)


def _contrast(image: Tensor, factor: Tensor) -> None:
    mean = _gray(image.mean((2, 3), keepdim=True))
    image.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturate(image: Tensor, factor: Tensor) -> None:
    image.lerp_(_gray(image), 1 - factor).clamp_(0, 1)


def turn_hue(image: Tensor, turn: Tensor) -> None:
    """Turns the hue of images (n,3,H,W) in [0,1] by fractions (n,1,1,1) of the color circle, in place.

    Equals adjust_hue of kornia and torchvision, but does not convert to HSV, and does not use torch.where, which on a
    CPU takes as long as 30 additions. Let M be the smallest channel of a pixel and C its chroma (largest minus smallest
    channel), and let hues run from 0 to 6 around the circle, with red at 0. The hue is 1 + (g + b - r - M) / C away
    from red, towards green if g >= b, else towards blue. A pixel of hue h has red M + C clamp(|h - 3| - 1, 0, 1), green
    M + C clamp(2 - |h - 2|, 0, 1) and blue M + C clamp(2 - |h - 4|, 0, 1).
    """
    red, green, blue = image.unbind(1)  # (n,H,W)
    value = torch.maximum(red, green).maximum(blue)
    least = torch.minimum(red, green).minimum(blue)
    chroma = value - least
    away = (green + blue).sub_(red).sub_(least).div_((3 * chroma).clamp_(min=1e-12)).add_(1 / 3)
    towards = torch.ge(green, blue, out=torch.empty_like(chroma)).sub_(0.5)  # green, else blue
    hue = away.mul_(towards).add_(turn[:, 0] + 1).frac_().mul_(6)
    torch.sub(hue[:, None], constant(_PEAKS, image.device), out=image).abs_().clamp_(1, 2)
    # clamp(x - 1, 0, 1) is clamp(x, 1, 2) - 1, and clamp(2 - x, 0, 1) is 2 - clamp(x, 1, 2).
    below, above = least.sub_(chroma), value.add_(chroma)
    torch.addcmul(below, chroma, red, out=red)
    torch.addcmul(above, chroma, green, value=-1, out=green)
    torch.addcmul(above, chroma, blue, value=-1, out=blue)


_PEAKS = torch.tensor([3.0, 2.0, 4.0])[:, None, None]  # the hues of red's opposite, green and blue

_JITTER: tuple[Change, ...] = (_brighten, _contrast, _saturate, turn_hue)


def _gray(image: Tensor) -> Tensor:
    """The luma of images, (n,3,H,W) -> (n,1,H,W). Equals kornia's rgb_to_grayscale, in a third of its time for few
    images."""
    red, green, blue = image.unbind(1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def _decolor(image: Tensor, _: Tensor) -> None:
    image.copy_(_gray(image))


def blur(image: Tensor, sigma: Tensor, reach: int) -> None:
    """Blurs images (n,3,H,W) by a Gaussian of ``sigma`` (n,1,1,1) px, in place. Images are mirrored at the border.

    The kernel is a tenth of the image wide, as in SimCLR, and at least 3 px, but reaches at most ``reach`` px from its
    center. It has so few taps that a sum of shifted images is faster than a convolution. Each padded image is shifted
    as one long line of pixels. So the end of a row runs into the next row, but only within the padding.
    """
    height, width = image.shape[-2:]
    reach = min(reach, max(1, min(height, width) // 20))
    squares = torch.arange(-reach, reach + 1, device=image.device).square()  # of the distances from the center
    weights = torch.exp(-squares / (2 * sigma.flatten(1).square()))  # (n,2*reach+1)
    first, *others = (weights / weights.sum(1, keepdim=True))[..., None].unbind(1)  # (n,1) each
    padded = pad(image, (reach,) * 4, mode="reflect")
    plane, row, pixel = padded.stride()[1:]
    line = padded.flatten(1)
    for step in (row, pixel):
        shifted = line.unfold(1, line.shape[1] - 2 * reach * step, step).unbind(1)
        line = first * shifted[0]
        for weight, other in zip(others, shifted[1:], strict=True):
            line.addcmul_(other, weight)
    image.copy_(line.as_strided(image.shape, (line.shape[1], plane, row, pixel)))


def _solarize(image: Tensor, _: Tensor) -> None:
    image.copy_(torch.where(image < 0.5, image, 1 - image))
