from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused, Run, refusal
from skimage.metrics import structural_similarity
from torch import Tensor

from kintsugi import table
from kintsugi.augment import masks
from kintsugi.eval import native_holes
from kintsugi.eval.hole_quality import CORNER, compare, main, measure, rows
from kintsugi.fill.classical import biharmonic, mean_color
from kintsugi.metrics.reconstruction import HoleQuality, hole_figures
from kintsugi.train import shipped


@pytest.fixture
def truth() -> Tensor:
    """Smooth images, (3,3,32,32)."""
    coarse = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)


@pytest.fixture
def mask() -> Tensor:
    return masks.regions(3, 32, torch.Generator().manual_seed(1))


def test_figures_are_those_of_loops_and_of_scikit_image(truth: Tensor, mask: Tensor):
    noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(2))
    mask[..., :5, :] = mask[..., -5:, :] = mask[..., :5] = mask[..., -5:] = 0  # at borders the two pad differently
    mended = torch.where(mask > 0.5, 0.5 * truth + 0.5 * noise, truth)
    figures = hole_figures(mended, truth, mask)
    for n in range(3):
        a, b = (x[n].double().permute(1, 2, 0).numpy() for x in (mended, truth))
        hole = mask[n, 0].numpy() > 0.5
        absolute, squared, count = 0.0, 0.0, 0
        for y in range(32):
            for x in range(32):
                for c in range(3) if hole[y, x] else ():
                    absolute += abs(a[y, x, c] - b[y, x, c])
                    squared += (a[y, x, c] - b[y, x, c]) ** 2
                    count += 1
        _, ssim = structural_similarity(
            a,
            b,
            full=True,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
        )
        assert figures["l1"][n].item() == pytest.approx(100 * absolute / count, rel=1e-4)
        assert figures["l2"][n].item() == pytest.approx(100 * squared / count, rel=1e-4)
        assert figures["psnr"][n].item() == pytest.approx(10 * np.log10(count / squared), abs=1e-3)
        assert figures["ssim"][n].item() == pytest.approx(ssim[hole].mean(), abs=1e-4)


def test_the_running_mean_does_not_depend_on_the_batches(truth: Tensor, mask: Tensor):
    mended = mean_color(truth, mask)
    together, apart = HoleQuality(), HoleQuality()
    together.add(mended, truth, mask)
    apart.add(mended[:2], truth[:2], mask[:2])
    apart.add(mended[2:], truth[2:], mask[2:])
    assert apart.means() == pytest.approx(together.means(), rel=1e-5)
    assert apart.means()["l1"] == pytest.approx(hole_figures(mended, truth, mask)["l1"].mean().item(), rel=1e-5)


def test_a_perfect_mend_has_finite_figures(truth: Tensor, mask: Tensor):
    figures = compare({"perfect": lambda image, hole: image}, truth, mask)["perfect"]
    assert figures == pytest.approx({"psnr": 100, "ssim": 1, "l1": 0, "l2": 0}, abs=1e-4)


def test_fills_keep_the_pixels_outside_the_holes_and_depend_on_nothing_else(truth: Tensor, mask: Tensor):
    hole = (mask > 0.5).expand_as(truth)
    damaged = torch.where(hole, torch.ones(()), truth)
    for fill in (mean_color, biharmonic):
        filled = fill(truth, mask)
        assert torch.equal(filled[~hole], truth[~hole])
        torch.testing.assert_close(filled, fill(damaged, mask), atol=1e-5, rtol=0)


def test_fills_do_what_their_names_promise(truth: Tensor):
    mask = masks.center(3, 32)
    color = mean_color(truth, mask)[1, :, 16, 16]
    seen = truth[1][:, mask[1, 0] < 0.5]
    torch.testing.assert_close(color, seen.mean(1))
    plane = torch.linspace(0.1, 0.9, 32).expand(1, 3, 32, 32)  # its Laplacian's Laplacian is 0
    torch.testing.assert_close(biharmonic(plane, mask[:1]), plane, atol=1e-3, rtol=0)


