"""Starts an encoder from weights that another program saved, under that program's names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kintsugi.nets.backbones import Backbone
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import Network, chosen
from kintsugi.nets.planes import PlaneEncoder
from kintsugi.nets.published import Published, PublishedEncoder, whole_network
from kintsugi.nets.vit import ViTEncoder
from kintsugi.nets.weight_files import read_weights

LEAST = 0.9
"""The least fraction of an encoder's numbers that a source must have."""
_COUNTED = "num_batches_tracked"  # an entry of batch norms that is missing in older files, and not needed


@dataclass(frozen=True)
class Match:
    """Which of an encoder's weights a source has."""

    name: str
    """The encoder's network."""
    weights: dict[str, Tensor]
    """Name in the network -> the source's weights."""
    fraction: float
    """The numbers in ``weights``, as a fraction of the encoder's."""
    missing: list[str]
    """Names of the encoder's weights that stay fresh."""
    unused: list[str]
    """Names of the source's tensors that the encoder has no place for, such as those of a classifier."""

    def line(self, source: str) -> str:
        """What was matched, missing and left over, in one line."""
        parts = [f"{source}: {100 * self.fraction:.4g} % of the weights of {self.name}"]
        parts += [f"fresh: {_some(self.missing)}"] if self.missing else []
        parts += [f"not used: {_some(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def load_into(encoder: Encoder, given: Mapping[str, Tensor], source: str, *, rgb: bool = True) -> Match:
    """Loads the weights of a source into an encoder, in place. Returns what matched.

    given: as of ``read_weights``. Prefixes of names (``module.``, ``backbone.``, ``encoder_q.``, ``teacher.`` and so
    on) do not matter; if several networks are in the file, the first one that fits best is taken, a teacher before its
    student. Positions and patches of a vision transformer are resized, and its names in the formats of DINOv2, CLIP and
    others translated, by timm's own code. rgb: whether the encoder's input has the meaning of RGB or of a gray image;
    otherwise its first layer stays fresh. Raises ValueError with one line if less than ``LEAST`` matches, or if the
    source belongs to a deeper network.
    """
    match = _matched(encoder, given, source, rgb)
    network = _network(encoder)
    network.load_state_dict({**network.state_dict(), **match.weights})
    return match


def load_published(name: str, source: str | Path) -> tuple[Encoder, Match]:
    """An encoder with published weights, and what of them matched.

    name: as for ``--encoder``, but alexnet is torchvision's, without batch norms. resnet18 and resnet50 are the
    project's own encoders, so that they are compared with the same random weights as the project's methods. source: as
    of ``read_weights``. Raises ValueError with one line if it holds no weights, or those of another network.
    """
    spec: Network = Published(name) if name == "alexnet" else chosen(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the few weights that may be missing
        encoder = spec.build()
    return encoder, load_into(encoder, read_weights(source), str(source))


def _inner(encoder: Encoder) -> Encoder:
    return encoder.backbone if isinstance(encoder, PlaneEncoder) else encoder


def _network(encoder: Encoder) -> nn.Module:
    """The module of an encoder whose weights have the published names."""
    encoder = _inner(encoder)
    if isinstance(encoder, ViTEncoder):
        return encoder.net
    return encoder.trunk if isinstance(encoder, PublishedEncoder) else encoder


def _matched(encoder: Encoder, given: Mapping[str, Tensor], source: str, rgb: bool) -> Match:
    inner, network = _inner(encoder), _network(encoder)
    name = str(encoder.spec.plain().get("name") or inner.spec.plain().get("name", "the encoder"))
    state = network.state_dict()
    wanted = {_flat(key): key for key in state}
    prefix = _prefix({_flat(key) for key in given}, list(wanted))
    bare = {key[len(prefix) :]: value for key, value in given.items() if _flat(key).startswith(prefix)}
    if isinstance(inner, ViTEncoder):
        bare = _translated(bare, inner)
    theirs = {_flat(key): (key, value) for key, value in bare.items()}

    needed = {flat: key for flat, key in wanted.items() if not key.endswith(_COUNTED)}
    fitting = {
        key: theirs[flat][1]
        for flat, key in needed.items()
        if flat in theirs and theirs[flat][1].shape == state[key].shape
    }
    numbers = sum(state[key].numel() for key in needed.values())
    fraction = sum(value.numel() for value in fitting.values()) / numbers
    if fraction < LEAST:
        flat, key = next((flat, key) for flat, key in needed.items() if key not in fitting)
        problem = f"{source} has no {key}: does it belong to a network other than {name}?"
        if flat in theirs:
            shapes = f"{tuple(theirs[flat][1].shape)}, but {tuple(state[key].shape)} in {name}"
            problem = f"{source}: {theirs[flat][0]} is {shapes}: does it belong to another network?"
        raise ValueError(f"{problem} It has {100 * fraction:.0f} % of the weights; {100 * LEAST:.0f} % are needed")
    if foreign := _foreign(inner, list(theirs), list(wanted)):
        raise ValueError(
            f"{source} has {theirs[foreign][0]}, which {name} does not have: does it belong to another network?"
        )

    fresh = () if rgb else _first_layer(network)
    weights = {key: value.to(state[key].dtype) for key, value in fitting.items() if not key.startswith(fresh)}
    missing = [key for key in needed.values() if key not in weights]
    unused = [key for key in bare if _flat(key) not in wanted]
    return Match(name, weights, sum(value.numel() for value in weights.values()) / numbers, missing, unused)


def _translated(state: dict[str, Tensor], encoder: ViTEncoder) -> dict[str, Tensor]:
    """The state dict with timm's names, and with positions and patches of the encoder's sizes."""
    from timm.models.vision_transformer import checkpoint_filter_fn  # imported here: slow, and few runs need it

    try:
        return checkpoint_filter_fn(dict(state), encoder.net)
    except (RuntimeError, AssertionError, KeyError, ValueError):  # shapes that cannot be resized: they do not match
        return state


def _first_layer(network: nn.Module) -> str:
    """The name of the first convolution, with a dot."""
    return next(f"{name}." for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))


def _flat(key: str) -> str:
    """The name with _ for each dot.

    timm's encoders have ``stages_0.blocks`` for the network's ``stages.0.blocks``.
    """
    return key.replace(".", "_")


def _prefix(given: Collection[str], wanted: Sequence[str]) -> str:
    """The prefix with which most of the wanted names are among the given ones.

    Of equally good ones, a teacher's, and else the first in ``wanted``'s order.
    """
    samples = wanted[:: max(1, len(wanted) // 8)]
    prefixes = sorted({key.removesuffix(one) for one in samples for key in given if key.endswith(one)}, key=len)
    clean = [prefix for prefix in prefixes if not prefix or prefix.endswith("_")]

    def worth(prefix: str) -> tuple[int, bool, bool]:
        hits = sum(prefix + key in given for key in wanted)
        return hits, "teacher" in prefix, not re.search(r"student|momentum|encoder_k|key", prefix)

    best = max(clean, key=worth, default="")
    return best if 2 * worth(best)[0] >= len(wanted) else ""  # "": names in another format


def _foreign(encoder: Encoder, given: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first name in the source that belongs to a part of the encoder but is unknown to the network; else None.

    Without this check a shallow network would accept the weights of a deeper one.
    """
    spec = encoder.spec
    if isinstance(spec, Published) or (isinstance(spec, Backbone) and spec.name != "dcgan"):
        with torch.random.fork_rng(devices=[]):
            whole = whole_network(spec.name)
    else:
        whole = _network(encoder)
    parts = [f"{_flat(part)}_" for part, _ in whole.named_children()]
    ours = tuple(part for part in parts if any(key.startswith(part) for key in wanted))
    known = {_flat(key) for key in whole.state_dict()} | set(wanted)
    return next((key for key in given if key.startswith(ours) and key not in known), None)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
