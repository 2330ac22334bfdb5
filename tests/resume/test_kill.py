"""A run that is killed many times, also while it writes a checkpoint, ends with the weights of one that was not."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from helpers import faulty_runs
from helpers.command_line import TINY
from helpers.nested import tensors

from kintsugi.train import checkpoint


def go_on(module: str, args: list[str], folder: Path, fault: tuple[str, int] | None = None) -> int:
    """Starts the run in ``folder``, or resumes it if it has a checkpoint. Returns the exit code."""
    return faulty_runs.finish(faulty_runs.start(module, next_args(args, folder), output(folder), fault))


def next_args(args: list[str], folder: Path) -> list[str]:
    begun = any(folder.glob("*.pt"))
    return ["--resume", "--out", str(folder)] if begun else [*args, "--out", str(folder)]


def output(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.output")


def assert_whole(folder: Path) -> None:
    """Every file with a checkpoint's name can be loaded."""
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
    assert go_on("helpers.tiny_method", ["--keep", "1"], folder) == 0, output(folder).read_text()
    return folder


def test_a_run_killed_at_every_point_of_writing_a_checkpoint(whole: Path, tmp_path: Path):
    """Each run resumes from the last whole checkpoint; the first ones find none."""
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
        assert go_on("helpers.tiny_method", ["--keep", "1"], folder, fault) == -9, output(folder).read_text()
        assert_whole(folder)
        ends.append([file.name for file in checkpoint.newest(folder)[:1]])
    assert ends == sorted(ends)  # no checkpoint was lost
    assert ends[2] == []
    assert ends[3] == ["step-00000002.pt"]
    assert go_on("helpers.tiny_method", [], folder) == 0, output(folder).read_text()
    assert_same(whole, folder)
    assert not list(folder.glob(".*.part"))  # the partial files of the killed runs are gone
    assert "Traceback" not in output(folder).read_text()


def test_best_of_a_run_killed_before_its_first_step_file(whole: Path, tmp_path: Path):
    folder = tmp_path / "run"
    args = ["--keep", "1", "--save-every", "6", "--eval-every", "3"]
    assert go_on("helpers.tiny_method", args, folder, ("replace", 1)) == -9
    assert [file.name for file in folder.glob("*.pt")] == ["best.pt"]
    assert go_on("helpers.tiny_method", args, folder) == 0, output(folder).read_text()
    assert_same(whole, folder)


@pytest.mark.parametrize("point", [("point", 0), ("replace", 3), ("point", 1)])
def test_latest_points_to_a_whole_run_or_to_none(point: tuple[str, int], tmp_path: Path):
    process = faulty_runs.start("helpers.tiny_method", ["--runs", str(tmp_path)], tmp_path / "output", point)
    assert faulty_runs.finish(process) == -9
    latest = tmp_path / "tiny/latest"
    assert latest.is_file() == (point != ("point", 0))
    if latest.is_file():
        checkpoint.load(checkpoint.find(latest))
        process = faulty_runs.start("helpers.tiny_method", ["--runs", str(tmp_path), "--resume"], tmp_path / "output")
        assert faulty_runs.finish(process) == 0


@pytest.mark.parametrize(("kind", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("times", [1, 2])
def test_signals(kind: str, code: int, times: int, whole: Path, tmp_path: Path):
    """The first signal saves at the end of the step; the second one ends the run at once, without saving."""
    folder = tmp_path / "run"
    assert go_on("helpers.tiny_method", ["--keep", "1"], folder, (kind, times)) == code
    last = checkpoint.newest(folder)[0].name
    assert last == ("step-00000004.pt" if times == 1 else "step-00000002.pt")
    line = "stopped at step 4 and saved" if times == 1 else "stopped at once, without saving"
    assert line in output(folder).read_text()
    assert "Traceback" not in output(folder).read_text()
    assert go_on("helpers.tiny_method", [], folder) == 0, output(folder).read_text()
    assert_same(whole, folder)


# --- methods with a GAN, a queue, an average, killed at random moments ----------------------------------------

FEW = (
    "--size 32 --short-side 48 --batch 4 --steps 12 --log-every 2 --show-every 6 --eval-every 4 --save-every 3 "
    "--keep 1 --eval-images 4 --device cpu --precision fp32"
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
    """Every third kill happens in a write, after a random number of bytes; the others at any time."""
    faulty_runs.preload(*METHODS)
    # Starts the server, which must not be timed.
    faulty_runs.finish(faulty_runs.start("helpers.tiny_method", ["--help"], tmp_path / "output"))
    args = [*METHODS[module], "--data", str(photos)]
    begun = time.monotonic()
    assert go_on(module, args, tmp_path / "whole") == 0, output(tmp_path / "whole").read_text()
    took = time.monotonic() - begun
    size = checkpoint.newest(tmp_path / "whole")[0].stat().st_size
    draw, kills, runs = random.Random(module), 0, 0
    while kills < -(-KILLS // len(METHODS)):
        folder = tmp_path / f"killed{runs}"
        while not (folder / "step-00000012.pt").is_file():
            code = _one_life(module, args, folder, draw, kills, took, size)
            if code == 0:
                break
            assert code == -9, output(folder).read_text()
            assert_whole(folder)
            kills += 1
        assert "Traceback" not in output(folder).read_text()
        assert_same(tmp_path / "whole", folder)
        for file in folder.glob("*.pt"):
            file.unlink()
        runs += 1
    print(f"{module}: {kills} kills in {runs} runs")


def _one_life(
    module: str, args: list[str], folder: Path, draw: random.Random, kills: int, took: float, size: int
) -> int:
    fault = ("write", draw.randrange(2 * size)) if kills % 3 == 2 else None
    process = faulty_runs.start(module, next_args(args, folder), output(folder), fault)
    if fault is None:
        process.join(draw.uniform(0, took))
        process.kill()
    return faulty_runs.finish(process)
