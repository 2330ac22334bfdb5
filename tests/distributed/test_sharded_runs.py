"""Two ranks whose weights, gradients and optimizer state are sharded: the same training, half of the state on each.

``test_methods_on_ranks`` has one step of every method that takes --shard.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Refused, torchrun
from helpers.nested import tensors
from torch import Tensor

from kintsugi.contrastive import dino
from kintsugi.recon import spark
from kintsugi.train import checkpoint

LAST = "step-00000002.pt"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """The folder with all runs of ``helpers.sharded_runs``."""
    place: Path = tmp_path_factory.mktemp("sharded")
    (place / "photos").symlink_to(photos)
    done = torchrun(place, 2, "helpers.sharded_runs")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("next: ") == 4  # only one rank prints
    return place


def shapes(value: Any) -> Any:
    """Nested dicts and lists, with the type and the shape of each tensor in place of it."""
    if isinstance(value, dict):
        return {name: shapes(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shapes(each) for each in value]
    return (type(value), value.dtype, value.shape) if isinstance(value, Tensor) else value


def moments(file: Path) -> Tensor:
    """Adam's first moments, which hold the gradients of all steps, before the division by their size."""
    states = checkpoint.load(file)["state"]["optimizers"].values()
    return torch.cat([each["exp_avg"].flatten() for state in states for each in state["state"].values()])


def assert_near(one: Path, other: Path) -> None:
    a, b = moments(one), moments(other)
    assert a.norm() > 0
    assert (a - b).norm() < 2e-3 * a.norm()


def test_a_checkpoint_is_that_of_a_run_without_sharding(runs: Path):
    averaged, sharded = runs / "averaged" / LAST, runs / "sharded" / LAST
    one, other = checkpoint.load(averaged), checkpoint.load(sharded)
    for part in ("state", "encoders"):
        assert shapes(one[part]) == shapes(other[part])
    assert_near(averaged, sharded)
    assert abs(one["score"] - other["score"]) < 1e-2 * abs(one["score"])
    assert abs(averaged.stat().st_size / sharded.stat().st_size - 1) < 0.05  # no tensor is in it twice
    encoder = checkpoint.load_encoder(sharded)
    assert all(map(torch.equal, encoder.state_dict().values(), other["encoders"]["encoder"]["state"].values()))


def test_a_resumed_run_has_the_same_bits(runs: Path):
    one, other = (tensors(checkpoint.load(runs / run / LAST)["state"]) for run in ("sharded", "resumed"))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_runs_continue_with_and_without_sharding(runs: Path, tmp_path: Path):
    assert_near(runs / "averaged" / LAST, runs / "averaged_then_sharded" / LAST)
    shutil.copy(runs / "sharded/step-00000001.pt", tmp_path)
    dino.main(["--resume", "--out", str(tmp_path), "--data", str(runs / "photos"), "--accept-changes"])
    assert_near(runs / "sharded" / LAST, tmp_path / LAST)


def test_each_rank_holds_half(runs: Path):
    for rank in range(2):
        held = json.loads((runs / f"held{rank}.json").read_text())
        assert held.keys() == {"weights", "optimizer"}
        assert all(abs(fraction - 0.5) < 0.05 for fraction in held.values()), held


def test_a_method_that_does_not_take_it_says_so(refused: Refused, photos: Path):
    line = refused(spark.main, ["--shard", "--data", photos])
    assert line == "error: --shard does not work with spark: leave it out"
