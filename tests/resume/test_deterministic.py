"""With --deterministic a stopped and resumed run has the bits of one that was never stopped, on a GPU too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.nested import tensors
from helpers.tiny_runs import arguments, module_of

from kintsugi.train import checkpoint


@pytest.mark.parametrize("method", ["simclr", pytest.param("mae", marks=pytest.mark.slow)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_resumed_run_equals_one_that_was_never_stopped(method: str, device: str, photos: Path, tmp_path: Path):
    main = module_of(method).main
    words = [*arguments(method, {"photos": photos}), "--device", device, "--deterministic"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    main([*words, "--steps", "4", "--out", str(whole)])
    main([*words, "--steps", "2", "--out", str(stopped)])
    main(["--resume", "--out", str(stopped), "--steps", "4"])
    one, other = (checkpoint.load(checkpoint.find(folder)) for folder in (whole, stopped))
    assert one["step"] == other["step"] == 4
    assert one["config"]["deterministic"]
    pairs = list(zip(tensors(one["state"]), tensors(other["state"]), strict=True))
    assert len(pairs) > 50
    assert all(torch.equal(a, b) for a, b in pairs)
