"""Vision transformers of timm as encoders (Dosovitskiy 2021, arXiv:2010.11929), for images of any size."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from kintsugi.nets.backbones import IMAGENET_MEAN, IMAGENET_STD
from kintsugi.nets.encoder import Encoder

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

COARSEST = 32
"""The coarsest stride of the maps."""
DEPTHS = 4
"""The number of depths whose maps are joined."""
_ODD_PATCH = 14  # px; published weights of such patches are resampled, as strides are powers of two


@dataclass(frozen=True)
class ViT:
    """Settings of a vision transformer of timm; ``build()`` makes it, with fresh weights."""

    name: str
    """timm's name, such as vit_tiny_patch16_224; any network that is timm's VisionTransformer with square patches."""
    size: int = 0
    """Side of the images for which positions are made, px; 0 = that of timm's network."""
    patch: int = 0
    """Side of the patches, px, a power of two up to 32; 0 = that of timm's network, or 16 where that is 14, as in
    DINOv2's."""
    planes: int = 3
    """Channels of the input: 3 for RGB, 6 for RGB and HHA."""

    def build(self) -> ViTEncoder:
        """Makes the encoder. Raises ValueError with one line for settings that do not fit."""
        return ViTEncoder(self)

    def plain(self) -> dict[str, Any]:
        """As ``Spec.plain``."""
        return {"kind": "vit", **asdict(self)}


class ViTEncoder(Encoder):
    """A vision transformer: images (N,planes,H,W) in [0,1] -> {stride: feature map}.

    ``net`` is timm's network without its head. At the stride of the patches, the map has the patch tokens of four
    evenly spaced depths, concatenated; the last D channels are the last block's, after the final norm. At the coarser
    strides up to 32, it has the last block's tokens, averaged. ``vector`` is the mean of the last block's patch tokens.

    The input is normalized as timm's network expects it. Images whose sides are no multiples of the patch are padded
    with the mean color at the right and at the bottom. Positions are interpolated for images of another size.
    """

    mean: Tensor
    std: Tensor
    other_passes = ("tokens",)

    def __init__(self, spec: ViT) -> None:
        super().__init__()
        self.spec: ViT = spec
        self.net = _network(spec)
        self.planes = spec.planes
        self.patch = int(self.net.patch_embed.patch_size[0])
        """Side of a patch, px."""
        self.width = int(self.net.embed_dim)
        """D, the channels of a token."""
        depth = len(self.net.blocks)
        self.depths = sorted({max(1, round(depth * (i + 1) / DEPTHS)) - 1 for i in range(DEPTHS)})
        strides = [self.patch << i for i in range(COARSEST.bit_length()) if self.patch << i <= COARSEST]
        self.channels = {s: self.width * (len(self.depths) if s == self.patch else 1) for s in strides}
        settings: dict[str, Any] = cast(Any, self.net).pretrained_cfg or {}
        for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            each: Sequence[float] = settings.get(name, default)
            value = torch.tensor(each).repeat(spec.planes // 3).view(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @property
    def vector_length(self) -> int:
        return self.width

    def normalized(self, image: Tensor) -> Tensor:
        """Images (N,planes,H,W) in [0,1], normalized as the network expects them."""
        return (image - self.mean) / self.std

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        last, maps = cast(Any, self.net).forward_intermediates(self.normalized(image), indices=self.depths)
        prefix, (height, width) = self.net.num_prefix_tokens, maps[-1].shape[2:]
        last = last[:, prefix:].transpose(1, 2).unflatten(2, (height, width))  # (N,D,h,w)
        found = {self.patch: torch.cat([*maps[:-1], last], 1)}
        for stride in list(self.channels)[1:]:
            found[stride] = avg_pool2d(last, stride // self.patch, ceil_mode=True)
        return found

    def vector(self, maps: dict[int, Tensor]) -> Tensor:
        """The mean of the last block's patch tokens, (N,D)."""
        return maps[self.patch][:, -self.width :].mean((2, 3))

    def tokens(self, image: Tensor, kept: Tensor | None = None) -> Tensor:
        """The last block's tokens after the final norm: (N,P+L,D), the P prefix tokens (class, registers) first.

        kept: indices of the patches that are computed, int64 (N,L), row by row; None = all patches. The network reads
        nothing of the other patches.
        """
        net = self.net
        x = net._pos_embed(net.patch_embed(self.normalized(image)))  # (N,P+h*w,D)
        if kept is not None:
            prefix, patches = x[:, : net.num_prefix_tokens], x[:, net.num_prefix_tokens :]
            x = torch.cat([prefix, patches.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))], 1)
        return net.norm(net.blocks(net.norm_pre(x)))

    @torch.no_grad()
    def fix_positions(self) -> None:
        """Makes the positions sines and cosines (``fixed_positions``) that are not trained; 0 for prefix tokens."""
        assert self.net.pos_embed is not None
        fixed = fixed_positions(self.net.patch_embed.grid_size[0], self.width)
        self.net.pos_embed.requires_grad_(False).zero_()[0, -len(fixed) :] = fixed

    @torch.no_grad()
    def resize(self, size: int) -> None:
        """Makes positions for images of ``size`` px, interpolated from the present ones, and keeps them.

        Without it, they are interpolated anew for each batch of another size. Raises ValueError as ``ViT.build``.
        """
        _check_size(size, self.patch)
        self.net.set_input_size((size, size))
        self.spec = replace(self.spec, size=size)


