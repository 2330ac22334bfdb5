"""Bicubic resampling that equals MATLAB's imresize, with which the super-resolution benchmarks were made."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate, pad

_REACH = 4  # px of the small image to add at each border; the kernel, 4 px wide, needs at most half of them


def shrink(image: Tensor, factor: int) -> Tensor:
    """Shrinks images by an integer factor, antialiased and not clipped: (N,C,H,W) -> (N,C,H/factor,W/factor).

    The kernel is Keys' (a = -0.5), widened by the factor. Beyond the border, the border's pixels are repeated. Raises
    ValueError if a side is not a multiple of the factor.
    """
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"{height}x{width} px cannot be shrunk {factor} times: crop it to multiples of {factor}")
    edge = _REACH * factor
    framed = pad(image, (edge,) * 4, mode="replicate")
    size = [side // factor for side in framed.shape[-2:]]
    small = interpolate(framed, size, mode="bicubic", antialias=True)
    return small[..., _REACH:-_REACH, _REACH:-_REACH]


def enlarge(image: Tensor, factor: int) -> Tensor:
    """Enlarges images by an integer factor with Keys' kernel, not clipped: (N,C,h,w) -> (N,C,h*factor,w*factor)."""
    framed = pad(image, (_REACH,) * 4, mode="replicate")
    size = [side * factor for side in framed.shape[-2:]]
    # With antialias=True torch uses a = -.5, without it -.75.
    large = interpolate(framed, size, mode="bicubic", antialias=True)
    edge = _REACH * factor
    return large[..., edge:-edge, edge:-edge]
