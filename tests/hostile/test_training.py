"""What can go wrong while training: numbers that are not finite, TensorBoard's files lost, a full disk."""

from __future__ import annotations

import errno
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import tiny_method
from helpers.nested import tensors
from helpers.tiny_method import TinyMethod
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from kintsugi.train import checkpoint
from kintsugi.train.method import Batch

# An exception in a thread would print a traceback on the user's screen.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

Captured = pytest.CaptureFixture[str]


def in_step_3(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[TinyMethod, Batch], Batch]) -> None:
    original = TinyMethod.update

    def update(self: TinyMethod, batch: Batch, step: int) -> dict[str, Tensor]:
        return original(self, spoil(self, batch) if step == 3 else batch, step)

    monkeypatch.setattr(TinyMethod, "update", update)


def last_line(main: Callable[[], None], code: int, capsys: Captured) -> str:
    with pytest.raises(SystemExit) as stop:
        main()
    output = capsys.readouterr().err
    assert stop.value.code == code
    assert "Traceback" not in output
    return output.rstrip().splitlines()[-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["data", "gradient"])
def test_numbers_that_are_not_finite_are_caught_at_their_step(
    where: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
):
    def spoil(method: TinyMethod, batch: Batch) -> Batch:
        if where == "data":
            return {**batch, "image": torch.full(batch["image"].shape, value)}
        handle = method.net[0].weight.register_hook(lambda gradient: handle.remove() or gradient * value)
        return batch

    in_step_3(monkeypatch, spoil)
    line = last_line(lambda: tiny_method.main(["--out", str(tmp_path / "run")]), 1, capsys)
    name = "loss/tiny" if where == "data" else "grad_norm/net"  # the loss of that step is still finite
    assert line.startswith(f"error: step 3: {name} is ")
    assert "step-00000002.pt: try a lower learning rate" in line
    last = checkpoint.load(checkpoint.find(tmp_path / "run"))
    assert last["step"] == 2
    assert all(t.isfinite().all() for t in tensors(last["state"]))


def test_a_gradient_that_is_not_finite_is_found_before_the_weights_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
):
    """The gradients' norm of this step is not logged, and its loss is finite."""

    def spoil(method: TinyMethod, batch: Batch) -> Batch:
        handle = method.net[0].weight.register_hook(lambda gradient: handle.remove() or gradient * math.inf)
        return batch

    in_step_3(monkeypatch, spoil)
    options = ["--log-every", "6", "--save-every", "4", "--eval-every", "6", "--out", str(tmp_path / "run")]
    line = last_line(lambda: tiny_method.main(options), 1, capsys)
    assert line.startswith("error: step 3: weight_norm/net is nan")
    assert not list((tmp_path / "run").glob("*.pt"))


@pytest.mark.parametrize("at", [1, 4, 12])
def test_training_goes_on_if_tensorboard_cannot_be_written(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
):
    original, left = RecordWriter.write, [at]

    def write(self: RecordWriter, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, data)

    monkeypatch.setattr(RecordWriter, "write", write)
    tiny_method.main(["--out", str(tmp_path / "run"), "--log-every", "1"])
    output = capsys.readouterr().err
    assert output.count("TensorBoard's files cannot be written (No space left on device): training goes on") == 1
    assert "Traceback" not in output
    assert checkpoint.load(checkpoint.find(tmp_path / "run"))["step"] == 6


def test_training_goes_on_if_its_folder_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured):
    def spoil(method: TinyMethod, batch: Batch) -> Batch:
        shutil.rmtree(tmp_path / "run")
        return batch

    in_step_3(monkeypatch, spoil)
    tiny_method.main(["--out", str(tmp_path / "run")])
    assert "Traceback" not in capsys.readouterr().err
    assert checkpoint.load(checkpoint.find(tmp_path / "run"))["step"] == 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 kB; a run fills three quarters of it with its first two checkpoints."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "none", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def test_a_run_goes_on_when_there_is_space_again(small_disk: Path, tmp_path: Path, capsys: Captured):
    def remount(option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(small_disk)], check=True)

    run = small_disk / "run"
    line = last_line(lambda: tiny_method.main(["--out", str(run)]), 2, capsys)
    assert "No space left on device): free some space" in line
    good = checkpoint.newest(run)[0]
    assert str(good) in line
    checkpoint.load(good)
    assert not list(run.glob(".*.part"))
    remount("ro")
    line = last_line(lambda: tiny_method.main(["--resume", "--out", str(run)]), 2, capsys)
    assert "Read-only file system" in line
    remount("rw,size=1m")
    tiny_method.main(["--resume", "--out", str(run)])
    tiny_method.main(["--out", str(tmp_path / "whole")])
    ours, theirs = (tensors(checkpoint.load(checkpoint.find(f))["state"]) for f in (run, tmp_path / "whole"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
