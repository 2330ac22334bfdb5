"""Weights under comparison: encoders of checkpoints, and random weights of the same networks."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.specs import build_spec
from kintsugi.rng import derive_seed
from kintsugi.train import checkpoint


@dataclass(frozen=True)
class Weights:
    """An encoder's spec and state: one row of the table.

    state: None = random weights, drawn anew for each seed. baseline: the name of the random weights of the same
    network. images_seen: images in pre-training, counted with repetition; None = unknown.
    """

    name: str
    spec: Mapping[str, Any]
    state: Mapping[str, Tensor] | None = None
    baseline: str | None = None
    images_seen: int | None = None

    def encoder(self, seed: int) -> Encoder:
        """A new encoder with these weights, on the CPU; ``seed`` matters for random weights alone."""
        torch.manual_seed(derive_seed(seed, 1))
        encoder = build_spec(dict(self.spec))
        if self.state is not None:
            encoder.load_state_dict(self.state)
        return encoder

    @functools.cached_property
    def digest(self) -> str:
        """A hash of spec and state. A finished result is reused only for weights with the same hash."""
        found = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode())
        for name, value in sorted((self.state or {}).items()):
            found.update(name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


def saved_weights(ckpt: Path, roles: Sequence[str] = (), name: str = "") -> tuple[Path, list[Weights]]:
    """Reads a checkpoint; returns its file, and the weights of its encoders that take RGB.

    roles: which encoders; default: all of them. Weights are named after the method, or ``name``; for a discriminator
    the role is added. Raises ValueError with one line if a role is missing or its encoder does not take RGB alone.
    """
    file, content = checkpoint.read(ckpt)
    encoders = content["encoders"]
    of_rgb = [role for role, saved in encoders.items() if build_spec(saved["spec"]).planes == 3]
    if unknown := sorted(set(roles) - set(of_rgb)):
        raise ValueError(f"{file} has no {unknown[0]} that takes RGB alone: choose --roles from {', '.join(of_rgb)}")
    name = name or content["method"]
    images_seen = content["step"] * content["config"].get("batch", 0) or None
    return file, [
        Weights(
            name if role != "discriminator" else f"{name}, {role}",
            encoders[role]["spec"],
            encoders[role]["state"],
            images_seen=images_seen,
        )
        for role in roles or of_rgb
    ]


def with_random(weights: Sequence[Weights]) -> list[Weights]:
    """The weights, each with its baseline named, and the baselines: one set of random weights for each network.

    A baseline follows the first weights of its network.
    """
    baselines: dict[str, str] = {}  # spec -> name
    result: list[Weights] = []
    for one in weights:
        spec = json.dumps(one.spec, sort_keys=True)
        is_new = spec not in baselines
        if is_new:
            name = f"random init ({_network_name(one.spec)})"
            alike = sum(other.startswith(name[:-1]) for other in baselines.values())
            baselines[spec] = name if name not in baselines.values() else f"{name[:-1]}, net {alike + 1})"
        result.append(Weights(one.name, one.spec, one.state, baselines[spec], one.images_seen))
        if is_new:
            result.append(Weights(baselines[spec], one.spec))
    return result


def _network_name(spec: Mapping[str, Any]) -> str:
    """A short name for the network with this spec, such as resnet18, group norm."""
    if spec.get("kind") == "joined":
        return "two halves"
    if spec.get("kind") == "vit":
        return f"{spec['name']}, patches of {spec['patch']} px" if spec["patch"] else str(spec["name"])
    inner = spec.get("backbone", spec)
    words = [str(inner.get("name", inner.get("kind")))]
    words += [str(spec["planes"])] if "planes" in spec else []
    words += ["32-px stem"] if inner.get("stem") == "small" else []
    words += [f"{inner['norm']} norm"] if inner.get("norm", "batch") != "batch" else []
    return ", ".join(words)
