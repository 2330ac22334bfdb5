from __future__ import annotations

import math

import pytest
import torch
from torch import nn

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
