"""BYOL: its target network and its separate batches."""

from __future__ import annotations

import torch
from helpers.view_cases import BATCH, small_byol

from kintsugi.train.ema import cosine_momentum


def test_views_never_share_a_batch():
    method, sizes = small_byol(), []
    for encoder in (method.encoder, method.target[0]):
        encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    method.update(method.inputs(BATCH, 0), 0)
    assert sizes == [8] * 4


def test_the_target_gets_no_gradient_and_is_a_moving_average():
    method = small_byol()
    before = [p.clone() for p in method.target.parameters()]
    method.update(method.inputs(BATCH, 0), 0)
    assert all(p.grad is None for p in method.target.parameters())
    momentum = cosine_momentum(method.config.momentum, 0, 40)
    pairs = zip(before, method.target.parameters(), method.source.parameters(), strict=True)
    for old, now, online in pairs:
        torch.testing.assert_close(now, momentum * old + (1 - momentum) * online)


def test_no_collapse_with_a_small_batch():
    method = small_byol(log_every=1)
    scalars = [method.update(method.inputs(BATCH, step), step) for step in range(25)]
    losses = [float(each["loss/byol"]) for each in scalars]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(float(each["spread/deviation"]) > 0.9 for each in scalars)


def test_the_predictors_rate_is_a_multiple_of_the_others():
    """Plain SGD's first step is the rate times the gradient, which does not depend on the rate."""
    changes = []
    for factor in (1.0, 10.0):
        method = small_byol(optimizer="sgd", lr=1e-3, predictor_lr=factor, weight_decay=0.0)
        before = [[p.clone() for p in net.parameters()] for net in (method.predictor, method.source)]
        method.update(method.inputs(BATCH, 0), 0)
        nets = zip(before, (method.predictor, method.source), strict=True)
        changes.append([[p - q for p, q in zip(net.parameters(), old, strict=True)] for old, net in nets])
    (predictor, source), (fast, same) = changes
    torch.testing.assert_close(fast, [10 * p for p in predictor], rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(same, source)
    assert max(p.abs().max() for p in predictor) > 1e-6


def test_the_norm_at_the_projectors_end_cannot_shift_all_projections_alike():
    method = small_byol()
    method.update(method.inputs(BATCH, 0), 0)
    norm = method.projector[-1]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    assert not list(norm.parameters())
