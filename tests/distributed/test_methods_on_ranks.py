"""Two ranks have the losses and gradients of one process with the global batch, and the same queues and clusters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.command_line import torchrun
from helpers.one_step import CASES, one_step
from torch import Tensor

from kintsugi.catalog import METHODS
from kintsugi.train.dist import World


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    place: Path = tmp_path_factory.mktemp("ranks")
    done = torchrun(place, 2, "helpers.one_step", "two.pt")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return torch.load(place / "two.pt", weights_only=True)


def test_every_method_has_a_case():
    assert set(CASES) == {program.name for program in METHODS}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one(name: str, of_two: dict[str, dict[str, Tensor]]):
    one, two = one_step(name, World(torch.device("cpu"))), of_two[name]
    assert one.keys() == two.keys()
    gradients = one["gradients"]
    assert gradients.norm() > 0
    assert (gradients - two["gradients"]).norm() < 2e-4 * gradients.norm()
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-5, atol=0)
    for found in one.keys() - {"gradients", "loss"}:
        torch.testing.assert_close(two[found], one[found], atol=1e-5, rtol=0)
