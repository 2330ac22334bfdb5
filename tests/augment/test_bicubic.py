"""Bicubic resampling against the kernel summed in nested loops, and against the benchmark's own files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kintsugi.augment.bicubic import enlarge, shrink
from kintsugi.metrics.reconstruction import luma, luma_figures
from kintsugi.rng import generator


def keys(x: float) -> float:
    """Keys' cubic kernel, a = -.5."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def line(values: list[float], size: int) -> list[float]:
    """imresize along one axis: the kernel is widened for shrinking, and border pixels are repeated."""
    scale = size / len(values)
    widen = max(1.0, 1 / scale)
    result = []
    for i in range(size):
        center = (i + 0.5) / scale - 0.5
        taps = range(int(center - 3 * widen), int(center + 3 * widen) + 1)
        weights = [keys((tap - center) / widen) for tap in taps]
        seen = [values[min(max(tap, 0), len(values) - 1)] for tap in taps]
        result.append(sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights))
    return result


@pytest.mark.parametrize("size", [6, 96])
def test_equals_the_kernel_in_loops(size: int):
    values = torch.rand(24, generator=generator(0))
    image = values.view(1, 1, 24, 1).expand(1, 3, 24, 24).contiguous()
    found = shrink(image, 4) if size == 6 else enlarge(image, 4)
    expected = torch.tensor(line(values.tolist(), size))
    torch.testing.assert_close(found[0, 0, :, 3], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.mT[0, 0, 3], expected, atol=1e-5, rtol=0)


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="crop it to multiples of 4"):
        shrink(torch.zeros(1, 3, 24, 26), 4)


def test_luma_is_that_of_scikit_image_and_figures_those_of_loops():
    from skimage.color import rgb2ycbcr
    from skimage.metrics import structural_similarity

    first, second = (torch.rand(1, 3, 40, 44, generator=generator(1)), torch.rand(1, 3, 40, 44, generator=generator(2)))
    first, second = (255 * first).round() / 255, (0.7 * first + 0.3 * second)
    second = (255 * second).round() / 255
    y = [rgb2ycbcr(x[0].permute(1, 2, 0).double().numpy())[..., 0] for x in (first, second)]
    np.testing.assert_allclose(luma(first)[0, 0].numpy(), y[0], atol=1e-3)
    inner = [channel[4:-4, 4:-4] for channel in y]
    found = luma_figures(first, second)
    psnr = 10 * np.log10(255**2 / np.mean((inner[0] - inner[1]) ** 2))
    assert found["psnr"].item() == pytest.approx(psnr, abs=1e-3)
    ssim = structural_similarity(
        *inner, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, win_size=11
    )
    assert found["ssim"].item() == pytest.approx(ssim, abs=2e-3)


@pytest.mark.realdata
@pytest.mark.skipif("KINTSUGI_DATA" not in os.environ, reason="KINTSUGI_DATA names no folder")
def test_figures_on_set5_are_those_of_the_papers():
    """The small images, made by MATLAB, within 2 levels; and the known figures of bicubic, 28.43 dB and .811."""
    folder = Path(os.environ["KINTSUGI_DATA"]) / "set5_x4"
    figures = []
    for file in sorted((folder / "HR").iterdir()):
        truth, small = (
            torch.from_numpy(np.array(Image.open(f).convert("RGB"))).permute(2, 0, 1)[None] / 255
            for f in (file, folder / "LR" / file.name)
        )
        truth = truth[..., : truth.shape[2] // 4 * 4, : truth.shape[3] // 4 * 4]
        difference = (255 * shrink(truth, 4).clamp(0, 1)).round() - 255 * small
        assert difference.abs().max() <= 2.01
        figures.append(luma_figures(enlarge(small, 4), truth))
    assert sum(f["psnr"].item() for f in figures) / 5 == pytest.approx(28.43, abs=0.01)
    assert sum(f["ssim"].item() for f in figures) / 5 == pytest.approx(0.811, abs=0.001)
