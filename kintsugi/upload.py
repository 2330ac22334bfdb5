"""Brings tensors from the CPU to a device without waiting for it.

``Tensor.to`` of memory that is not pinned waits until the device has done all that it was given before. What a training
step draws on the CPU is therefore packed into pinned memory and sent in one message, behind which the CPU goes on.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

_ALIGNED = 16  # bytes; a multiple of every type's size


def upload(device: torch.device | str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Brings tensors of any shapes and types to ``device`` in one message; those that are there stay as they are.

    On a device that is no GPU this is ``Tensor.to``.

    >>> upload("cpu", torch.tensor([1, 2]))
    (tensor([1, 2]),)
    """
    device = torch.device(device)
    if device.type != "cuda":
        return tuple(each.to(device) for each in tensors)
    here = [each for each in tensors if each.device.type == "cpu"]
    ends = [0]
    for each in here:
        ends.append(ends[-1] + math.ceil(each.nbytes / _ALIGNED) * _ALIGNED)
    if not here:
        return tensors
    packed = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True)
    for each, start in zip(here, ends, strict=False):
        _part(packed, start, each).copy_(each)
    there = packed.to(device, non_blocking=True)
    sent = iter([_part(there, start, each) for each, start in zip(here, ends, strict=False)])
    return tuple(next(sent) if each.device.type == "cpu" else each for each in tensors)


def _part(packed: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of ``packed`` from byte ``start`` on, seen as a tensor of the type and shape of ``like``."""
    return packed[start : start + like.nbytes].view(like.dtype).view(like.shape)


@functools.cache
def constant(value: Tensor, device: torch.device) -> Tensor:
    """A constant on a device. It is uploaded at its first use and stays there. Constants must never be changed."""
    return value.to(device)
