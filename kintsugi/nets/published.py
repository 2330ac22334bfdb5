"""Convolutional networks of torchvision and timm as encoders, chosen by name, and their published weights."""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kintsugi.nets.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from kintsugi.nets.encoder import Encoder

_TIMM = "timm/"
_CLASSIFIERS = ("classifier", "fc")  # what torchvision's convolutional networks call their classifiers
_OWN = {"resnet18": Backbone("resnet18"), "resnet50": Backbone("resnet50")}
_TRANSFORMERS = ("vit_", "swin_", "maxvit_")
_LEAST, _MOST = 32, 128  # px, the range in which the smallest possible side of a network's input is searched


@dataclass(frozen=True)
class Published:
    """A convolutional network of torchvision, or of timm if torchvision has none of that name."""

    name: str
    """The name in ``torchvision.models`` or timm. If both have it, ``timm/NAME`` chooses timm's network."""

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
    images of 224 px in squeezenet1_0. Some networks need images with sides of more than 32 px, at least ``least``;
    smaller images raise ValueError.
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
        self.least = _smallest_side(spec.name, trunk)
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


def _smallest_side(name: str, trunk: nn.Module) -> int:
    """The smallest side of square images, px, for which no map is empty. Raises ValueError if only one size works."""
    trunk = copy.deepcopy(trunk).to("meta").eval()
    with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints each failure there
        for side in range(_LEAST, _MOST + 1):
            with contextlib.suppress(RuntimeError, AssertionError):
                trunk(torch.empty(1, 3, side, side, device="meta"))
                return side
    raise ValueError(f"{name} does not take images of any size: name a convolutional network")


# --- timm -----------------------------------------------------------------------------------------------------


def _timm(name: str, features_only: bool) -> nn.Module:
    bare = name.removeprefix(_TIMM)
    import timm  # imported here: slow, and --help does not need it

    if not timm.is_model(bare):
        near = _near(bare, sorted({*_torchvision_names(), *timm.list_models()}))
        raise ValueError(f"neither torchvision nor timm has a convolutional network {bare!r}{near}")
    try:
        return timm.create_model(bare, pretrained=False, features_only=features_only)
    except RuntimeError as error:
        raise ValueError(f"timm cannot make {bare}: {str(error).splitlines()[0]}") from None


def _from_timm(spec: Published) -> PublishedEncoder:
    net = cast(Any, _timm(spec.name, features_only=True))
    info, settings = net.feature_info, net.pretrained_cfg
    return PublishedEncoder(spec, net, info.reduction(), info.channels(), settings["mean"], settings["std"])


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    return f" (similar: {', '.join(near)})" if near else ""


# --- weights --------------------------------------------------------------------------------------------------


def load_published(name: str, file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads published weights: the settings of an encoder as a plain dict, and its state dict.

    name: as in ``Published``. resnet18 and resnet50 become the project's own encoders, so that they are compared with
    the same random weights as the project's methods. file: a state dict with torchvision's or timm's names, as
    .safetensors, .pth or .pt. It may be inside ``state_dict`` or ``model``, and its names may have a prefix such as
    ``module.``. Weights of the classifier are ignored. Raises ValueError with one line if the file holds no weights, or
    those of another network.
    """
    spec = _OWN.get(name) or Published(name)
    state = spec.build().state_dict()
    wanted = {key: _flat(key.removeprefix("trunk.")) for key in state}
    given = {_flat(key): (key, value) for key, value in _read(file).items()}
    prefix = _prefix(given, list(wanted.values()))
    for key, value in state.items():
        if prefix + wanted[key] not in given:
            if key.endswith("num_batches_tracked"):  # missing in older files, and not needed
                continue
            raise ValueError(
                f"{file} has no {key.removeprefix('trunk.')}: does it belong to a network other than {name}?"
            )
        theirs, weights = given[prefix + wanted[key]]
        if weights.shape != value.shape:
            raise ValueError(
                f"{file}: {theirs} is {tuple(weights.shape)}, but {tuple(value.shape)} in {name}: does it belong to "
                "another network?"
            )
        state[key] = weights.to(value.dtype)
    if foreign := _foreign(name, prefix, list(given), list(wanted.values())):
        raise ValueError(
            f"{file} has {given[foreign][0]}, which {name} does not have: does it belong to another network?"
        )
    return spec.plain(), state


def _flat(key: str) -> str:
    """The name with _ for each dot.

    timm's encoders have ``stages_0.blocks`` for the network's ``stages.0.blocks``.
    """
    return key.replace(".", "_")


def _prefix(given: Collection[str], wanted: Sequence[str]) -> str:
    """The prefix with which most of the wanted names are among the given ones."""
    first = wanted[0]
    prefixes = [key[: -len(first)] for key in given if key == first or key.endswith(f"_{first}")]
    return max(prefixes, key=lambda prefix: sum(prefix + key in given for key in wanted), default="")


def _foreign(name: str, prefix: str, given: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first name in the file that belongs to a part of the encoder but is unknown to the network; else None.

    Without this check a shallow network would accept the weights of a deeper one.
    """
    net = _torchvision(name) if name in _torchvision_names() else _timm(name, features_only=False)
    parts = [f"{_flat(part)}_" for part, _ in net.named_children()]
    ours = tuple(prefix + part for part in parts if any(key.startswith(part) for key in wanted))
    known = {prefix + _flat(key) for key in net.state_dict()}
    return next((key for key in given if key.startswith(ours) and key not in known), None)


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"no weights at {file}: name a file of a state dict (.safetensors, .pth, .pt)")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or foreign file
        raise ValueError(
            f"{file} is not a file of tensors only ({type(error).__name__}): save the network's state_dict()"
        ) from None
    for name in ("state_dict", "model"):
        content = content.get(name, content) if isinstance(content, dict) else content
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ValueError(f"{file} holds no state dict: save the network's state_dict()")
    return tensors
