"""What a person runs first: training, and what it leaves to look at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_line import TINY, Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kintsugi.train import checkpoint
from kintsugi.train.log import panel


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on the built-in scenes, by the command's own defaults otherwise."""
    from kintsugi.recon import inpainting

    runs = tmp_path_factory.mktemp("runs")
    inpainting.main([*TINY, "--scenes", "24", "--runs", str(runs)])
    return checkpoint.find(runs / "inpainting" / "latest").parent


def test_a_run_that_fails_before_its_first_checkpoint_does_not_hide_the_one_before(trained: Path):
    from kintsugi.recon import inpainting

    before = (trained.parent / "latest").read_text()
    with pytest.raises(SystemExit):
        inpainting.main([*TINY, "--data", "nowhere", "--runs", str(trained.parents[1])])
    assert (trained.parent / "latest").read_text() == before == trained.name + "\n"


def test_pictures_scalars_and_settings_are_in_tensorboard(trained: Path):
    events = EventAccumulator(str(trained), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    title = "pictures/input | hole | mended | truth"
    assert tags["images"] == [title]
    assert [image.step for image in events.Images(title)] == [0, 3, 6]  # the same place, growing sharper
    for name in (
        "loss/reconstruction",
        "loss/adversarial",
        "loss/adversarial_weighted",
        "loss/generator",
        "loss/discriminator",
        "discriminator/real",
        "discriminator/fake",
        "grad_norm/generator",
        "grad_norm/discriminator",
        "weight_norm/generator",
        "lr/generator",
        "lr/discriminator",
        "speed/images_per_second",
        "heldout/psnr",
        "heldout/ssim",
        "heldout/l1",
        "heldout/l2",
    ):
        assert panel(name) in tags["scalars"], name
    assert "run summary/psnr" in tags["scalars"]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_the_end_prints_and_writes_the_table_with_baselines(trained: Path):
    quality = json.loads((trained / "quality.json").read_text())
    assert list(quality) == ["mean color", "biharmonic", "pixels", "random init", "inpainting"]
    assert {"psnr", "ssim", "l1", "l2"} <= set(quality["biharmonic"])
    assert "| biharmonic " in (trained / "quality.md").read_text()


def test_checkpoints_are_kept_as_promised(trained: Path):
    assert sorted(p.name for p in trained.glob("*.pt")) == [
        "before-adversary.pt",
        "best.pt",
        "step-00000002.pt",
        "step-00000004.pt",
        "step-00000006.pt",
    ]


def test_help_shows_every_setting_with_its_meaning(run: Run):
    done = run("kintsugi.recon.inpainting", "--help")
    assert done.returncode == 0
    for option in ("--data", "--mask", "--encoder", "--adversarial", "--resume", "--preset"):
        assert option in done.stdout
