"""What all protocols of transfer share: a cell is one encoder, pre-trained or random, under one protocol and seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from core.nets.encoder import Encoder
from core.nets.specs import build_spec
from core.rng import mixed
from core.train import checkpoint
from core.train.dist import Device, pick_device

WEIGHTS = ("pretrained", "random")
Results = dict[str, dict[str, dict[str, list[float]]]]
"""Role -> protocol -> weights (pretrained, random) -> the figure of each seed."""
T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """Where and how cells are computed."""

    device: torch.device
    bf16: bool

    @staticmethod
    def of(device: Device, precision: Literal["auto", "fp32", "bf16"]) -> Machine:
        place = pick_device(device)
        return Machine(place, precision == "bf16" or (precision == "auto" and place.type == "cuda"))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


# --- encoders -------------------------------------------------------------------------------------------------


def saved_encoders(ckpt: Path, roles: Sequence[str] = ()) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A checkpoint's file and what it holds of its encoders of RGB, by role; ``roles`` = none: all of them."""
    file = checkpoint.find(ckpt)
    encoders = checkpoint.load(file)["encoders"]
    of_rgb = [role for role, saved in encoders.items() if build_spec(saved["spec"]).planes == 3]
    if unknown := sorted(set(roles) - set(of_rgb)):
        raise ValueError(f"{file} has no {unknown[0]} that sees RGB alone: it has {', '.join(of_rgb)}")
    return file, {role: encoders[role] for role in roles or of_rgb}


def build(saved: dict[str, Any], weights: str, seed: int) -> Encoder:
    """The encoder that is saved, or the same network with random weights, which the seed sets."""
    torch.manual_seed(mixed(seed, 1))
    encoder = build_spec(saved["spec"])
    if weights == "pretrained":
        encoder.load_state_dict(saved["state"])
    return encoder


@torch.no_grad()
def settle_statistics(encoder: Encoder, batches: Iterable[Tensor], machine: Machine) -> None:
    """Batch norms take the training images' statistics: random weights have none of their own, and a frozen encoder
    of pre-training has another data set's. Done for both alike. batches: some of the images, (n,3,H,W) in [0,1]."""
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        momentum = norms[0].momentum
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        encoder.train()
        for images in batches:
            with machine.autocast():
                encoder(images.to(machine.device))
        for norm in norms:
            norm.momentum = momentum
    encoder.eval()


def spaced(count: int, most: int) -> Tensor:
    """Up to ``most`` indices below ``count``, evenly spaced: neighbours are often frames of one film."""
    return torch.arange(min(count, most)) * count // min(count, most)


def warmed(step: int, steps: int) -> float:
    """Part of the highest learning rate: a tenth of the steps upwards, then down a cosine to 0."""
    warm = max(1, steps // 10)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


# --- results --------------------------------------------------------------------------------------------------


def at(nested: dict[str, dict[str, dict[str, list[T]]]], role: str, protocol: str, weights: str) -> list[T]:
    return nested.setdefault(role, {}).setdefault(protocol, {}).setdefault(weights, [])


def markdown(results: Results) -> str:
    """In per cent: mean and deviation over the seeds; gain and wins over the seeds that both have."""
    lines = [
        "| encoder       | protocol         | pre-trained | random init |  gain | seeds won |",
        "|---------------|------------------|------------:|------------:|------:|----------:|",
    ]
    for role, protocols in results.items():
        for protocol, cell in protocols.items():
            pairs = list(zip(cell.get("pretrained", []), cell.get("random", []), strict=False))
            if not pairs:
                continue
            ours, base = ([pair[i] for pair in pairs] for i in (0, 1))
            gain = 100 * (statistics.fmean(ours) - statistics.fmean(base))
            won = f"{sum(a > b for a, b in pairs)}/{len(pairs)}"
            lines.append(
                f"| {role:13} | {protocol:16} | {_spread(ours):>11} | {_spread(base):>11} | {gain:+5.1f} | {won:>9} |"
            )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * deviation:.1f}"
