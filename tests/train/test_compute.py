from __future__ import annotations

import pytest
import torch

from kintsugi.train.compute import Compute, Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "bf16"), [("auto", False), ("fp32", False), ("bf16", True)])
def test_precision_on_a_cpu(precision: Precision, bf16: bool):
    compute = Compute.of("cpu", precision)
    assert compute == Compute(CPU, bf16=bf16)
    assert compute.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert str(compute) == ("the CPU in bf16" if bf16 else "the CPU")
    with compute.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == compute.dtype
