"""Convolutional networks of torchvision and timm as encoders, chosen by name."""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from kintsugi.nets.backbones import IMAGENET_MEAN, IMAGENET_STD
from kintsugi.nets.encoder import Encoder

_TIMM = ("timm:", "timm/")  # the second: in checkpoints of version 0.1
_CLASSIFIERS = ("classifier", "fc")  # what torchvision's convolutional networks call their classifiers
_TRANSFORMERS = ("vit_", "swin_", "maxvit_")
_LEAST, _MOST = 8, 128  # px, the range in which the smallest possible side of a network's input is searched


@dataclass(frozen=True)
class Published:
    """A convolutional network of torchvision, or of timm if torchvision has none of that name."""

    name: str
    """The name in ``torchvision.models`` or timm. If both have it, ``timm:NAME`` chooses timm's network."""

    def build(self) -> PublishedEncoder:
        """The encoder with fresh weights. Raises ValueError with one line if there is no such network."""
        if self.name in _torchvision_names():
            return _from_torchvision(self)
        return _from_timm(self)

    def plain(self) -> dict[str, Any]:
        return {"kind": "published", "name": self.name}


class PublishedEncoder(Encoder):
    """A published network without its classifier. Normalizes its input as the network expects it.

    Strides are powers of two, from 2 on. Networks that do not pad give slightly smaller maps: 109, 54, 27 and 13 px for
    images of 224 px in squeezenet1_0. Images must have sides of at least ``least`` px; smaller ones raise ValueError.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: Published,
        trunk: nn.Module,
        strides: Sequence[int],
        channels: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """trunk: images -> a list or dict of maps with these strides and channels. mean, std: of its RGB input."""
        super().__init__()
        self.spec: Published = spec
        self.trunk = trunk
        self.strides = list(strides)
        self.channels = {s: c for s, c in zip(strides, channels, strict=True) if s > 1}
        self.least = _smallest_side(spec.name, trunk, channels)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        if min(image.shape[-2:]) < self.least:
            height, width = image.shape[-2:]
            raise ValueError(f"{self.spec.name} needs images of at least {self.least} px, not {height}x{width}")
        maps = self.trunk((image - self.mean) / self.std)
        maps = maps.values() if isinstance(maps, dict) else maps
        return {s: x for s, x in zip(self.strides, maps, strict=True) if s in self.channels}


# --- torchvision ----------------------------------------------------------------------------------------------


def _torchvision_names() -> list[str]:
    """The names of torchvision's convolutional classifiers."""
    import torchvision  # imported here: slow, and --help does not need it
    from torchvision.models import list_models

    return [name for name in list_models(module=torchvision.models) if not name.startswith(_TRANSFORMERS)]


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    options: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):  # their weights expect inputs in [-1,1], to which they convert inside
        options = {"transform_input": True, "aux_logits": False, "init_weights": False}
    return get_model(name, weights=None, **options)


def _from_torchvision(spec: Published) -> PublishedEncoder:
    from torchvision.models.feature_extraction import create_feature_extractor

    net = _torchvision(spec.name)
    levels = _levels(net)
    nodes, channels = zip(*levels.values(), strict=True)
    trunk = create_feature_extractor(net, list(nodes), suppress_diff_warning=True)
    return PublishedEncoder(spec, trunk, list(levels), channels, IMAGENET_MEAN, IMAGENET_STD)


def _levels(net: nn.Module) -> dict[int, tuple[str, int]]:
    """Finds one map for each stride: stride -> name of its node and number of its channels, from fine to coarse.

    It is the last map of that stride that alone determines everything after it. So it is the output of a block, never
    of a branch within one. The strides are found by one forward pass on the meta device, with an image 64 times as wide
    as high: only maps of the image have such sides.
    """
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    height, width = 512, 64 * 512
    _, names = get_graph_node_names(net, suppress_diff_warning=True)
    whole = create_feature_extractor(copy.deepcopy(net).to("meta"), names, suppress_diff_warning=True).eval()
    found = whole(torch.empty(1, 3, height, width, device="meta"))
    *nodes, output = whole.graph.nodes
    name_of = {node: name for name, node in cast(dict[str, Any], output.args[0]).items()}
    place = {node: i for i, node in enumerate(nodes)}
    levels: dict[int, tuple[str, int]] = {}
    reach = 0  # the last place at which the output of any node so far is used
    for i, node in enumerate(nodes):
        alone = reach <= i
        reach = max([reach, *(place[user] for user in node.users if user is not output)])
        name = name_of.get(node, "")
        x = found.get(name)
        if not alone or not isinstance(x, Tensor) or x.ndim != 4 or name.split(".")[0] in _CLASSIFIERS:
            continue
        down, across = (round(math.log2(side / s)) for side, s in zip((height, width), x.shape[2:], strict=True))
        if down == across > 0:
            levels[2**down] = (name, x.shape[1])
    return levels


def _smallest_side(name: str, trunk: nn.Module, channels: Sequence[int]) -> int:
    """The smallest side of square images, px, for which no map is empty. Raises ValueError if only one size works."""
    trunk = copy.deepcopy(trunk).to("meta").eval()
    with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints each failure there
        for side in range(_LEAST, _MOST + 1):
            with contextlib.suppress(RuntimeError, AssertionError):
                maps = trunk(torch.empty(1, 3, side, side, device="meta"))
                found = maps.values() if isinstance(maps, dict) else maps
                if [x.shape[1] for x in found] == list(channels):
                    return side
    raise ValueError(f"{name} does not take images of any size: name a convolutional network")


# --- timm -----------------------------------------------------------------------------------------------------


def bare_name(name: str) -> str:
    """The name without ``timm:``."""
    return name.removeprefix(_TIMM[0]).removeprefix(_TIMM[1])


def _timm(name: str, features_only: bool) -> nn.Module:
    import timm  # imported here: slow, and --help does not need it

    bare = bare_name(name)
    if not timm.is_model(bare):
        raise ValueError(f"neither torchvision nor timm has a convolutional network {bare!r}{_near(bare)}")
    try:
        return timm.create_model(bare, pretrained=False, features_only=features_only)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"timm cannot make {bare}: {str(error).splitlines()[0]}") from None


def _from_timm(spec: Published) -> PublishedEncoder:
    net = cast(Any, _timm(spec.name, features_only=True))
    info, settings = net.feature_info, net.pretrained_cfg
    strides = info.reduction()
    encoder = PublishedEncoder(spec, net, strides, info.channels(), settings["mean"], settings["std"])
    if sorted(set(strides)) != strides or any(stride & (stride - 1) for stride in strides):
        raise ValueError(
            f"{spec.name} has no maps of strides 2, 4, 8, ...: name a convolutional network, or a plain vision "
            "transformer such as timm:vit_tiny_patch16_224"
        )
    return encoder


def _near(name: str) -> str:
    import timm

    names = sorted({*_torchvision_names(), *timm.list_models()})
    near = difflib.get_close_matches(name, names, n=3)
    return f" (similar: {', '.join(near)})" if near else ""


def whole_network(name: str) -> nn.Module:
    """The network of this name with its classifier, and fresh weights. Raises ValueError as ``Published.build``."""
    return _torchvision(name) if name in _torchvision_names() else _timm(name, features_only=False)
