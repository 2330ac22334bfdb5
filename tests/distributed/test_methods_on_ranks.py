"""Two ranks have the losses and gradients of one process with the global batch, and the same queues and clusters; also
if their state is sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.command_line import torchrun
from helpers.one_step import CASES, one_step
from helpers.tiny_runs import class_of
from torch import Tensor

from kintsugi.catalog import METHODS
from kintsugi.train.dist import World


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, Tensor]]]:
    """ "averaged" or "sharded" -> method -> what ``one_step`` returns."""
    place: Path = tmp_path_factory.mktemp("ranks")
    done = torchrun(place, 2, "helpers.one_step", "two.pt")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return torch.load(place / "two.pt", weights_only=True)


def test_every_method_has_a_case():
    assert set(CASES) == {program.name for program in METHODS}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one(name: str, of_two: dict[str, dict[str, dict[str, Tensor]]]):
    one = one_step(name, World(torch.device("cpu")))
    assert_same(one, of_two["averaged"][name])
    if class_of(name).shardable:
        assert_same(one, of_two["sharded"][name])


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    gradients = one["gradients"]
    assert gradients.norm() > 0
    assert (gradients - two["gradients"]).norm() < 2e-4 * gradients.norm()
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-5, atol=0)
    for found in one.keys() - {"gradients", "loss"}:
        torch.testing.assert_close(two[found], one[found], atol=1e-5, rtol=0)
