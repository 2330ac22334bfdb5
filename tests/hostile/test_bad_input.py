"""Bad input gives one clear line that says what to do, and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import ROOT, TINY, Run, refusal
from PIL import Image

from kintsugi.recon import inpainting
from kintsugi.train import checkpoint


def test_a_missing_folder(run: Run):
    assert "nowhere" in refusal(run("kintsugi.recon.inpainting", *TINY, "--data", "nowhere"))


def test_an_empty_folder(run: Run, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal(run("kintsugi.recon.inpainting", *TINY, "--data", "empty"))


def test_a_folder_with_no_readable_image(run: Run, tmp_path: Path):
    (tmp_path / "bad").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "bad" / name).write_text("this is no image")
    output = refusal(run("kintsugi.recon.inpainting", *TINY, "--data", "bad"))
    assert "bad" in output


def test_images_smaller_than_the_crop(run: Run, tmp_path: Path):
    (tmp_path / "small").mkdir()
    for i in range(4):
        Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(tmp_path / f"small/{i}.png")
    assert "--size" in refusal(run("kintsugi.recon.inpainting", *TINY, "--data", "small"))


def test_a_size_the_decoder_cannot_make(run: Run):
    assert "multiple of 32" in refusal(run("kintsugi.recon.inpainting", *TINY, "--size", "70"))


def test_an_unknown_option_names_the_nearest(run: Run):
    assert "did you mean --adversarial?" in refusal(run("kintsugi.recon.inpainting", "--adversarail", "0"))


def test_checkpoints_of_another_method_and_broken_ones(run: Run, photos: Path, tmp_path: Path):
    other = {"method": "colorization", "step": 1, "config": {}, "state": {}, "encoders": {}}
    checkpoint.save(tmp_path / "other/step-00000001.pt", other)
    output = refusal(run("kintsugi.recon.inpainting", "--resume", "--out", "other"))
    assert "is a checkpoint of colorization, not of inpainting" in output
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 not really")
    Image.new("RGB", (70, 70)).save(tmp_path / "photo.png")
    Image.new("L", (70, 70), 255).save(tmp_path / "mask.png")
    output = refusal(
        run("kintsugi.apps.mend", "--in", "photo.png", "--mask", "mask.png", "--out", "o.png", "--ckpt", "broken.pt")
    )
    assert "broken.pt is not a whole checkpoint" in output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(run: Run, photos: Path, tmp_path: Path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "choose another folder" in refusal(
        run("kintsugi.recon.inpainting", *TINY, "--data", photos, "--runs", "locked/runs")
    )


def test_a_folder_of_runs_that_is_a_file(run: Run, photos: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "choose another folder" in refusal(
        run("kintsugi.recon.inpainting", *TINY, "--data", photos, "--runs", "file")
    )


def test_no_space_left_keeps_the_last_good_checkpoint(photos: Path, tmp_path: Path):
    """A limit on the size of files stands for the full disk: the write fails halfway, too."""
    (tmp_path / "full").mkdir()
    checkpoint.save(tmp_path / "full/old/step-00000001.pt", {"method": "inpainting", "state": {}})
    limited = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2**23, 2**23));"
        "runpy.run_module('kintsugi.recon.inpainting', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *TINY, "--data", str(photos), "--out", "full/new"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "free some space" in refusal(done)
    assert not list((tmp_path / "full/new").glob("*.pt"))
    assert not list((tmp_path / "full/new").glob(".*.part"))


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(run: Run, photos: Path, tmp_path: Path):
    """A nan is put into the checkpoint after step 1, so that the step at which it shows is known."""
    inpainting.main([*TINY, "--data", str(photos), "--out", str(tmp_path / "nan"), "--steps", "2"])
    file = checkpoint.find(tmp_path / "nan")
    content = checkpoint.load(file)
    content.pop("format")
    content["state"]["weights"]["generator.decoder.layers.17.bias"][:] = float("nan")
    checkpoint.save(file, content)
    done = run("kintsugi.recon.inpainting", "--resume", "--out", "nan", "--steps", "6")
    assert done.returncode == 1, done.stderr
    line = done.stderr.rstrip().splitlines()[-1]
    assert line.startswith("error: step 1: weight_norm/generator is nan; training stopped, the last good checkpoint is")
    assert "Traceback" not in done.stderr
    assert checkpoint.find(tmp_path / "nan") == file  # nothing was saved after it
