"""SimCLR's and BYOL's losses beside lightly's, on the same tensors: values, gradients and time.

``pip install lightly && python bench/contrastive_losses.py``; writes bench/results/contrastive-losses.json. Times are
medians of 20, one after the other in turns; their ratio is lightly's over ours.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from torch import Tensor

from kintsugi.contrastive.byol import regression_loss
from kintsugi.losses.infonce import info_nce, nt_xent_logits

Loss = Callable[[Tensor, Tensor], Tensor]
PAIRS: dict[str, tuple[Loss, Loss]] = {
    "NT-Xent, temperature .5": (lambda a, b: info_nce(*nt_xent_logits(a, b, 0.5)), NTXentLoss(temperature=0.5)),
    # |p - z|^2 of unit vectors is 2 - 2 cos.
    "BYOL's regression": (regression_loss, lambda a, b: 2 + 2 * NegativeCosineSimilarity()(a, b)),
}


def timed(loss: Loss, views: tuple[Tensor, Tensor]) -> tuple[float, Tensor, Tensor]:
    """Seconds for value and gradient, the value, the first view's gradient."""
    first, second = views[0].clone().requires_grad_(), views[1].clone()
    start = time.perf_counter()
    value = loss(first, second)
    (gradient,) = torch.autograd.grad(value, first)
    return time.perf_counter() - start, value.detach(), gradient


def main() -> None:
    torch.manual_seed(0)
    views = torch.randn(512, 128), torch.randn(512, 128)
    result = {}
    for name, (ours, theirs) in PAIRS.items():
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
        "batch": 512,
        "dimensions": 128,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "contrastive-losses.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
