"""Errors of predicted colors as ab of Lab (Zhang 2016, arXiv:1603.08511, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from kintsugi.color import ab_bins, count_bins, soft_encode


def ab_auc(predicted: Tensor, truth: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Area under the cumulative histogram of ab errors from 0 to 150, in percent, for the pixels of each bin.

    predicted, truth: ab (N,2,H,W); bins (Q,2). A pixel with error e has the area max(0, 1 - e / 150). Returns the sums
    over the pixels of each true bin, (Q,), and the numbers of pixels, (Q,). The paper's raw figure is the total of the
    sums over the total of the numbers. Its rebalanced figure, in which all colors have equal weight, is the mean of sum
    / number over the bins that occur.
    """
    score = (1 - (predicted - truth).norm(dim=1) / 150).clamp(min=0).flatten()  # (N*H*W,)
    nearest = soft_encode(truth, bins, neighbors=1)[0].flatten()
    sums = torch.zeros(len(bins), device=score.device).index_add_(0, nearest, score)
    return 100 * sums, count_bins(nearest, len(bins))


class AbErrors:
    """Both figures of ``ab_auc`` over many batches."""

    def __init__(self) -> None:
        self.sums = torch.zeros(len(ab_bins()))
        self.numbers = torch.zeros_like(self.sums)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """predicted, truth: ab (N,2,H,W)."""
        sums, numbers = ab_auc(predicted, truth, ab_bins().to(truth.device))
        self.sums += sums.cpu()
        self.numbers += numbers.cpu()

    def means(self) -> dict[str, float]:
        """In percent: auc over all pixels, and auc_rebalanced, the mean over the bins that occur."""
        present = self.numbers > 0
        return {
            "auc": (self.sums.sum() / self.numbers.sum()).item(),
            "auc_rebalanced": (self.sums[present] / self.numbers[present]).mean().item(),
        }


def mean_chroma(ab: Tensor) -> Tensor:
    """Mean length of the ab vectors (N,2,H,W) of each image, (N,): 0 for gray images, about 10 to 25 for photos."""
    return ab.norm(dim=1).mean((1, 2))
