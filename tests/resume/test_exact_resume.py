"""A stopped and resumed run ends with the weights of one that was never stopped, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.command_line import ROOT, TINY, Refused, Run

from kintsugi.data.loader import Resident
from kintsugi.recon import inpainting
from kintsugi.train import checkpoint


def flat(value: object, at: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in flat(inner, f"{at}/{name}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{at}/{i}").items()}
    return {at: value}


def assert_same_state(one: Path, other: Path) -> None:
    a, b = (flat(checkpoint.load(checkpoint.find(run))["state"]) for run in (one, other))
    assert a.keys() == b.keys()
    different = [
        name
        for name, value in a.items()
        if not (torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name])  # type: ignore[arg-type]
    ]
    assert not different
    assert sum(isinstance(value, torch.Tensor) for value in a.values()) > 100  # something was compared


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kintsugi.recon.inpainting", *args],
        cwd=folder,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, f"{path.name} was not written"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    inpainting.main([*TINY, "--data", str(photos), "--out", str(folder)])
    return folder


def test_killed_run_resumes_bit_for_bit(whole: Path, run: Run, photos: Path, tmp_path: Path):
    args = [*TINY, "--data", str(photos), "--out", "killed"]
    process = start(tmp_path, *args)
    wait_for(tmp_path / "killed/step-00000004.pt", process)
    process.kill()
    process.wait()
    newest = checkpoint.newest(tmp_path / "killed")[0]
    if newest.name == "step-00000006.pt":  # the run was faster than the kill
        newest.unlink()
    resumed = run("kintsugi.recon.inpainting", "--resume", "--out", "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "from step 4" in resumed.stderr
    assert_same_state(whole, tmp_path / "killed")


def test_data_that_stays_on_the_device_changes_nothing(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    selected: list[int] = []
    select = Resident.batch
    monkeypatch.setattr(
        Resident, "batch", lambda self, indices: (selected.append(len(indices)), select(self, indices))[1]
    )
    inpainting.main([*TINY, "--data", str(photos), "--out", str(tmp_path / "run"), "--device-gb", "1"])
    assert len(selected) >= 6
    assert_same_state(whole, tmp_path / "run")


# Both signals also stop a tiny method, in test_kill.
@pytest.mark.parametrize("kind", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_ends_the_run(kind: signal.Signals, run: Run, photos: Path, tmp_path: Path):
    args = [*TINY, "--data", str(photos), "--out", "stopped", "--steps", "100000", "--save-every", "100000"]
    process = start(tmp_path, *args)
    wait_for(tmp_path / "stopped/before-adversary.pt", process)
    process.send_signal(kind)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + kind
    assert "Traceback" not in output
    assert "continue with --resume --out stopped" in output
    stopped_at = int(checkpoint.newest(tmp_path / "stopped")[0].stem.split("-")[1])
    assert 2 <= stopped_at < 100000
    resumed = run("kintsugi.recon.inpainting", "--resume", "--out", "stopped", "--steps", str(stopped_at + 2))
    assert resumed.returncode == 0, resumed.stderr
    assert checkpoint.load(checkpoint.find(tmp_path / "stopped"))["step"] == stopped_at + 2


def test_changed_settings_and_finished_or_existing_runs_are_refused(whole: Path, refused: Refused):
    output = refused(inpainting.main, ["--resume", "--out", whole, "--steps", "9", "--lr", "0.5"])
    assert "--lr 0.0005 -> 0.5" in output
    output = refused(inpainting.main, ["--resume", "--out", whole])
    assert "already has 6 steps" in output
    output = refused(inpainting.main, [*TINY, "--out", whole])
    assert "already holds a run" in output
