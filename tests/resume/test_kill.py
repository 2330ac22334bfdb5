"""Runs that are killed again and again, also inside a checkpoint's write, end with the weights of one that was not."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, tensors
from helpers import faults

from kintsugi.train import checkpoint


def go_on(module: str, args: list[str], folder: Path, fault: tuple[str, int] | None = None) -> int:
    """Starts the run in ``folder``, or goes on with it, as a person would; the exit code."""
    return faults.finish(faults.start(module, next_args(args, folder), said(folder), fault))


def next_args(args: list[str], folder: Path) -> list[str]:
    begun = any(folder.glob("*.pt"))
    return ["--resume", "--out", str(folder)] if begun else [*args, "--out", str(folder)]


def said(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.said")


def assert_whole(folder: Path) -> None:
    """All that has a checkpoint's name is one."""
    for file in folder.glob("*.pt"):
        checkpoint.load(file)


def assert_same(one: Path, other: Path) -> None:
    last = [checkpoint.newest(folder)[0] for folder in (one, other)]
    assert last[0].name == last[1].name
    # The step files, and the best one: score, weights, moments, averages, queues.
    for files in (last, [folder / "best.pt" for folder in (one, other)]):
        a, b = (checkpoint.load(file) for file in files)
        assert (a["step"], a["score"]) == (b["step"], b["score"])
        pairs = list(zip(tensors(a["state"]), tensors(b["state"]), strict=True))
        assert len(pairs) > 10
        assert all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert go_on("helpers.tiny", ["--keep", "1"], folder) == 0, said(folder).read_text()
    return folder


def test_a_run_killed_at_every_point_of_a_checkpoints_way(whole: Path, tmp_path: Path):
    """Each run goes on from what the one before has left: nothing at first, a whole checkpoint later."""
    folder, size = tmp_path / "run", checkpoint.newest(whole)[0].stat().st_size
    ends = []
    for fault in (
        ("write", size // 2),
        ("fsync", 0),
        ("replace", 0),
        ("fsync", 1),
        ("write", size + size // 3),
        ("replace", 1),
        ("unlink", 0),
    ):
        assert go_on("helpers.tiny", ["--keep", "1"], folder, fault) == -9, said(folder).read_text()
        assert_whole(folder)
        ends.append([file.name for file in checkpoint.newest(folder)[:1]])
    assert ends == sorted(ends)  # what had been reached was never lost
    assert ends[2] == []
    assert ends[3] == ["step-00000002.pt"]
    assert go_on("helpers.tiny", [], folder) == 0, said(folder).read_text()
    assert_same(whole, folder)
    assert not list(folder.glob(".*.part"))  # what the killed ones had begun is gone
    assert "Traceback" not in said(folder).read_text()


def test_best_of_a_run_killed_before_its_first_step_file(whole: Path, tmp_path: Path):
    folder = tmp_path / "run"
    args = ["--keep", "1", "--save-every", "6", "--eval-every", "3"]
    assert go_on("helpers.tiny", args, folder, ("replace", 1)) == -9
    assert [file.name for file in folder.glob("*.pt")] == ["best.pt"]
    assert go_on("helpers.tiny", args, folder) == 0, said(folder).read_text()
    assert_same(whole, folder)


@pytest.mark.parametrize("point", [("point", 0), ("replace", 3), ("point", 1)])
def test_latest_points_to_a_whole_run_or_to_none(point: tuple[str, int], tmp_path: Path):
    process = faults.start("helpers.tiny", ["--runs", str(tmp_path)], tmp_path / "said", point)
    assert faults.finish(process) == -9
    latest = tmp_path / "tiny/latest"
    assert latest.is_file() == (point != ("point", 0))
    if latest.is_file():
        checkpoint.load(checkpoint.find(latest))
        process = faults.start("helpers.tiny", ["--runs", str(tmp_path), "--resume"], tmp_path / "said")
        assert faults.finish(process) == 0


@pytest.mark.parametrize(("kind", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("times", [1, 2])
def test_signals(kind: str, code: int, times: int, whole: Path, tmp_path: Path):
    """The first saves at the end of the step; the second leaves at once, with what had been saved before."""
    folder = tmp_path / "run"
    assert go_on("helpers.tiny", ["--keep", "1"], folder, (kind, times)) == code
    last = checkpoint.newest(folder)[0].name
    assert last == ("step-00000004.pt" if times == 1 else "step-00000002.pt")
    line = "stopped at step 4 and saved" if times == 1 else "stopped at once, without saving"
    assert line in said(folder).read_text()
    assert "Traceback" not in said(folder).read_text()
    assert go_on("helpers.tiny", [], folder) == 0, said(folder).read_text()
    assert_same(whole, folder)


# --- a GAN, a queue, an average, at random moments ------------------------------------------------------------

FEW = (
    "--size 32 --short-side 48 --batch 4 --steps 12 --log-every 2 --show-every 6 --eval-every 4 --save-every 3 "
    "--keep 1 --eval-images 4 --device cpu"
).split()
METHODS = {
    "kintsugi.recon.inpainting": [*TINY, *"--steps 12 --save-every 3 --keep 1 --adversarial-start 2".split()],
    "kintsugi.contrastive.moco": [*FEW, "--queue", "10", "--symmetric"],
    "kintsugi.contrastive.byol": [*FEW, "--hidden", "16", "--dim", "8"],
}
KILLS = 50


@pytest.mark.slow
@pytest.mark.parametrize("module", METHODS)
def test_a_run_killed_at_random_moments(module: str, photos: Path, tmp_path: Path):
    """Every third kill falls into a write, after a random number of bytes; the others anywhere."""
    faults.preload(*METHODS)
    faults.finish(
        faults.start("helpers.tiny", ["--help"], tmp_path / "said")
    )  # starts the server, which is not to be timed
    args = [*METHODS[module], "--data", str(photos)]
    begun = time.monotonic()
    assert go_on(module, args, tmp_path / "whole") == 0, said(tmp_path / "whole").read_text()
    took = time.monotonic() - begun
    size = checkpoint.newest(tmp_path / "whole")[0].stat().st_size
    draw, kills, runs = random.Random(module), 0, 0
    while kills < -(-KILLS // len(METHODS)):
        folder = tmp_path / f"killed{runs}"
        while not (folder / "step-00000012.pt").is_file():
            code = _one_life(module, args, folder, draw, kills, took, size)
            if code == 0:
                break
            assert code == -9, said(folder).read_text()
            assert_whole(folder)
            kills += 1
        assert "Traceback" not in said(folder).read_text()
        assert_same(tmp_path / "whole", folder)
        for file in folder.glob("*.pt"):
            file.unlink()
        runs += 1
    print(f"{module}: {kills} kills in {runs} runs")


def _one_life(
    module: str, args: list[str], folder: Path, draw: random.Random, kills: int, took: float, size: int
) -> int:
    fault = ("write", draw.randrange(2 * size)) if kills % 3 == 2 else None
    process = faults.start(module, next_args(args, folder), said(folder), fault)
    if fault is None:
        process.join(draw.uniform(0, took))
        process.kill()
    return faults.finish(process)
