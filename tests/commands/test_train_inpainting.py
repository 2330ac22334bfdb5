"""What a person runs first: training, and what it leaves to look at."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from helpers.command_line import ROOT, TINY, Run
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
    assert "final/psnr" in tags["scalars"]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_the_end_prints_and_writes_the_table_with_baselines(trained: Path):
    quality = json.loads((trained / "quality.json").read_text())
    assert list(quality) == ["mean color", "biharmonic", "inpainting"]
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


def test_make_help_lists_every_job_with_one_line():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    jobs = re.findall(r"^make (\S+) +\S", said, re.MULTILINE)
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared
    assert jobs == declared[1].split()


def recipe(job: str) -> str:
    """What the job would run, with single spaces: an option that is not given leaves a gap."""
    given = ["DATA=some folder", "CKPT=x", "IN=a.jpg", "MASK=m.png", "OUT=o.png", "ARGS=--size 96"]
    said = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", job, *given], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return " ".join(said.split())


def jobs(*prefixes: str) -> list[str]:
    declared = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [job for job in declared if job.startswith(prefixes)]


@pytest.mark.parametrize("job", jobs("train", "eval", "mend", "colorize", "upscale", "scenes"))
def test_recipes_pass_on_what_they_are_given(job: str):
    said = recipe(job)
    assert re.search(r"python -m kintsugi\.", said)
    assert "--size 96" in said
    if job.startswith(("train", "eval")):
        assert "--data 'some folder'" in said
    if job in ("mend", "colorize", "upscale"):
        assert "--in 'a.jpg'" in said
        assert "--out 'o.png' --ckpt 'x'" in said
    if job == "mend":
        assert "--mask 'm.png'" in said


def test_gpus_start_the_same_module_under_torchrun():
    said = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "train-inpainting", "GPUS=8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "torchrun --standalone --nproc-per-node=8 -m kintsugi.recon.inpainting" in said