def fixed_positions(grid: int, width: int) -> Tensor:
    """Positions of grid*grid patches, row by row: sines and cosines of both coordinates, (grid*grid,width).

    Of frequencies 10000 ** -(4 i / width), i from 0 to width/4 - 1. width: a multiple of 4.
    """
    from timm.layers import build_sincos2d_pos_embed  # imported here: slow, and --help does not need it

    return build_sincos2d_pos_embed([grid, grid], width)


def _network(spec: ViT) -> VisionTransformer:
    """timm's network, for images of any size and without its head. Raises ValueError with one line."""
    import timm  # imported here: slow, and --help does not need it

    if spec.planes < 3 or spec.planes % 3:
        raise ValueError(f"a vision transformer takes 3 planes or a multiple of 3, not {spec.planes}")
    if not timm.is_model(spec.name):
        near = difflib.get_close_matches(spec.name, timm.list_models("*vit*"), n=3)
        similar = f" (similar: {', '.join(near)})" if near else ""
        raise ValueError(f"timm has no network {spec.name!r}{similar}")
    _check_size(spec.size, spec.patch)
    net = _made(spec)
    if not spec.patch and net.patch_embed.patch_size[0] == _ODD_PATCH:
        grid = net.patch_embed.grid_size[0]
        net = _made(replace(spec, size=spec.size or 16 * grid, patch=16))
    _check_size(int(net.patch_embed.img_size[0]), int(net.patch_embed.patch_size[0]))
    return net


def _made(spec: ViT) -> VisionTransformer:
    """As ``_network``, with patches of any size."""
    import timm
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    sides: dict[str, Any] = {name: side for name, side in (("img_size", spec.size), ("patch_size", spec.patch)) if side}
    try:
        net = timm.create_model(
            spec.name,
            in_chans=spec.planes,
            num_classes=0,
            global_pool="",  # so that every network has its final norm, and no pooling with weights
            dynamic_img_size=True,
            dynamic_img_pad=True,
            **sides,
        )
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{spec.name} is no vision transformer of timm ({_first_line(error)})") from None
    if not isinstance(net, VisionTransformer) or type(net.patch_embed) is not PatchEmbed or net.pos_embed is None:
        raise ValueError(f"{spec.name} is no plain vision transformer: choose one such as vit_tiny_patch16_224")
    return net


def _check_size(size: int, patch: int) -> None:
    """Raises ValueError with one line if these sides, px, do not fit; 0 = unknown."""
    if patch < 0 or patch > COARSEST or patch & (patch - 1):
        raise ValueError(f"patches of {patch} px: use a power of two up to {COARSEST}, such as 8 or 16")
    if size < 0 or (patch and size % patch):
        raise ValueError(f"images of {size} px: use a multiple of the patch, {patch} px")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
