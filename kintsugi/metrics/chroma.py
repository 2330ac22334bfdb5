"""How far predicted colors are from the truth, as ab of Lab (Zhang 2016, arXiv:1603.08511, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from kintsugi.color import ab_bins, count_bins, soft_encode


def ab_auc(predicted: Tensor, truth: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Area under the cumulative histogram of ab errors from 0 to 150, per cent: raw, and of each bin (section 3.1).

    ab (N,2,H,W). An error e counts max(0, 1 - e / 150), which is that area. Returns sums over the pixels of each true
    bin, (Q,), and their numbers, (Q,): raw is the sums' total over the numbers' total; rebalanced, where every color
    counts alike (the paper's weights 1/p), is the mean over the bins that occur of sum / number.
    """
    score = (1 - (predicted - truth).norm(dim=1) / 150).clamp(min=0).flatten()  # (N*H*W,)
    nearest = soft_encode(truth, bins, neighbors=1)[0].flatten()
    sums = torch.zeros(len(bins), device=score.device).index_add_(0, nearest, score)
    return 100 * sums, count_bins(nearest, len(bins))


class AbErrors:
    """Both areas of ``ab_auc`` over many batches."""

    def __init__(self) -> None:
        self.sums = torch.zeros(len(ab_bins()))
        self.numbers = torch.zeros_like(self.sums)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """ab (N,2,H,W)."""
        sums, numbers = ab_auc(predicted, truth, ab_bins().to(truth.device))
        self.sums += sums.cpu()
        self.numbers += numbers.cpu()

    def means(self) -> dict[str, float]:
        """auc, of all pixels, and auc_rebalanced, the mean over the bins that occur, per cent."""
        present = self.numbers > 0
        return {
            "auc": (self.sums.sum() / self.numbers.sum()).item(),
            "auc_rebalanced": (self.sums[present] / self.numbers[present]).mean().item(),
        }


def mean_chroma(ab: Tensor) -> Tensor:
    """Mean length of ab (N,2,H,W) of each image, (N,): 0 is gray, photos have about 10 to 25."""
    return ab.norm(dim=1).mean((1, 2))
