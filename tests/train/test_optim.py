from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kintsugi.nets.encoder_choice import chosen
from kintsugi.train import optim
from kintsugi.train.ema import RunningAverage


@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_gradient_with_another_memory_layout_than_its_weight_gives_the_same_step(rule: type[torch.optim.Optimizer]):
    """Fused optimizers read both in the order in which they lie in memory."""
    weights = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    ends = []
    for fused in (True, False):
        weight = nn.Parameter(weights.clone(memory_format=torch.channels_last))
        optimizer = rule([weight], lr=0.1, fused=fused)  # type: ignore[call-arg]
        for number in range(3):
            random = torch.Generator().manual_seed(number)
            weight.grad = torch.randn(8, 4, 3, 3, generator=random)
            assert fused is False or weight.grad.stride() != weight.stride()
            optim.take_step(optimizer)
        ends.append(weight.detach())
    assert not torch.equal(ends[0], weights)
    torch.testing.assert_close(ends[0], ends[1])


def test_a_running_average_forgets_its_first_values_and_then_decays_as_set():
    net = nn.Linear(1, 1, bias=False)
    average = RunningAverage(net, 0.6)
    expected = 0.0
    for count in range(20):
        value = float(count**2 % 7)
        net.weight.data.fill_(value)
        average.update_parameters(net)
        decay = min(0.6, (1 + count) / (10 + count))
        expected = value if count == 0 else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [5, 60, 600])
def test_a_cosine_from_the_first_step_is_multiplied_by_the_warm_up(steps: int):
    warmup = max(1, steps // 10)
    for step in range(steps):
        expected = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
        assert optim.warmup_cosine(step, steps, steps // 10, cosine_from=0) == expected


def test_lamb_for_all_tensors_at_once_takes_the_steps_of_the_paper():
    """You 2020, Algorithm 2, tensor by tensor: in double precision, and without scaling where weights do not decay."""
    random = torch.Generator().manual_seed(0)
    starts = [
        torch.randn(4, 3, generator=random),
        torch.randn(5, 2, 3, generator=random),
        torch.randn(7, generator=random),
    ]
    weights = [nn.Parameter(start.clone()) for start in starts]
    rate, decay, betas = 0.01, 0.1, (0.9, 0.95)
    groups = [{"params": weights[:2], "weight_decay": decay}, {"params": weights[2:], "weight_decay": 0.0}]
    optimizer = optim.lamb(groups, rate, betas)
    expected = [start.double() for start in starts]
    firsts, seconds = ([torch.zeros_like(x) for x in expected] for _ in range(2))
    for step in range(3):
        for number, (weight, x) in enumerate(zip(weights, expected, strict=True)):
            weight.grad = torch.randn(weight.shape, generator=random)
            gradient = weight.grad.double()
            firsts[number] = betas[0] * firsts[number] + (1 - betas[0]) * gradient
            seconds[number] = betas[1] * seconds[number] + (1 - betas[1]) * gradient**2
            first, second = (
                firsts[number] / (1 - betas[0] ** (step + 1)),
                seconds[number] / (1 - betas[1] ** (step + 1)),
            )
            change = first / (second.sqrt() + 1e-6)
            if number < 2:
                change += decay * x
                change *= x.norm() / change.norm()
            expected[number] = x - rate * change
        optim.set_lamb_step(optimizer, step)
        optimizer.step()
    for weight, start, x in zip(weights, starts, expected, strict=True):
        assert (x - start).norm() > 0.01 * start.norm()
        torch.testing.assert_close(weight.detach().double(), x, rtol=1e-5, atol=1e-6)


def test_the_same_parameters_decay_as_by_timms_rule():
    from timm.optim import param_groups_weight_decay

    nets = nn.ModuleList([chosen("timm:test_vit", size=32).build(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)])
    free, decaying = param_groups_weight_decay(nets, 0.1, no_weight_decay_list=("*_token",))
    ours = optim.decay_groups(nets, 0.1)
    for mine, timms in zip(ours, (decaying, free), strict=True):
        assert mine["weight_decay"] == timms["weight_decay"]
        assert set(mine["params"]) == set(timms["params"])
    assert any(p.ndim > 1 for p in ours[1]["params"])  # the tokens
