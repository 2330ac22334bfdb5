"""Runs a ResNet on the visible cells of images only, with the very modules that otherwise see whole images.

This is sparse convolution as in SparK (Tian 2023, arXiv:2301.03580, section 3.1), computed with dense maps. Masked
places are 0 in the input and after every layer, so that no layer reads anything from them. Norms are computed over
visible places only, because the zeros would shift their statistics. The state stays that of the plain encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kintsugi.nets.backbones import ResNet
from kintsugi.nets.layers import Norm, normalization
from kintsugi.upload import upload


def draw_visible(count: int, grid: int, shown: int, block: int, random: torch.Generator) -> Tensor:
    """Which cells are visible: bool (count,1,grid,grid), exactly ``shown`` in each image.

    In each block of ``block`` x ``block`` cells at least one is visible, so that all places of coarser maps are.
    """
    rows = grid // block
    scores = torch.rand(count, rows, block, rows, block, generator=random)
    scores = scores + (scores == scores.amax((2, 4), keepdim=True))  # the highest of each block comes first
    best = scores.view(count, -1).topk(shown).indices
    visible = torch.zeros(count, grid**2, dtype=torch.bool).scatter(1, best, True)
    return visible.view(count, 1, grid, grid)


class Cells:
    """The visible cells of a batch of square images, as places of maps of any side.

    visible: bool (N,1,g,g), true = visible. A place of a map that is larger than a cell is visible if any of its cells
    is. The sides of maps and g must divide each other. device: of the maps; default: that of ``visible``, which may be
    on the CPU.
    """

    def __init__(self, visible: Tensor, device: torch.device | None = None) -> None:
        self.visible, self.device = visible, device or visible.device
        self._at: dict[int, Tensor] = {}
        self._places: dict[int, Tensor] = {}

    def at(self, side: int) -> Tensor:
        """Whether each place of a map is visible: bool (N,1,side,side)."""
        if side not in self._at:
            (self._at[side],) = upload(self.device, self._seen(side))
        return self._at[side]

    def _seen(self, side: int) -> Tensor:
        """As ``at``, where ``visible`` is."""
        grid = self.visible.shape[-1]
        if side >= grid:
            return self.visible.repeat_interleave(side // grid, 3).repeat_interleave(side // grid, 2)
        return self.visible.unflatten(3, (side, -1)).unflatten(2, (side, -1)).any(5).any(3)

    def hide(self, x: Tensor) -> Tensor:
        """Sets the masked places of maps (N,C,h,h) to 0."""
        return x * self.at(x.shape[-1])

    def norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        """A norm of maps (N,C,h,h), computed over visible places only; 0 at the masked ones.

        norm: a batch norm or a group norm. Its running statistics are those of visible places too. Raises ValueError
        if not all images have equally many visible places.
        """
        n, c, h, w = x.shape
        places = self._indices(h)  # (N*V,)
        rows = x.permute(0, 2, 3, 1).reshape(-1, c)  # (N*h*w,C)
        seen = rows.index_select(0, places).view(n, -1, 1, c).permute(0, 3, 1, 2)  # (N,C,V,1), visible places only
        seen = norm(seen).permute(0, 2, 3, 1).reshape(-1, c)  # (N*V,C)
        rows = seen.new_zeros(n * h * w, c).index_copy(0, places, seen)
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)

    def _indices(self, side: int) -> Tensor:
        """The visible places, as indices into all places of the batch; int64 (N*V,), image by image."""
        if side not in self._places:
            visible = self._seen(side)  # on the CPU in training, so that no GPU waits for the numbers
            counts = visible.sum((1, 2, 3))
            if (counts != counts[0]).any():
                raise ValueError("all images must have equally many visible places")
            (self._places[side],) = upload(self.device, visible.flatten().nonzero().flatten())
        return self._places[side]


def masked_maps(encoder: ResNet, image: Tensor, cells: Cells) -> dict[int, Tensor]:
    """The encoder's maps of the visible cells of images (N,3,S,S) in [0,1]: {stride: map}, 0 at masked places.

    With all cells visible, the maps are those of ``encoder(image)``. Raises ValueError as ``Cells.norm``.
    """
    x = encoder.conv1(cells.hide(encoder.normalized(image)))
    x = encoder.relu(cells.norm(encoder.bn1, x))
    # After the ReLU no value is less than 0, so the maximum over a window ignores its masked places.
    x = cells.hide(encoder.maxpool(x))
    maps = {}
    stages = (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)
    for stride, stage in zip(encoder.channels, stages, strict=True):
        for block in stage:
            x = _block(block, x, cells)
        maps[stride] = x
    return maps


def _block(block: Any, x: Tensor, cells: Cells) -> Tensor:
    """A residual block of torchvision, ``BasicBlock`` or ``Bottleneck``; norms mask what convolutions return."""
    y = block.relu(cells.norm(block.bn1, block.conv1(x)))
    y = cells.norm(block.bn2, block.conv2(y))
    if hasattr(block, "conv3"):
        y = cells.norm(block.bn3, block.conv3(block.relu(y)))
    if block.downsample is not None:
        convolution, norm = block.downsample
        x = cells.norm(norm, convolution(x))
    return block.relu(y + x)


class Densify(nn.Module):
    """Fills the masked places of a map with a mask token: (N,C,h,h) -> (N,out,h,h).

    A norm of the visible places, the token at the masked ones, and a convolution (the paper's section 3.2).
    """

    def __init__(self, channels: int, out: int, kernel: int, norm: Norm) -> None:
        super().__init__()
        self.norm = normalization(norm, channels)
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(channels), std=0.02, a=-0.02, b=0.02))
        self.projection = nn.Conv2d(channels, out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, cells: Cells) -> Tensor:
        return self.projection(self.filled(x, cells))

    def filled(self, x: Tensor, cells: Cells) -> Tensor:
        """The map before its projection: normalized where visible, the token elsewhere; (N,C,h,h)."""
        return torch.where(cells.at(x.shape[-1]), cells.norm(self.norm, x), self.token.view(1, -1, 1, 1))
