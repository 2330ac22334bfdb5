"""Errors of predicted colors, measured in the ab plane of Lab (Zhang 2016, arXiv:1603.08511, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from kintsugi.color import ab_bins, count_bins, soft_encode
from kintsugi.upload import constant


def ab_auc(predicted: Tensor, truth: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Area under the cumulative histogram of ab errors from 0 to 150, in percent, for the pixels of each bin.

    predicted, truth: ab (N,2,H,W); bins (Q,2). A pixel with error e has the area max(0, 1 - e / 150). Returns, for each
    bin of the truth, the sum of its pixels' areas and the number of its pixels, (Q,) each. The paper's raw figure is
    the sum of all sums divided by the number of all pixels. Its rebalanced figure, in which all colors have equal
    weight, is the mean of sum / number over the bins that occur.
    """
    score = (1 - (predicted - truth).norm(dim=1) / 150).clamp(min=0).flatten()  # (N*H*W,)
    nearest = soft_encode(truth, bins, neighbors=1)[0].flatten()
    sums = torch.zeros(len(bins), device=score.device).index_add_(0, nearest, score)
    return 100 * sums, count_bins(nearest, len(bins))


class AbErrors:
    """Collects ``ab_auc`` over many batches."""

    def __init__(self) -> None:
        self.sums = torch.zeros(len(ab_bins()))
        self.numbers = torch.zeros_like(self.sums)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Adds a batch. predicted, truth: ab (N,2,H,W)."""
        sums, numbers = ab_auc(predicted, truth, constant(ab_bins(), truth.device))
        self.sums += sums.cpu()
        self.numbers += numbers.cpu()

    def means(self) -> dict[str, float]:
        """The paper's figures in percent: ``auc`` is the raw one, ``auc_rebalanced`` the other one (``ab_auc``)."""
        present = self.numbers > 0
        return {
            "auc": (self.sums.sum() / self.numbers.sum()).item(),
            "auc_rebalanced": (self.sums[present] / self.numbers[present]).mean().item(),
        }


def mean_chroma(ab: Tensor) -> Tensor:
    """Mean length of the ab vectors (N,2,H,W) of each image, (N,): 0 for gray images, about 10 to 25 for photos."""
    return ab.norm(dim=1).mean((1, 2))
