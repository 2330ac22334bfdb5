"""Reads nested dicts and lists, such as the state in a checkpoint."""

from __future__ import annotations

from torch import Tensor


def tensors(value: object) -> list[Tensor]:
    """All tensors anywhere in nested dicts and lists, in order."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [t for v in inner for t in tensors(v)]
