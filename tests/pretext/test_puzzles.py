"""Two ranks learn as one does from the global batch, in every method of questions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import ROOT
from puzzles_step import one_step

from core.train.dist import World


def test_two_ranks_equal_one(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(ROOT / "tests/puzzles_step.py"), "two.pt"],
        cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one = one_step(World(torch.device("cpu")))
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert one.keys() == two.keys() == {"rotation", "jigsaw", "context"}
    for name in one:
        gradients = one[name]["gradients"]
        assert gradients.norm() > 0
        assert (gradients - two[name]["gradients"]).norm() < 2e-4 * gradients.norm(), name
        torch.testing.assert_close(two[name]["loss"], one[name]["loss"], rtol=1e-5, atol=0)
