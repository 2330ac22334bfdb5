"""Two gloo processes under torchrun train to the weights of one process on the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Run
from helpers import faults

from kintsugi.train import checkpoint


def torchrun(folder: Path, ranks: int, module: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            "-m",
            module,
            *args,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))},
    )


# Group norm, because torch has batch statistics over several processes for GPUs only. Two steps, because from step to
# step training multiplies what rounding leaves.
FEW = "--size 64 --batch 4 --steps 2 --log-every 1 --eval-images 2 --norm group --device cpu".split()
METHODS = {
    "kintsugi.recon.inpainting": [
        *TINY,
        *"--norm group --discriminator-norm group --mask blocks --steps 2 --adversarial-start 0".split(),
    ],
    "kintsugi.recon.colorization": [*FEW, "--encoder", "alexnet", "--hints"],
    "kintsugi.recon.superresolution": [
        *FEW,
        *"--blocks 1 --width 8 --adversarial-start 0 --content-weights off --lr-adversarial 1e-6".split(),
    ],
    "kintsugi.recon.splitbrain": FEW,
}


@pytest.mark.parametrize("module", METHODS)
def test_two_ranks_equal_one(module: str, run: Run, photos: Path, tmp_path: Path):
    args = [*METHODS[module], "--data", str(photos)]
    one = run(module, *args, "--out", "one")
    assert one.returncode == 0, one.stderr
    two = torchrun(tmp_path, 2, module, *args, "--out", "two")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("look: ") == 1  # one rank speaks for all
    states = [checkpoint.load(checkpoint.find(tmp_path / name))["state"] for name in ("one", "two")]
    for net in states[0]["optimizers"]:
        # Adam's running means are the gradients of both steps, before anything divides by their size.
        a, b = (
            torch.cat([moments["exp_avg"].flatten() for moments in s["optimizers"][net]["state"].values()])
            for s in states
        )
        assert a.norm() > 0
        assert (a - b).norm() < 2e-3 * a.norm(), net


def test_a_batch_that_does_not_split_is_one_line(photos: Path, tmp_path: Path):
    done = torchrun(tmp_path, 2, "kintsugi.recon.inpainting", *TINY, "--batch", "3", "--data", str(photos))
    assert done.returncode != 0
    assert "error: --batch 3 does not split over 2 ranks" in done.stderr


def test_where_one_rank_is_killed_the_other_leaves_and_the_run_goes_on_alone(tmp_path: Path):
    args = ["1", "step", "5", "--steps", "100000", "--out", "run"]
    done = torchrun(tmp_path, 2, "helpers.faults", *args)
    assert time.time() - (tmp_path / "run/step-00000004.pt").stat().st_mtime < 60  # the last thing before its death
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "another process of this run has ended, so rank 0 ends too" in line
    assert "--resume" in line
    assert "[rank0]: Traceback" not in done.stderr
    process = faults.start(
        "helpers.tiny", ["--resume", "--out", str(tmp_path / "run"), "--steps", "8"], tmp_path / "said"
    )
    assert faults.finish(process) == 0
    assert "is of 2 ranks, this is a run of 1" in (tmp_path / "said").read_text()
    assert "from step 4" in (tmp_path / "said").read_text()


def test_no_thread_of_gloo_outlives_the_training(tmp_path: Path):
    done = torchrun(tmp_path, 2, "helpers.world_ends")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ranks", [2])
def test_ranks_share_an_epoch_without_repeats(ranks: int, photos: Path):
    from kintsugi.data.images import open_images
    from kintsugi.data.loader import Loader
    from kintsugi.data.store import Store

    images = open_images(str(photos), 64, Store(quiet=True)).train
    seen: list[int] = []
    for rank in range(ranks):
        with Loader(images, 2, 0, rank, ranks, torch.device("cpu")).iterate(0) as batches:
            for _, batch in zip(range(len(images) // 2), batches, strict=False):
                seen += batch["index"].tolist()
    assert len(set(seen)) == len(seen) == len(images) // 2 * 2
