"""Cuts images into square patches, and joins them again."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def cut(image: Tensor, patch: int) -> Tensor:
    """Images (N,3,S,S) -> the pixels of their patches (N,L,3*patch*patch), row by row."""
    return pixel_unshuffle(image, patch).flatten(2).mT


def joined(patches: Tensor, patch: int) -> Tensor:
    """The inverse of ``cut``: (N,L,3*patch*patch) -> (N,3,S,S)."""
    grid = round(patches.shape[1] ** 0.5)
    return pixel_shuffle(patches.mT.unflatten(2, (grid, grid)), patch)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels of each patch, over the channels too; (N,L,P) -> (N,L,1) each."""
    return patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()


def holes(masked: Tensor, side: int) -> Tensor:
    """Masked patches, bool (N,L) -> holes of images, float (N,1,side,side), 1 = masked."""
    patch = round(side / masked.shape[1] ** 0.5)
    return joined(masked[:, :, None].float().expand(-1, -1, patch**2), patch)


def patch_means(image: Tensor, patch: int) -> Tensor:
    """Every patch in the gray that is the mean of its pixels and channels; (N,3,S,S) in [0,1]."""
    patches = cut(image, patch)
    return joined(patch_statistics(patches)[0].expand_as(patches), patch)
