"""Bicubic resampling equal to MATLAB's imresize, with which the super-resolution benchmarks are made."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate, pad

_REACH = 4  # pixels of the small image by which a kernel of 4 reaches over the border, rounded up


def shrink(image: Tensor, factor: int) -> Tensor:
    """(N,C,H,W) -> (N,C,H/factor,W/factor), antialiased and not clipped.

    Keys' kernel (a = -.5), widened by the factor; border pixels continue outside the image. ValueError where the sides
    are not multiples of the factor.
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
    """(N,C,h,w) -> (N,C,h*factor,w*factor), with the same kernel and not clipped."""
    framed = pad(image, (_REACH,) * 4, mode="replicate")
    size = [side * factor for side in framed.shape[-2:]]
    # With antialias=True torch uses a = -.5, without it -.75.
    large = interpolate(framed, size, mode="bicubic", antialias=True)
    edge = _REACH * factor
    return large[..., edge:-edge, edge:-edge]
