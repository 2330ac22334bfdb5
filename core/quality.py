"""How good what stands in a hole is, beside the truth; pure functions, and a running mean of them."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from core.perceptual import Lpips


def in_hole(values: Tensor, mask: Tensor) -> Tensor:
    """Means (N,) of ``values`` (N,C,H,W) over each image's hole, mask (N,1,H,W); over all of it where there is none."""
    mask = mask + (mask.amax((1, 2, 3), keepdim=True) == 0).to(mask)
    return (values.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def hole_figures(
    mended: Tensor, truth: Tensor, mask: Tensor, lpips: Lpips | None = None
) -> dict[str, Tensor]:
    """Figures of each image, (N,): images (N,3,H,W) in [0,1], masks (N,1,H,W).

    psnr (dB), l1 (%) and l2 (%) over the hole's pixels: with the central hole these are the Paris StreetView figures
    of Pathak 2016 (table 1), where l1 and l2 are mean |d| and mean d^2 in per cent of a range of 1. ssim (11x11
    windows, sigma 1.5) and lpips are the means of their maps over the hole.
    """
    difference = mended - truth
    squared = in_hole(difference.square(), mask)
    _, ssim = structural_similarity_index_measure(mended, truth, data_range=1.0, return_full_image=True)
    figures = {
        "psnr": -10 * squared.clamp(min=1e-10).log10(),
        "ssim": in_hole(ssim, mask),
        "l1": 100 * in_hole(difference.abs(), mask),
        "l2": 100 * squared,
    }
    if lpips is not None:
        figures["lpips"] = in_hole(lpips(mended, truth), mask)
    return figures


class HoleQuality:
    """The mean of ``hole_figures`` over images that come in batches."""

    def __init__(self, lpips: Lpips | None = None) -> None:
        self.lpips, self.count = lpips, 0
        self.sums: dict[str, float] = {}

    def add(self, mended: Tensor, truth: Tensor, mask: Tensor) -> None:
        for name, values in hole_figures(mended, truth, mask, self.lpips).items():
            self.sums[name] = self.sums.get(name, 0.0) + values.double().sum().item()
        self.count += len(truth)

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()}
