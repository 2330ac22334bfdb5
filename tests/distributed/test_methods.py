"""Two ranks learn as one does from the global batch: losses and gradients, and what is found of all images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from helpers.one_step import CASES, one_step
from torch import Tensor

from kintsugi.train.dist import World


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    place: Path = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "helpers.one_step",
            "two.pt",
        ],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return torch.load(place / "two.pt", weights_only=True)


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
