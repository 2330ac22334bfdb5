"""``make train-simclr NODES=2 HEAD=...`` on two machines, both of which are this one, trains as one process does."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.command_line import ROOT, Run, python_path

from kintsugi.train import checkpoint

TRAINING = (
    "--norm group --size 32 --batch 4 --steps 2 --eval-images 2 --device cpu --precision fp32 --optimizer sgd --out {}"
)


def words_of_make(*variables: str) -> list[str]:
    """The command that make would run."""
    job = ["make", "--no-print-directory", "--dry-run", "-o", ".venv/.installed", "train-simclr", *variables]
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    if done.returncode:
        raise ValueError(done.stderr)
    return shlex.split(done.stdout)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def moments(run: Path) -> torch.Tensor:
    """SGD's momentum buffers, which hold the gradients of all steps."""
    state = checkpoint.load(checkpoint.find(run))["state"]["optimizers"]["both"]["state"]
    return torch.cat([each["momentum_buffer"].flatten() for each in state.values()])


def test_several_machines_need_the_name_of_the_first():
    with pytest.raises(ValueError, match="NODES=2 needs HEAD=, the name of the first machine"):
        words_of_make("NODES=2", "GPUS=8")


@pytest.mark.slow
def test_two_machines_equal_one_process(run: Run, photos: Path, tmp_path: Path):
    one = run("kintsugi.contrastive.simclr", *TRAINING.format("one").split(), "--data", str(photos))
    assert one.returncode == 0, one.stderr
    given = ["NODES=2", "GPUS=1", f"HEAD=127.0.0.1:{free_port()}", f"DATA={photos}", f"ARGS={TRAINING.format('two')}"]
    launcher, *words = words_of_make(*given)
    assert launcher == ".venv/bin/torchrun"
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": python_path()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    output = [agent.communicate(timeout=200) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], output
    assert sum(stdout.count("next: ") for stdout, _ in output) == 1  # only one rank of both machines prints
    of_one, of_two = moments(tmp_path / "one"), moments(tmp_path / "two")
    assert of_one.norm() > 0
    assert (of_one - of_two).norm() < 2e-3 * of_one.norm()
    assert checkpoint.load(checkpoint.find(tmp_path / "two"))["ranks"] == 2
