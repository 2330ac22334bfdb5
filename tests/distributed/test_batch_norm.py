"""Batch norm over ranks: synchronized on GPUs, of each rank's own share on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.command_line import torchrun
from helpers.pretended_gpu import pretended_gpu
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kintsugi.nets.encoder_choice import chosen
from kintsugi.train.dist import World


def test_on_a_cpu_each_rank_normalizes_its_own_share(tmp_path: Path):
    done = torchrun(tmp_path, 2, "helpers.batch_norm_ranks", "cpu")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoder", ["resnet18", "timm:test_efficientnet"])
def test_on_several_gpus_every_batch_norm_is_replaced(encoder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: None)
    net = chosen(encoder).build()
    before = sum(isinstance(module, _BatchNorm) for module in net.modules())
    with pretended_gpu():
        World(torch.device("cuda"), 0, 2).place([net], channels_last=True)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in net.modules()) == before > 5


@pytest.mark.gpu
def test_on_a_gpu_ranks_normalize_the_global_batch(tmp_path: Path):
    done = torchrun(tmp_path, 2, "helpers.batch_norm_ranks", "cuda")
    assert done.returncode == 0, done.stderr
