"""Checkpoints as a run writes them, of the smallest networks with their first weights: for tests of what loads them."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers.tiny_runs import OPTIONS, class_of, module_of
from kintsugi.train import checkpoint
from kintsugi.train.command import named
from kintsugi.train.config import parse_training, to_plain
from kintsugi.train.dist import World


def untrained(method: str, runs: Path, run: str = "20260101-120000") -> Path:
    """Writes the checkpoint of a method's smallest run before its first step to ``runs/METHOD/RUN``. Returns it."""
    module = module_of(method)
    options = [*OPTIONS[method][0].split(), "--device", "cpu"]
    config = parse_training(method, named([module.demo, module.small, module.paper]), options)
    torch.manual_seed(0)
    built = class_of(method)(config, World(torch.device("cpu")))
    encoders = {role: {"spec": e.spec.plain(), "state": e.state_dict()} for role, e in built.encoders().items()}
    state = built.training_state()
    content = {"method": method, "step": 0, "score": None, "config": to_plain(config), "state": state}
    file = runs / method / run / "step-00000000.pt"
    checkpoint.save(file, {**content, "encoders": encoders})
    return file
