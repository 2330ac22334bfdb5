"""Tensors that are brought to a device in one message."""

from __future__ import annotations

import torch
from helpers.pretended_gpu import OnGPU, pretended_gpu

from kintsugi.upload import constant, upload

VALUES = (
    torch.tensor([True, False, True]),
    torch.arange(10).view(2, 5).T,  # not contiguous
    torch.rand(3, 1, 2, generator=torch.Generator().manual_seed(0)),
    torch.tensor(7, dtype=torch.uint8),
    torch.empty(0, 4),
)


def test_all_types_and_shapes_arrive_in_one_message_without_a_wait():
    with pretended_gpu() as seen:
        there = torch.ones(2, device="cuda")
        seen.reset()
        *sent, same = upload("cuda", *VALUES, there)
        assert not seen.waits
        assert sum(count for (what, _), count in seen.kernels.items() if what == "upload") == 1
        assert same is there
        for value, arrived in zip(VALUES, sent, strict=True):
            assert isinstance(arrived, OnGPU)
            assert arrived.dtype == value.dtype
            assert torch.equal(arrived.cpu(), value)
        assert upload("cuda", there) == (there,)  # no message


def test_on_a_cpu_tensors_stay_as_they_are():
    assert all(one is other for one, other in zip(upload("cpu", *VALUES), VALUES, strict=True))


def test_a_constant_is_sent_once():
    with pretended_gpu() as seen:
        device, value = torch.device("cuda"), torch.tensor([1.0, 2.0])
        first = constant(value, device)
        seen.reset()
        assert constant(value, device) is first
        assert not seen.waits
        assert first.tolist() == [1, 2]
