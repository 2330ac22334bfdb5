"""A loss on the grain of dots that sub-pixel convolutions leave in enlarged images."""

from __future__ import annotations

from torch import Tensor


def grain_loss(image: Tensor, truth: Tensor, period: int, window: int = 0) -> Tensor:
    """The energy of the error that repeats every ``period`` px in both directions, 0-d.

    image, truth: (N,C,H,W); sides are multiples of ``period``. The error is averaged over all squares of ``period`` px
    of an image. What remains is a pattern of period x period px; the result is its variance, mean over images and
    channels. window: find a pattern in each square window of this side, px, a multiple of ``period``, and take the mean
    over the windows too, because dots may differ from place to place; what does not fill a window is left out. 0: one
    pattern for the whole image.

    Own addition. A loss on VGG's features rewards any fine texture, and a sub-pixel convolution (PixelShuffle) can add
    the same dots everywhere by its biases alone, which it does within 20 steps. The texture of photos has no such
    pattern in the grid of the network's output, so the loss hardly competes with it.
    """
    error = image - truth
    height, width = (window, window) if window else error.shape[-2:]
    error = error[..., : error.shape[2] // height * height, : error.shape[3] // width * width]
    windows = error.unflatten(3, (-1, width)).unflatten(2, (-1, height)).transpose(3, 4)  # (N,C,rows,columns,h,w)
    pattern = windows.unflatten(5, (-1, period)).unflatten(4, (-1, period)).mean((4, 6))  # (..., period, period)
    return pattern.var((4, 5), correction=0).mean()
