"""BYOL: its target network and its separate batches."""

from __future__ import annotations

import torch
from helpers.view_cases import BATCH, small_byol

from kintsugi.train.ema import cosine_momentum


def test_views_never_share_a_batch():
    method, sizes = small_byol(), []
    for encoder in (method.encoder, method.target[0]):
        encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    method.update(BATCH, 0)
    assert sizes == [8] * 4


def test_the_target_gets_no_gradient_and_is_a_moving_average():
    method = small_byol()
    before = [p.clone() for p in method.target.parameters()]
    method.update(BATCH, 0)
    assert all(p.grad is None for p in method.target.parameters())
    momentum = cosine_momentum(method.config.momentum, 0, 40)
    pairs = zip(before, method.target.parameters(), method.source.parameters(), strict=True)
    for old, now, online in pairs:
        torch.testing.assert_close(now, momentum * old + (1 - momentum) * online)


def test_no_collapse_with_a_small_batch():
    method = small_byol()
    scalars = [method.update(BATCH, step) for step in range(20)]
    assert scalars[-1]["loss/byol"] < scalars[0]["loss/byol"]
    assert scalars[-1]["spread/deviation"] > 0.3
