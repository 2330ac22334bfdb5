"""SimCLR's and BYOL's losses compared with lightly's on the same tensors: values, gradients and time.

Run ``python -m bench.contrastive_losses`` with lightly installed. The two losses take turns. Times are medians of 20
runs, after three that are not counted. "ratio" is lightly's time divided by ours.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.common import RESULTS
from kintsugi.contrastive.byol import regression_loss
from kintsugi.losses.infonce import info_nce, nt_xent_logits
from kintsugi.train.config import parse_command, user_errors

Loss = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (N,D) of two views of N images -> the loss, ()."""


@dataclass(frozen=True, kw_only=True)
class LossesConfig:
    """Compares the contrastive losses with lightly's: values, gradients and time."""

    batch: int = 512
    """Number of images. Each has two views."""
    dimensions: int = 128
    """Dimensions of the embeddings."""
    out: Path = RESULTS
    """Folder for contrastive-losses.json."""


def pairs() -> dict[str, tuple[Loss, Loss]]:
    """The losses to compare: name -> (ours, lightly's)."""
    from lightly.loss import NegativeCosineSimilarity, NTXentLoss  # imported here: not needed for --help

    return {
        "NT-Xent, temperature .5": (lambda a, b: info_nce(*nt_xent_logits(a, b, 0.5)), NTXentLoss(temperature=0.5)),
        # |p - z|^2 of unit vectors is 2 - 2 cos.
        "BYOL's regression": (regression_loss, lambda a, b: 2 + 2 * NegativeCosineSimilarity()(a, b)),
    }


def timed(loss: Loss, views: tuple[Tensor, Tensor]) -> tuple[float, Tensor, Tensor]:
    """Computes a loss and its gradient. Returns the seconds this took, the loss, and the gradient of the first view
    (N,D)."""
    first, second = views[0].clone().requires_grad_(), views[1].clone()
    start = time.perf_counter()
    value = loss(first, second)
    (gradient,) = torch.autograd.grad(value, first)
    return time.perf_counter() - start, value.detach(), gradient


def run(config: LossesConfig) -> None:
    """Measures all losses, and prints and writes the results."""
    torch.manual_seed(0)
    views = torch.randn(config.batch, config.dimensions), torch.randn(config.batch, config.dimensions)
    result: dict[str, dict[str, object]] = {}
    for name, (ours, theirs) in pairs().items():
        runs = [(timed(ours, views), timed(theirs, views)) for _ in range(23)][3:]
        (_, value, gradient), (_, other, other_gradient) = runs[-1]
        times = [statistics.median(run[i][0] for run in runs) for i in (0, 1)]
        result[name] = {
            "difference of values": (value - other).abs().item(),
            "relative difference of gradients": ((gradient - other_gradient).norm() / gradient.norm()).item(),
            "milliseconds": round(1e3 * times[0], 3),
            "lightly, milliseconds": round(1e3 * times[1], 3),
            "ratio": round(times[1] / times[0], 2),
        }
    result["settings"] = {
        "batch": config.batch,
        "dimensions": config.dimensions,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    text = json.dumps(result, indent=1)
    print(text)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "contrastive-losses.json").write_text(text + "\n")


if __name__ == "__main__":
    with user_errors():
        run(parse_command(LossesConfig))