def test_the_table_has_a_row_for_each_hole_and_fill(truth: Tensor):
    def perfect(image: Tensor, mask: Tensor) -> Tensor:
        return image

    result = measure({"context encoder": perfect}, truth, ("center", "blocks"))
    assert list(result) == ["center", "blocks"]
    for fills in result.values():
        assert list(fills) == ["mean color", "biharmonic", "context encoder"]
        assert fills["context encoder"]["psnr"] == pytest.approx(100, abs=0.1)
        assert fills["biharmonic"]["psnr"] > fills["mean color"]["psnr"]  # on smooth images
    assert measure({"context encoder": perfect}, truth, ("center", "blocks")) == result
    lines = table.markdown(rows(result), CORNER).splitlines()
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1
    assert "PSNR dB" in lines[0]
    assert "LPIPS" not in lines[0]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        f"{kind}, {name}" for kind in ("center", "blocks") for name in ("mean color", "biharmonic", "context encoder")
    ]


def test_the_command_prints_the_table_and_writes_it(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = "--count 2 --split all --kinds center regions --device cpu --lpips off".split()
    main(["--ckpt", str(trained), "--out", str(tmp_path), *options])
    printed = capsys.readouterr().out
    assert "2 images of" in printed
    for fill in ("biharmonic", "biharmonic, patches", "... seamless", "... seamless, patches"):
        assert f"center, {fill} " in printed
    assert (tmp_path / "quality.md").read_text() in printed
    result = json.loads((tmp_path / "quality.json").read_text())
    assert set(result) == {"center", "regions"}
    assert set(result["center"]["context encoder"]) == {"psnr", "ssim", "l1", "l2"}


def test_the_folder_for_the_table_is_made(trained: Path, tmp_path: Path):
    out = tmp_path / "not" / "there"
    main(["--ckpt", str(trained), "--out", str(out), *"--count 1 --kinds center --device cpu --lpips off".split()])
    assert {file.name for file in out.iterdir()} == {"quality.md", "quality.json"}


def test_a_missing_checkpoint_is_one_line(run: Run):
    assert "no checkpoint at nowhere" in refusal(run("kintsugi.eval.hole_quality", "--ckpt", "nowhere"))


def test_photos_are_measured_at_native_resolution(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Rows of all fills, and of both kinds of checkpoints; the deviation is that over the photos."""
    ships = shipped.FOLDER / "mender.safetensors"
    options = f"--data {photos} --native 64 --every 8 --device cpu --lpips off --out {tmp_path}".split()
    main(["--ckpt", str(trained), str(ships), *options])
    assert "3 photos of" in capsys.readouterr().out
    result = json.loads((tmp_path / "quality.json").read_text())
    assert list(result) == ["scratch of 10 px", "stroke of 24 px", "box of 40 px", "box of 80 px", "regions"]
    names = ["biharmonic", "Telea", "Navier-Stokes", "Navier-Stokes, patches"]
    names += ["context encoder", "context encoder, patches", "mender", "mender, patches"]
    assert all(list(fills) == names for fills in result.values())
    truth = native_holes.squares(photos, 64, 8, 256)
    mask = native_holes.holes(64, 3)["box of 40 px"]
    psnr = hole_figures(biharmonic(truth, mask), truth, mask)["psnr"]
    row = result["box of 40 px"]["biharmonic"]
    assert row["psnr"] == pytest.approx(psnr.mean().item(), rel=1e-5)
    assert row["psnr_deviation"] == pytest.approx(psnr.std().item(), rel=1e-4)
    assert f"{row['psnr']:#.4g} ± {row['psnr_deviation']:#.2g}" in (tmp_path / "quality.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--native 64 --data nowhere", "no photos there"),
        ("--native 640 --data {photos}", "use squares of at most 72 px"),
        ("--ckpt a b", "add --native 160"),
    ],
)
def test_bad_settings_are_one_line(options: str, message: str, photos: Path, refused: Refused):
    assert message in refused(main, options.format(photos=photos).split())
