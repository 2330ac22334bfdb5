from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from kintsugi.losses import adversarial
from kintsugi.nets.discriminators import DiscriminatorNorm, DiscriminatorSpec
from kintsugi.rng import generator

LOGITS = [-30.0, -2.0, -0.5, 0.0, 0.3, 1.0, 2.5, 30.0]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_bce_equals_the_logarithms() -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    fake = mean([-math.log(1 - 1 / (1 + math.exp(-x))) for x in LOGITS])
    real = mean([-math.log(1 / (1 + math.exp(-x))) for x in LOGITS])
    assert adversarial.real_loss(logits).item() == pytest.approx(real)
    assert adversarial.fake_loss(logits).item() == pytest.approx(fake, rel=1e-4)
    assert adversarial.generator_loss(logits).item() == pytest.approx(real)  # non-saturating: fakes called real


def test_hinge_equals_the_loop() -> None:
    logits = torch.tensor(LOGITS)
    assert adversarial.real_loss(logits, "hinge").item() == pytest.approx(mean([max(0, 1 - x) for x in LOGITS]))
    assert adversarial.fake_loss(logits, "hinge").item() == pytest.approx(mean([max(0, 1 + x) for x in LOGITS]))
    assert adversarial.generator_loss(logits, "hinge").item() == pytest.approx(mean([-x for x in LOGITS]))


@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_losses_stay_finite_and_push_the_right_way(kind: adversarial.Kind) -> None:
    for loss, up in ((adversarial.real_loss, True), (adversarial.fake_loss, False), (adversarial.generator_loss, True)):
        logits = torch.tensor([-200.0, 0.0, 200.0], requires_grad=True)
        value = loss(logits, kind)
        value.backward()
        assert value.isfinite()
        assert logits.grad is not None
        assert (logits.grad[1] < 0) == up


def test_r1_equals_finite_differences() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 1), nn.Flatten(0)).double()
    images = torch.rand(2, 3, 5, 5, dtype=torch.float64, generator=generator(1))
    penalty = adversarial.r1_penalty(net, images)

    step, total = 1e-5, 0.0
    with torch.no_grad():
        for i in range(2):
            for j in range(3 * 5 * 5):
                nudge = torch.zeros(75, dtype=torch.float64)
                nudge[j] = step
                nudge = nudge.view(1, 3, 5, 5)
                slope = (net(images[i : i + 1] + nudge) - net(images[i : i + 1] - nudge)) / (2 * step)
                total += slope.item() ** 2
    assert penalty.item() == pytest.approx(0.5 * total / 2, rel=1e-6)


@pytest.mark.parametrize("norm", ["group", "spectral"])
def test_r1_has_gradients_for_the_discriminator_alone(norm: DiscriminatorNorm) -> None:
    torch.manual_seed(0)
    net = DiscriminatorSpec(16, width=8, norm=norm).build()
    images = torch.rand(2, 3, 16, 16)
    adversarial.r1_penalty(net, images).backward()
    assert images.grad is None
    assert all(p.grad is not None and p.grad.any() for n, p in net.named_parameters() if n.endswith("original"))
    assert any(p.grad is not None and p.grad.any() for p in net.parameters())


def statistics(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in net.named_buffers()}


def test_no_statistics_update_uses_the_batch_but_keeps_the_averages() -> None:
    torch.manual_seed(0)
    net = DiscriminatorSpec(16, width=8).build().train()
    twin = copy.deepcopy(net)
    images = torch.rand(4, 3, 16, 16)
    before = statistics(net)
    with adversarial.no_statistics_update(net):
        logits = net(images)
    assert torch.equal(logits, twin(images))
    assert all(torch.equal(before[name], b) for name, b in net.named_buffers())
    assert any(not torch.equal(before[name], b) for name, b in twin.named_buffers())
    net(images)
    assert all(torch.equal(b, c) for b, c in zip(net.buffers(), twin.buffers(), strict=True))  # updates again


def test_frozen_passes_gradients_through_but_collects_none() -> None:
    torch.manual_seed(0)
    net = DiscriminatorSpec(16, width=8).build().train()
    net.head.bias.requires_grad_(False)  # was frozen before
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    before = statistics(net)
    with adversarial.frozen(net):
        adversarial.generator_loss(net(images)).backward()
    assert images.grad is not None
    assert images.grad.any()
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], b) for name, b in net.named_buffers())
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))
