"""A loss on the grain of dots that sub-pixel convolutions leave in enlarged images."""

from __future__ import annotations

from torch import Tensor


def grain_loss(image: Tensor, truth: Tensor, period: int) -> Tensor:
    """The energy of the error that repeats every ``period`` px in both directions, 0-d.

    image, truth: (N,C,H,W); sides are multiples of ``period``. The error is averaged over all squares of ``period`` px
    of an image. What remains is a pattern of period x period px; the result is its variance, mean over images and
    channels. Photos have no such pattern, at least none in the grid of the network's output, so the loss does not
    compete with real texture.

    Own addition. A loss on VGG's features rewards any fine texture, and a sub-pixel convolution (PixelShuffle) can add
    the same dots everywhere by its biases alone, which it does within 20 steps.
    """
    pattern = (image - truth).unflatten(3, (-1, period)).unflatten(2, (-1, period)).mean((2, 4))  # (N,C,period,period)
    return pattern.var((2, 3), correction=0).mean()
