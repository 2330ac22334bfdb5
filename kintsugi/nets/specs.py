"""Builds encoders from the plain dicts of settings in checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kintsugi.nets.backbones import Backbone
from kintsugi.nets.discriminators import DiscriminatorSpec, PatchGanSpec, SRGANDiscriminatorSpec
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import Network
from kintsugi.nets.fourier_unet import FourierUNetSpec
from kintsugi.nets.pixels import Pixels
from kintsugi.nets.planes import Joined, Planes, Rgbd
from kintsugi.nets.published import Published
from kintsugi.nets.srresnet import SRResNetSpec
from kintsugi.nets.vit import ViT


def build_spec(spec: dict[str, Any]) -> Encoder:
    """Builds the encoder that a plain dict (``Spec.plain``) describes, with fresh weights.

    Raises ValueError with one line for unknown settings.
    """
    kind = spec.get("kind")
    try:
        if kind in ("backbone", "published", "vit"):
            return _network(spec).build()
        if kind == "discriminator":
            return DiscriminatorSpec(**_settings(spec)).build().encoder
        if kind == "srgan-discriminator":
            return SRGANDiscriminatorSpec(**_settings(spec)).build().encoder
        if kind == "patch-gan":
            return PatchGanSpec(**_settings(spec)).build().encoder
        if kind == "fourier-unet":
            return FourierUNetSpec(**_settings(spec)).build().encoder
        if kind == "srresnet":
            return SRResNetSpec(**_settings(spec)).build().encoder
        if kind == "planes":
            return _planes(spec).build()
        if kind == "joined":
            return Joined(tuple(_planes(part) for part in spec["parts"])).build()
        if kind == "pixels":
            return Pixels(**_settings(spec)).build()
        if kind == "rgbd":
            return Rgbd(_network(spec["rgb"]), _network(spec["hha"])).build()
    except (TypeError, KeyError):
        raise ValueError(f"unknown settings of a {kind} in {spec}: use the version that wrote them") from None
    raise ValueError(f"unknown kind of encoder {kind!r}: use the version that wrote it")


def fresh(encoder: Encoder, seed: int) -> Encoder:
    """Builds a network like ``encoder`` with fresh weights from ``seed``, on its device, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build_spec(encoder.spec.plain())
    return built.to(next(encoder.parameters()).device).eval()


def digest(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """A hash of an encoder's settings (``Spec.plain``) and weights: 16 hexadecimal digits."""
    found = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        found.update(name.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _settings(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name != "kind"}


def _network(spec: dict[str, Any]) -> Network:
    kinds: dict[str, type[Network]] = {"backbone": Backbone, "published": Published, "vit": ViT}
    return kinds[spec["kind"]](**_settings(spec))


def _planes(spec: dict[str, Any]) -> Planes:
    return Planes(spec["planes"], _network(spec["backbone"]))
