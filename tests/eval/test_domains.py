"""The comparison with and without a discriminator, and the surfaces that a trained net predicts for photos."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kintsugi.apps import surfaces
from kintsugi.eval import domains
from kintsugi.eval.domains import DomainsConfig, markdown
from kintsugi.recon import synthetic
from kintsugi.train import checkpoint

TINY = (
    "--size 64 --short-side 72 --scenes 24 --batch 4 --steps 2 --eval-every 2 --save-every 2 --show-every 2 "
    "--eval-images 4 --pool 6 --device cpu"
).split()
ONE_RUN = [*TINY, *"--save-every 1 --seeds 1 --ways alternate".split()]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("domains") / "all"
    domains.main([*TINY, "--seeds", "2", "--real", str(photos), "--out", str(folder)])
    return folder


def test_each_way_is_trained_with_each_seed_and_differs_in_the_adversary_alone(compared: Path):
    runs = sorted(p.name for p in compared.iterdir() if p.is_dir())
    assert runs == sorted(f"{way}-seed{n}" for way in ("without", "alternate", "reversal") for n in (0, 1))
    configs = {name: checkpoint.load(checkpoint.find(compared / name))["config"] for name in runs}
    base = configs["without-seed0"]
    for name, config in configs.items():
        different = {key for key in base if config[key] != base[key]}
        assert different <= {"out", "seed", "adversary", "adversarial"}
        assert config["adversarial"] == (0 if name.startswith("without") else 0.2)
        assert config["seed"] == int(name[-1])


def test_the_table_holds_every_run_and_their_spread(compared: Path):
    figures = json.loads((compared / "domains.json").read_text())["figures"]
    for way in ("without", "alternate", "reversal"):
        for n in (0, 1):
            own = json.loads((compared / f"{way}-seed{n}" / "quality.json").read_text())["synthetic"]
            assert {name: values[n] for name, values in figures[way].items()} == own
    values = figures["alternate"]["depth_rms"]
    text = (compared / "domains.md").read_text()
    assert f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}" in text


def test_finished_runs_are_not_trained_again_and_other_settings_are_refused(
    compared: Path, photos: Path, capsys: pytest.CaptureFixture[str]
):
    options = [*TINY, "--seeds", "2", "--real", str(photos), "--out", str(compared)]
    before = {p: p.stat().st_mtime_ns for p in compared.glob("*/*.pt")}
    domains.main(options)
    assert before == {p: p.stat().st_mtime_ns for p in compared.glob("*/*.pt")}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        domains.main([*options, "--lr", "0.5"])
    assert "was trained with --lr 0.001, not 0.5" in capsys.readouterr().err


def test_unfinished_runs_with_other_settings_are_not_continued(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
):
    options = [*ONE_RUN, "--real", str(photos), "--out", str(tmp_path / "all")]
    domains.main(options)
    run = tmp_path / "all" / "alternate-seed0"
    (run / "step-00000002.pt").unlink()
    (run / "quality.json").unlink()
    with pytest.raises(SystemExit):
        domains.main([*options, "--depth-weight", "1"])
    assert "was trained with --depth-weight 5.0, not 1.0" in capsys.readouterr().err
    assert not (run / "step-00000002.pt").exists()


def test_several_processes_are_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        domains.main([*TINY, "--real", str(photos)])
    assert "without GPUS=" in capsys.readouterr().err


def test_a_comparison_that_was_stopped_continues(tmp_path: Path, photos: Path):
    options = [*ONE_RUN, "--real", str(photos), "--out", str(tmp_path / "all")]
    domains.main(options)
    run = tmp_path / "all" / "alternate-seed0"
    whole = checkpoint.weights_of(checkpoint.load(run / "step-00000002.pt"), "net")
    (run / "step-00000002.pt").unlink()
    (run / "quality.json").unlink()
    domains.main(options)
    again = checkpoint.weights_of(checkpoint.load(run / "step-00000002.pt"), "net")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_the_verdict_counts_seeds():
    text = markdown(
        {
            "without": {"domain_frechet": [0.5, 0.6, 0.7], "depth_rms": [0.1, 0.1, 0.1]},
            "alternate": {"domain_frechet": [0.4, 0.65, 0.3], "depth_rms": [0.1, 0.2, 0.3]},
        }
    )
    assert "alternate against without: domain_frechet -0.150, lower in 2 of 3 seeds" in text
    assert "0.200 ± 0.100" in text


def test_a_run_has_the_settings_of_the_comparison():
    config = DomainsConfig(lr=0.5, seed=7, real="x")
    one = config.of("without", 2)
    assert type(one) is synthetic.SyntheticConfig
    assert (one.lr, one.seed, one.adversarial, one.real) == (0.5, 9, 0.0, "x")
    assert config.of("reversal", 0).adversary == "reversal"


# --- surfaces -------------------------------------------------------------------------------------------------


def test_surfaces_of_a_photo_are_those_of_the_net(compared: Path, photos: Path, tmp_path: Path):
    run = compared / "alternate-seed0"
    source = photos / "photo03.jpg"  # 72 x 96
    with pytest.raises(SystemExit) as stop:
        surfaces.main(["--in", str(source), "--out", str(tmp_path / "seen.png"), "--ckpt", str(run), "--side", "64"])
    assert stop.value.code == 0
    sheet = np.asarray(Image.open(tmp_path / "seen.png"))
    assert sheet.shape == (72 + 4, 4 * 98 + 2, 3)
    photo = np.asarray(Image.open(source))
    assert np.array_equal(sheet[2:-2, 2:98], photo)
    # The same by hand: 64 px high, 85.3 -> 96 wide, by its green channel.
    net, _ = synthetic.load_net(run, torch.device("cpu"))
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
    small = torch.nn.functional.interpolate(image, (64, 96), mode="bilinear", antialias=True)[:, 1:2]
    with torch.no_grad():
        _, predicted = net(small.expand(-1, 3, -1, -1))
    normals = torch.nn.functional.interpolate(predicted.pictures()[1], (72, 96), mode="bilinear")[0]
    shown = sheet[2:-2, 2 + 2 * 98 : 2 + 2 * 98 + 96] / 255
    assert np.abs(shown - normals.permute(1, 2, 0).numpy()).max() < 1 / 255


def test_surfaces_of_a_folder_continue_after_a_damaged_photo(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (900, 40), "red").save(folder / "long.png")
    (folder / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as stop:
        surfaces.main(["--in", str(folder), "--out", str(tmp_path / "out"), "--ckpt", str(compared / "without-seed0")])
    assert stop.value.code == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["long.png"]
    assert "1 of 2 photos failed" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--side", "--largest"])
def test_sizes_below_1_are_refused(option: str, photos: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        surfaces.main(["--in", str(photos), "--out", "x", option, "-1"])
    assert f"{option} must be at least 1, not -1" in capsys.readouterr().err


def test_a_foreign_checkpoint_is_refused(trained: Path, photos: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        surfaces.main(["--in", str(photos), "--out", "x", "--ckpt", str(trained)])
    assert "is a checkpoint of inpainting, not of synthetic" in capsys.readouterr().err
