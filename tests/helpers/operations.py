"""What an operation of torch does, as far as its schema and its arguments tell."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten


def is_view(func: Any) -> bool:
    """Whether the results of an operation share the memory of its first argument."""
    returns = func._schema.returns
    return bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors to which an operation writes."""
    given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
    written = [one.name for one in func._schema.arguments if one.alias_info is not None and one.alias_info.is_write]
    return [x for name in written for x in tree_flatten(given.get(name))[0] if isinstance(x, Tensor)]


def launches(name: str, args: Any) -> int:
    """The number of kernels of an operation: of one on lists that torch computes tensor by tensor, their length."""
    lists = [x for x in args if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor)]
    if not name.startswith("_foreach") or len(lists) < 2:
        return 1
    alike = all(
        x.shape == y.shape and x.dtype == y.dtype and _layout(x) == _layout(y)
        for other in lists[1:]
        for x, y in zip(lists[0], other, strict=False)
    )
    return 1 if alike else len(lists[0])


def _layout(tensor: Tensor) -> list[int]:
    """The strides of the dimensions that have any; those of size 1 are arbitrary on the CPU."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
