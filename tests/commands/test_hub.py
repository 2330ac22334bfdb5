from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.command_line import ROOT

from kintsugi import load_encoder
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.discriminators import DiscriminatorSpec
from kintsugi.nets.encoder import Encoder
from kintsugi.train import checkpoint


@pytest.fixture
def encoders(tmp_path: Path) -> dict[str, Encoder]:
    """Of a toy GAN, whose checkpoint lies in ``tmp_path``."""
    generator = Backbone("dcgan", width=0.25).build().eval()
    discriminator = DiscriminatorSpec(32, 8).build().encoder
    encoders = {"generator": generator, "discriminator": discriminator}
    saved = {role: {"spec": e.spec.plain(), "state": e.state_dict()} for role, e in encoders.items()}
    checkpoint.save(
        tmp_path / "step-00000001.pt", {"method": "toy", "step": 1, "config": {}, "state": {}, "encoders": saved}
    )
    return encoders


@torch.no_grad()
def test_torch_hub_gives_a_checkpoints_encoder(tmp_path: Path, encoders: dict[str, Encoder]):
    encoder = torch.hub.load(str(ROOT), "encoder", str(tmp_path), source="local")
    image = torch.rand(2, 3, 64, 96)
    assert not encoder.training
    for stride, x in encoders["generator"](image).items():
        assert torch.equal(encoder(image)[stride], x)
    other = torch.hub.load(str(ROOT), "encoder", str(tmp_path), role="discriminator", source="local")
    assert other.channels == encoders["discriminator"].channels
    with pytest.raises(ValueError, match="has no encoder: it has discriminator, generator"):
        torch.hub.load(str(ROOT), "encoder", str(tmp_path), role="encoder", source="local")


@torch.no_grad()
def test_load_encoder_takes_a_path_or_its_name(tmp_path: Path, encoders: dict[str, Encoder]):
    image = torch.rand(1, 3, 64, 64)
    for path in (tmp_path, str(tmp_path), str(tmp_path / "step-00000001.pt")):
        for stride, x in encoders["generator"](image).items():
            assert torch.equal(load_encoder(path)(image)[stride], x)


def test_torch_hub_works_without_links_and_beside_other_packages(tmp_path: Path, encoders: dict[str, Encoder]):
    """As torch.hub unpacks a repository's zip, links are files that hold the link's target. And a project that calls it
    has packages of its own, of names that this project once had or has as folders."""
    repo = tmp_path / "repo"
    shutil.copytree(ROOT / "kintsugi", repo / "kintsugi", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", repo)
    links = [path for path in (repo / "kintsugi").iterdir() if path.is_symlink()]
    assert {link.name for link in links} == {"apps", "contrastive", "eval", "pretext", "recon", "weights"}
    for link in links:
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)
    project = tmp_path / "project"
    for name in ("core", "eval", "recon", "apps"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("mine = True\n")
    script = (
        "import sys, torch, core, eval, recon, apps\n"
        f"encoder = torch.hub.load({str(repo)!r}, 'encoder', {str(tmp_path)!r}, source='local')\n"
        "assert encoder(torch.rand(1, 3, 64, 64))\n"
        "import kintsugi\n"
        f"assert kintsugi.__file__.startswith({str(repo)!r}), kintsugi.__file__\n"
        "assert core.mine and eval.mine and recon.mine and apps.mine"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
