from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.command_line import ROOT

from kintsugi.nets.backbones import Backbone
from kintsugi.nets.discriminators import DiscriminatorSpec
from kintsugi.train import checkpoint


@torch.no_grad()
def test_torch_hub_gives_a_checkpoints_encoder(tmp_path: Path):
    generator = Backbone("dcgan", width=0.25).build().eval()
    discriminator = DiscriminatorSpec(32, 8).build().encoder
    encoders = {"generator": generator, "discriminator": discriminator}
    saved = {role: {"spec": e.spec.plain(), "state": e.state_dict()} for role, e in encoders.items()}
    checkpoint.save(
        tmp_path / "step-00000001.pt", {"method": "toy", "step": 1, "config": {}, "state": {}, "encoders": saved}
    )
    encoder = torch.hub.load(str(ROOT), "encoder", str(tmp_path), source="local")
    image = torch.rand(2, 3, 64, 96)
    assert not encoder.training
    for stride, x in generator(image).items():
        assert torch.equal(encoder(image)[stride], x)
    other = torch.hub.load(str(ROOT), "encoder", str(tmp_path), role="discriminator", source="local")
    assert other.channels == discriminator.channels
    with pytest.raises(ValueError, match="has no encoder: it has discriminator, generator"):
        torch.hub.load(str(ROOT), "encoder", str(tmp_path), role="encoder", source="local")
