"""What a command waits for before it says anything: torch alone takes a second, and more only where it is used."""

from __future__ import annotations

import subprocess
import sys

from helpers.command_line import ROOT

HEAVY = "kornia lpips scipy skimage sympy tensorboard torch._dynamo torchmetrics torchvision webdataset".split()
COMMANDS = (
    "kintsugi.recon.inpainting kintsugi.recon.colorization kintsugi.recon.superresolution kintsugi.recon.splitbrain "
    "kintsugi.contrastive.simclr kintsugi.contrastive.moco kintsugi.contrastive.byol kintsugi.contrastive.cpc"
).split()


def test_help_imports_nothing_heavy_but_torch() -> None:
    """All in one process, one after the other: the first that imports something is named."""
    script = (
        "import importlib, sys\n"
        f"for command in {COMMANDS}:\n"
        "    importlib.import_module(command)\n"
        f"    found = sorted(set({HEAVY}) & set(sys.modules))\n"
        "    assert not found, (command, found)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_whose_reader_ends_early_reports_nothing() -> None:
    command = f"{sys.executable} -m kintsugi train rotation --help | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage:")
    assert done.stderr == ""
