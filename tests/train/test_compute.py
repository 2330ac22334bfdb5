from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from kintsugi.train.compute import Compute, Precision, deterministic

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "bf16"), [("auto", False), ("fp32", False), ("bf16", True)])
def test_precision_on_a_cpu(precision: Precision, bf16: bool):
    compute = Compute.of("cpu", precision)
    assert compute == Compute(CPU, bf16=bf16)
    assert compute.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert str(compute) == ("the CPU in bf16" if bf16 else "the CPU")
    with compute.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == compute.dtype


def test_attention_in_bf16_on_a_cpu_is_near_that_in_fp32_and_not_the_slow_fused_one():
    q, k, v = torch.randn(3, 2, 3, 40, 16, generator=torch.Generator().manual_seed(0)).unbind()
    expected = ((q @ k.mT) / 4).softmax(-1) @ v
    with torch.profiler.profile() as profile, Compute(CPU, bf16=True).autocast():
        found = scaled_dot_product_attention(q.requires_grad_(), k, v)
        found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, atol=0.03)
    names = [event.key for event in profile.key_averages()]
    assert not any("flash" in name for name in names), names
    assert torch.backends.cuda.flash_sdp_enabled()  # outside, all is as before


def test_deterministic_refuses_an_operation_that_cannot_be_in_one_line():
    values, places = torch.zeros(3), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"--deterministic does not work .*put_.*: leave it out$"), deterministic(True):
        values.put_(places, torch.tensor([1.0, 2.0]))
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_leaves_other_errors_as_they_are_and_is_off_by_default():
    with pytest.raises(RuntimeError, match="must match"), deterministic(True):
        torch.zeros(3) + torch.zeros(2)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
