"""Which encoder a name on the command line means (``--encoder``)."""

from __future__ import annotations

from typing import Any, Literal, cast

from kintsugi.nets.backbones import Backbone
from kintsugi.nets.layers import Norm
from kintsugi.nets.published import Published, bare_name
from kintsugi.nets.vit import ViT

OWN = ("resnet18", "resnet50", "alexnet")
"""torchvision's networks that take the options for norm, stem and width."""
Network = Backbone | Published | ViT
"""Settings of an encoder of RGB."""
Stem = Literal["large", "small"]


def chosen(
    name: str, norm: Norm = "batch", stem: Stem = "large", width: float = 1.0, size: int = 0, patch: int = 0
) -> Network:
    """The settings of the encoder ``name``.

    name: one of ``OWN``; or a convolutional network of torchvision; or ``timm:NAME``, a convolutional network or a
    vision transformer of timm (``timm:`` may be left out where torchvision has no network of that name). size: side of
    the images, px, and patch: side of the patches, px, of a vision transformer; 0 = its own. Raises ValueError with one
    line if an option does not fit the network. An unknown name is found only by ``build``.
    """
    transformer = name not in OWN and is_vision_transformer(name)
    if patch and not transformer:
        raise ValueError(f"--encoder-patch is for vision transformers (timm:vit_tiny_patch16_224), not for {name}")
    if stem != "large" and name not in ("resnet18", "resnet50"):
        raise ValueError(f"--stem {stem} is for ResNets only (resnet18, resnet50), not for {name}")
    if name in OWN:
        return Backbone(cast(Any, name), norm, width, stem)
    if norm != "batch":
        raise ValueError(f"--norm {norm} is for {', '.join(OWN)} only: {name} keeps its own normalization")
    if width != 1:
        raise ValueError(f"--width {width:g} is for {', '.join(OWN)} only, not for {name}")
    return ViT(bare_name(name), size, patch) if transformer else Published(name)


def is_vision_transformer(name: str) -> bool:
    """Whether timm has a plain vision transformer of this name, with or without ``timm:``."""
    from timm.models import is_model_in_modules  # imported here: slow, and --help does not need it

    return is_model_in_modules(bare_name(name), ("vision_transformer", "deit"))
