"""What --resume does with damaged checkpoints and with changed settings: it uses, names or refuses them in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_method
from helpers.command_line import Refused
from helpers.nested import tensors

from kintsugi.train import checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    tiny_method.main(["--out", str(folder)])
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of that run, which has six steps, for a test to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def rewrite(file: Path, **changed: Any) -> None:
    content = {**checkpoint.load(file), **changed}
    content.pop("format")
    checkpoint.save(file, content)


def state(folder: Path) -> list[torch.Tensor]:
    return tensors(checkpoint.load(checkpoint.newest(folder)[0])["state"])


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_changed_settings_are_refused_without_accept_changes(
    run: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
):
    resume = ["--resume", "--out", str(run)]
    line = refused(tiny_method.main, [*resume, "--steps", "8", "--lr", "0.5", "--batch", "8"])
    assert "--lr 0.01 -> 0.5" in line
    assert "--batch 4 -> 8" in line
    assert "--accept-changes" in line
    tiny_method.main([*resume, "--steps", "8", "--lr", "0.5", "--accept-changes"])
    assert "other settings: --lr 0.01 -> 0.5" in capsys.readouterr().err
    content = checkpoint.load(checkpoint.find(run))
    assert content["step"] == 8
    assert content["state"]["optimizers"]["net"]["param_groups"][0]["lr"] == 0.5  # the new value is used
    # It is now the run's own setting; further changes need --accept-changes again.
    assert "--lr 0.5 -> 0.1" in refused(tiny_method.main, [*resume, "--steps", "9", "--lr", "0.1"])


@pytest.mark.parametrize("change", [["--width", "8"], ["--optimizer", "sgd"], ["--optimizer", "lars"]])
def test_changes_that_the_saved_weights_do_not_allow(change: list[str], run: Path, refused: Refused):
    line = refused(tiny_method.main, ["--resume", "--out", str(run), "--steps", "8", "--accept-changes", *change])
    assert "does not fit the networks of these settings" in line
    assert len(line) < 500


@pytest.mark.parametrize(
    "damaged",
    [
        {"state": {}},
        {"state": 3},
        {"state": {"network.net": 3, "optimizer.net": {}}},
        {"state": {"network.net": {"0.weight": "no tensor"}}},
        {"config": {"color": 1}},
    ],
)
def test_a_checkpoint_with_wrong_content_gives_one_line(damaged: dict[str, Any], run: Path, refused: Refused):
    rewrite(checkpoint.find(run), **damaged)
    assert refused(tiny_method.main, ["--resume", "--out", str(run), "--steps", "8"])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "of another version"])
def test_the_checkpoint_before_a_damaged_one_is_used(
    damage: str, whole: Path, run: Path, capsys: pytest.CaptureFixture[str]
):
    newest = checkpoint.find(run)
    whole_bytes = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(whole_bytes[:-100])
    elif damage == "flipped":  # one bit of a weight
        place = whole_bytes.index(checkpoint.load(newest)["state"]["weights"]["net.0.bias"].numpy().tobytes())
        newest.write_bytes(whole_bytes[:place] + bytes([whole_bytes[place] ^ 1]) + whole_bytes[place + 1 :])
    elif damage == "foreign":
        torch.save({"w": torch.zeros(3)}, newest)
    else:
        torch.save({**checkpoint.load(newest), "format": checkpoint.FORMAT + 1}, newest)
    (run / "best.pt").write_bytes(b"")  # not needed to resume
    tiny_method.main(["--resume", "--out", str(run)])
    output = capsys.readouterr().err
    assert f"warning: {newest}" in output
    assert "from step 4" in output
    assert same(state(whole), state(run))
