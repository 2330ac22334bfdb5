"""SimCLR with local crops; without them it is the paper's loss of two views."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from helpers.view_cases import BATCH, WORLD
from torch import Tensor

from kintsugi.contrastive import simclr
from kintsugi.losses.infonce import info_nce, nt_xent_logits


def small(**settings: Any) -> simclr.SimCLR:
    torch.manual_seed(0)
    return simclr.SimCLR(replace(simclr.demo(), size=32, batch=8, norm="group", local_size=32, **settings), WORLD)


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    return info_nce(*nt_xent_logits(one, other, temperature))


def test_without_local_crops_the_loss_is_that_of_the_two_views():
    method = small()
    views = [method.view(BATCH, which, 3) for which in (0, 1)]
    (crops,) = method.crops(BATCH, 3)
    assert all(torch.equal(crop, view) for crop, view in zip(crops, views, strict=True))
    with torch.no_grad():
        one, other = (method.projector(method.encoder.vectors(view)) for view in views)
    loss = method.update(method.inputs(BATCH, 3), 3)["loss/nt_xent"]
    torch.testing.assert_close(loss, nt_xent(one, other, method.config.temperature))


def test_each_local_crop_is_matched_with_both_views():
    method = small(local_crops=2)
    crops = [crop for kind in method.crops(BATCH, 3) for crop in kind]
    assert [tuple(crop.shape) for crop in crops] == [(8, 3, 32, 32)] * 4
    with torch.no_grad():
        embeddings = [method.projector(method.encoder.vectors(crop)) for crop in crops]
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    each = [nt_xent(embeddings[i], embeddings[j], method.config.temperature) for i, j in pairs]
    torch.testing.assert_close(method.update(method.inputs(BATCH, 3), 3)["loss/nt_xent"], torch.stack(each).mean())
