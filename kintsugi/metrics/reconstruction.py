"""Figures that compare a reconstruction with the truth, in a hole or in the whole image."""

from __future__ import annotations

from torch import Tensor

from kintsugi.losses.perceptual import Lpips


def in_hole(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``values`` (N,C,H,W) over the hole of each image, (N,). mask: (N,1,H,W), 1 = hole.

    For an image without a hole it is the mean over all pixels.
    """
    mask = mask + (mask.amax((1, 2, 3), keepdim=True) == 0).to(mask)
    return (values.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def hole_figures(mended: Tensor, truth: Tensor, mask: Tensor, lpips: Lpips | None = None) -> dict[str, Tensor]:
    """Figures of each image, (N,), over the pixels of its hole.

    mended, truth: (N,3,H,W) in [0,1]. mask: (N,1,H,W), 1 = hole. psnr is in dB. l1 and l2 are in percent: the means of
    the absolute and of the squared difference. With the central hole they are the figures of Pathak 2016 for Paris
    StreetView (table 1). ssim (11x11 windows, sigma 1.5) and lpips are the means of their maps over the hole.
    """
    # Imported here: slow, and --help does not need it.
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    difference = mended - truth
    squared = in_hole(difference.square(), mask)
    _, ssim = similarity(mended, truth, data_range=1.0, return_full_image=True)
    figures = {
        "psnr": -10 * squared.clamp(min=1e-10).log10(),
        "ssim": in_hole(ssim, mask),
        "l1": 100 * in_hole(difference.abs(), mask),
        "l2": 100 * squared,
    }
    if lpips is not None:
        figures["lpips"] = in_hole(lpips(mended, truth), mask)
    return figures


def luma(image: Tensor) -> Tensor:
    """Y of BT.601 YCbCr: RGB (N,3,H,W) in [0,1] -> (N,1,H,W) in 16..235.

    Figures of super-resolution are measured on it.
    """
    red, green, blue = image.unbind(1)
    return (16 + 65.481 * red + 128.553 * green + 24.966 * blue).unsqueeze(1)


def luma_figures(image: Tensor, truth: Tensor, shave: int = 4) -> dict[str, Tensor]:
    """PSNR in dB and SSIM of luma, (N,) each. image, truth: RGB (N,3,H,W) in [0,1].

    This is the protocol of SRGAN's tables (Ledig 2017, arXiv:1609.04802, section 3.1): images are rounded to 8 bits,
    and ``shave`` px are cut off at each border. SSIM has 11x11 windows, sigma 1.5.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    inner = (..., slice(shave, -shave), slice(shave, -shave))
    first, second = (luma((255 * x.clamp(0, 1)).round() / 255)[inner] for x in (image, truth))
    squared = (first - second).square().mean((1, 2, 3))
    ssim = similarity(first, second, data_range=255.0, gaussian_kernel=True, sigma=1.5, reduction="none")
    assert isinstance(ssim, Tensor)
    return {"psnr": 10 * (255**2 / squared.clamp(min=1e-4)).log10(), "ssim": ssim.view(-1)}


class HoleQuality:
    """Collects ``hole_figures`` over many batches."""

    def __init__(self, lpips: Lpips | None = None) -> None:
        self.lpips, self.count = lpips, 0
        self.sums: dict[str, float] = {}

    def add(self, mended: Tensor, truth: Tensor, mask: Tensor) -> None:
        """Adds a batch; arguments as for ``hole_figures``."""
        for name, values in hole_figures(mended, truth, mask, self.lpips).items():
            self.sums[name] = self.sums.get(name, 0.0) + values.double().sum().item()
        self.count += len(truth)

    def means(self) -> dict[str, float]:
        """The mean of each figure over all images."""
        return {name: total / self.count for name, total in self.sums.items()}
