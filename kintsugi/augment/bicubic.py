"""Bicubic resampling as MATLAB's imresize does it, which the field's super-resolution benchmarks are made with."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate, pad

_REACH = 4  # pixels of the small image that a kernel of 4 reaches over the border, rounded up


def shrink(image: Tensor, factor: int) -> Tensor:
    """(N,C,H,W) -> (N,C,H/factor,W/factor), antialiased; sides must be multiples of the factor. Not clipped.

    Keys' kernel (a = -.5), widened by the factor; the image continues as its border pixel.
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
    """(N,C,h,w) -> (N,C,h*factor,w*factor), with the same kernel. Not clipped."""
    framed = pad(image, (_REACH,) * 4, mode="replicate")
    size = [side * factor for side in framed.shape[-2:]]
    # antialias chooses a = -.5; torch's plain bicubic has -.75.
    large = interpolate(framed, size, mode="bicubic", antialias=True)
    edge = _REACH * factor
    return large[..., edge:-edge, edge:-edge]
