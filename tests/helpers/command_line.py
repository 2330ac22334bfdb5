"""Commands as a person runs them: where the project lies, the smallest training, and what a refusal looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]

TINY = (
    "--encoder alexnet --size 64 --batch 4 --steps 6 --adversarial-start 2 --log-every 2 --show-every 3 --eval-every 3 "
    "--save-every 2 --eval-images 2 --device cpu --precision fp32"
).split()
"""The smallest training of the inpainter that uses everything: pictures, evaluation, checkpoints, discriminator."""

Run = Callable[..., subprocess.CompletedProcess[str]]
"""The fixture ``run``: (module, *arguments, timeout=seconds) -> the finished process."""

Refused = Callable[[Callable[[list[str]], None], list[str | Path]], str]
"""The fixture ``refused``: (main, arguments) -> the error line."""


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The error line of a command that refused its input. Checks that it is one line, and that the exit code is 2."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(errors) == 1, done.stderr
    assert done.stderr.rstrip().splitlines()[-1] == errors[0]
    return errors[0]


def torchrun(folder: Path, ranks: int, module: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs ``torchrun -m MODULE ARGS`` on ``ranks`` processes in ``folder``. The tests' helpers can be imported."""
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", module]
    return subprocess.run(
        [sys.executable, "-m", *launch, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": python_path()},
    )


def python_path() -> str:
    """For processes that import the project and the tests' helpers."""
    return os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
