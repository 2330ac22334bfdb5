"""Two gloo processes under torchrun learn what one process learns from the same global batch."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from helpers import faulty_runs
from helpers.command_line import TINY, Run, torchrun

from kintsugi.train import checkpoint


def test_two_ranks_of_the_command_equal_one(run: Run, photos: Path, tmp_path: Path):
    """Two steps only, because rounding errors grow with the steps; group norm, because torch synchronizes batch norms
    on GPUs only. ``test_methods_on_ranks`` has one step of every method."""
    args = [*TINY, *"--norm group --discriminator-norm group --mask blocks --steps 2 --adversarial-start 0".split()]
    args += ["--data", str(photos)]
    one = run("kintsugi.recon.inpainting", *args, "--out", "one")
    assert one.returncode == 0, one.stderr
    two = torchrun(tmp_path, 2, "kintsugi.recon.inpainting", *args, "--out", "two")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("next: ") == 1  # only one rank prints
    states = [checkpoint.load(checkpoint.find(tmp_path / name))["state"] for name in ("one", "two")]
    for net in states[0]["optimizers"]:
        # Adam's first moments hold the gradients of both steps, before the division by their size.
        a, b = (
            torch.cat([moments["exp_avg"].flatten() for moments in s["optimizers"][net]["state"].values()])
            for s in states
        )
        assert a.norm() > 0
        assert (a - b).norm() < 2e-3 * a.norm(), net


def test_a_batch_that_does_not_split_gives_one_line(photos: Path, tmp_path: Path):
    done = torchrun(tmp_path, 2, "kintsugi.recon.inpainting", *TINY, "--batch", "3", "--data", str(photos))
    assert done.returncode != 0
    assert "error: --batch 3 does not split over 2 ranks" in done.stderr


def test_if_one_rank_is_killed_the_other_ends_and_the_run_can_be_resumed(tmp_path: Path):
    args = ["1", "step", "5", "--steps", "100000", "--out", "run"]
    done = torchrun(tmp_path, 2, "helpers.faulty_runs", *args)
    assert time.time() - (tmp_path / "run/step-00000004.pt").stat().st_mtime < 60  # the last file before the kill
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "another process of this run has ended, so rank 0 ends too" in line
    assert "--resume" in line
    assert "[rank0]: Traceback" not in done.stderr
    process = faulty_runs.start(
        "helpers.tiny_method", ["--resume", "--out", str(tmp_path / "run"), "--steps", "8"], tmp_path / "output"
    )
    assert faulty_runs.finish(process) == 0
    assert "was written by 2 ranks, this run has 1" in (tmp_path / "output").read_text()
    assert "from step 4" in (tmp_path / "output").read_text()


def test_three_ranks_add_gradients_in_the_same_order_at_every_step(tmp_path: Path):
    """Else a resumed run would differ by rounding errors from one that was never stopped."""
    done = torchrun(tmp_path, 3, "helpers.fresh_ranks")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["", "shard", "shard fail"])
def test_no_thread_of_gloo_outlives_the_training(kind: str, tmp_path: Path):
    done = torchrun(tmp_path, 2, "helpers.group_is_freed", *kind.split())
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
