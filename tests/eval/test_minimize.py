from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kintsugi.eval.minimize import all_layers, layer_decay, minimize
from kintsugi.eval.weights import Weights
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.vit import ViT
from kintsugi.train.optim import set_lr


class Net(nn.Module):
    """An encoder and a head."""

    def __init__(self, spec: Backbone | ViT) -> None:
        super().__init__()
        self.encoder, self.head = spec.build(), nn.Linear(4, 2)


def test_each_block_of_a_vision_transformer_has_a_higher_rate_than_the_one_before():
    net = Net(ViT("test_vit", 32, 8))  # 6 blocks
    names = {parameter: name for name, parameter in net.named_parameters()}
    optimizer = torch.optim.AdamW(all_layers(net, net.encoder, 0.5), 1.0)
    set_lr(optimizer, 0.8)
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    for name, rate in rates.items():
        if name.startswith("head"):
            assert (rate, decays[name]) == (0.8, 0.01)
            continue
        inner = name.removeprefix("encoder.net.")
        block = int(inner.split(".")[1]) + 1 if inner.startswith("blocks.") else 6 if inner.startswith("norm") else 0
        assert rate == pytest.approx(0.8 * 0.5 ** (7 - block)), name
        is_free = inner.endswith("bias") or "norm" in inner or inner in ("cls_token", "pos_embed")
        assert decays[name] == (0 if is_free else 0.01), name


def test_without_decay_all_layers_have_one_rate():
    net = Net(ViT("test_vit", 32, 8))
    assert {group.get("lr_scale", 1.0) for group in all_layers(net, net.encoder, 1.0)} == {1.0}


def test_other_networks_have_one_rate_and_frozen_parameters_are_left_out():
    net = Net(Backbone("alexnet"))
    encoder, head = all_layers(net, net.encoder, 0.5)
    assert encoder == {"params": list(net.encoder.parameters())}
    assert head == {"params": list(net.head.parameters())}
    net.encoder.requires_grad_(False)
    assert [len(group["params"]) for group in all_layers(net, net.encoder, 0.5)] == [0, 2]


def test_random_weights_have_no_layer_decay():
    assert layer_decay(Weights("random", {})) == 1
    assert layer_decay(Weights("trained", {}, ({},))) == 0.75


def test_it_minimizes_as_adamw_with_warm_up_and_cosine():
    def quadratic(x: Tensor) -> Tensor:
        return ((x - torch.tensor([1.0, -2.0])) ** 2).sum()

    ours, other = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    losses = minimize([ours], lambda step: quadratic(ours), 20, 0.1, "test")
    optimizer = torch.optim.AdamW([other], 0.1, weight_decay=1e-2)
    expected = []
    for step in range(20):
        loss = quadratic(other)
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / 20)) / 2
        optimizer.step()
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < 0.3 * losses[0]
