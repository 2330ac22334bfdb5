"""Weights under comparison: encoders of checkpoints, and random weights of the same networks."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.specs import build_spec, digest
from kintsugi.rng import derive_seed
from kintsugi.train import checkpoint


@dataclass(frozen=True)
class Weights:
    """An encoder's spec and states: one row of the table.

    states: one, which all seeds share; or several, one from a pre-training of its own for each seed; none = random
    weights, drawn anew for each seed. baseline: the name of the random weights of the same network. images_seen: images
    in a pre-training, counted with repetition; None = unknown.
    """

    name: str
    spec: Mapping[str, Any]
    states: tuple[Mapping[str, Tensor], ...] = ()
    baseline: str | None = None
    images_seen: int | None = None

    def encoder(self, seed: int) -> Encoder:
        """A new encoder with the weights for a seed, on the CPU."""
        torch.manual_seed(derive_seed(seed, 1))
        encoder = build_spec(dict(self.spec))
        if self.states:
            encoder.load_state_dict(self.states[seed if len(self.states) > 1 else 0])
        return encoder

    @functools.cached_property
    def digest(self) -> str:
        """A hash of spec and states. A finished result is reused only for weights with the same hash."""
        return "-".join(digest(self.spec, state) for state in self.states or ({},))


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
            (encoders[role]["state"],),
            images_seen=images_seen,
        )
        for role in roles or of_rgb
    ]


def joined(weights: Sequence[Weights]) -> list[Weights]:
    """The weights, where those of one name become one row of several pre-trainings.

    Raises ValueError with one line if their networks differ.
    """
    rows: dict[str, Weights] = {}
    for one in weights:
        first = rows.setdefault(one.name, one)
        if first.spec != one.spec:
            raise ValueError(f"two rows are called {one.name}, but their networks differ: name them, as in NAME=PATH")
        if first is not one:
            rows[one.name] = replace(first, states=first.states + one.states)
    return list(rows.values())


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
        result.append(replace(one, baseline=baselines[spec]))
        if is_new:
            result.append(Weights(baselines[spec], one.spec))
    return result


def _network_name(spec: Mapping[str, Any]) -> str:
    """A short name for the network with this spec, such as resnet18, group norm."""
    if spec.get("kind") == "joined":
        return "two halves"
    inner = spec.get("backbone", spec)
    words = [str(inner.get("name", inner.get("kind")))]
    words += [str(spec["planes"])] if spec.get("kind") == "planes" else []
    words += [f"patches of {inner['patch']} px"] if inner.get("patch") else []
    words += {"small": ["32-px stem"], "medium": ["64-px stem"]}.get(str(inner.get("stem")), [])
    words += [f"{inner['norm']} norm"] if inner.get("norm", "batch") != "batch" else []
    return ", ".join(words)
