"""A GPU that is pretended on the CPU: it finds most of what goes wrong on a GPU, on a machine without one.

Within ``pretended_gpu()``, tensors that are made on ``cuda``, or brought there, say that they are on ``cuda:0``. Each
holds a tensor on the CPU, which does the computing, so that all values are as on the CPU. Unlike a tensor on the CPU:

- together with a tensor of the CPU it raises RuntimeError, as does NumPy on it;
- each operation on it counts as a kernel. A list that is changed by one operation counts as one kernel, if torch has
  one for lists of such shapes and types; views and memory that is only allocated count as none;
- operations for which the CPU would have to wait for the GPU are counted: values that are read (item, bool, tolist,
  copies to the CPU), results whose size depends on values (boolean indices, nonzero), uploads from memory that is not
  pinned or without ``non_blocking``;
- operations on float64 are counted;
- a stream that uses memory before another one is done with it raises RuntimeError (``pretended_streams``).

It differs from a GPU in what is inside an operation: one may be several kernels there, and autocast follows the rules
for CPUs. Other threads see the GPU's functions (is_available and so on) but must not make tensors on it.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._pytree import tree_flatten, tree_map_only

from helpers.command_line import ROOT
from helpers.operations import is_view, launches, written
from helpers.pretended_streams import Memory, PretendedStream, streams

CUDA = torch.device("cuda", 0)
WAITING = frozenset(
    "_local_scalar_dense nonzero bincount _unique2 unique_dim unique_consecutive masked_select histc equal is_nonzero "
    "_linalg_svd _linalg_eigh linalg_eig linalg_lstsq linalg_inv_ex multinomial".split()
)
"""Operations that end with a look at values, on the CPU."""
ALLOCATING = frozenset("empty empty_like empty_strided new_empty new_empty_strided _unsafe_view".split())
SAME_DEVICE = ("cat", "stack", "gather", "scatter", "index_select", "index_add", "embedding", "mm", "bmm", "addmm")
"""Operations that do not even take 0-d tensors of the CPU."""


class Seen:
    """What happened on the pretended GPU since ``reset``: counters of (operation, place in the project)."""

    def __init__(self) -> None:
        self.kernels: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.float64: Counter[tuple[str, str]] = Counter()
        self.pinned: dict[int, Tensor] = {}  # address -> memory that the GPU may read by itself

    def reset(self) -> None:
        for counter in (self.kernels, self.waits, self.float64):
            counter.clear()

    def add(self, other: Seen) -> None:
        self.kernels += other.kernels
        self.waits += other.waits
        self.float64 += other.float64

    def wait(self, what: str) -> None:
        self.waits[what, place()] += 1


_seen = Seen()


def place() -> str:
    """The innermost line of the project's own code that is running, but not of this file."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if file.startswith(f"{ROOT}/") and file != __file__ and "/.venv/" not in file:
            return f"{file[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class OnGPU(Tensor):
    """A tensor on the pretended GPU. To C++ it is on the CPU, without memory; ``values`` has its values."""

    values: Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, values: Tensor) -> OnGPU:
        values = values if values.layout == torch.strided else values.to_dense()
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=values.device,
        )
        made.values, made.memory = values, Memory()
        return made

    def record_stream(self, stream: PretendedStream) -> None:  # type: ignore[override]
        self.memory.recorded.add(stream)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGPU({self.values})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnGPU:
        if id(self) not in memo:
            made = OnGPU(self.values.detach().clone()).requires_grad_(self.requires_grad)
            own = {name: v for name, v in self.__dict__.items() if name not in ("values", "memory")}
            made.__dict__.update({name: copy.deepcopy(v, memo) for name, v in own.items()})
            memo[id(self)] = made
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.detach().__reduce_ex__(protocol)  # for torch.save

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None  # ``Module.to`` then changes the parameters themselves, as it does with GPUs

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> OnGPU:
        return OnGPU(inner["values"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        _check(name, args, tensors)
        if func._schema.name.startswith(("aten::", "torchvision::", "kintsugi::")):
            _count(func, name, args, kwargs, tensors)
        changed = written(func, args, kwargs)
        for each in tensors:
            if isinstance(each, OnGPU) and not is_view(func):
                each.memory.used(f"{name}, at {place()}", writes=any(each is one for one in changed))
        out = func(*tree_map_only(OnGPU, _values, args), **tree_map_only(OnGPU, _values, kwargs))
        if not func._schema.returns:
            return None
        if name.endswith("_") and not name.endswith("__"):
            return args[0]
        if kwargs.get("out") is not None:
            return kwargs["out"]
        if name == "copy" and not isinstance(args[0], OnGPU):
            return out
        out = tree_map_only(Tensor, OnGPU, out)
        if is_view(func):
            for each in tree_flatten(out)[0]:
                each.memory = args[0].memory
        return out


def _values(tensor: OnGPU) -> Tensor:
    return tensor.values


def _check(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Raises RuntimeError for tensors of both devices, unless torch brings one to the other by itself."""
    foreign = [x for x in tensors if not isinstance(x, OnGPU)]
    if name == "copy_" and foreign:
        (_seen.wait("copy to the CPU") if isinstance(args[1], OnGPU) else _upload(args[1], *args[2:]))
        return
    if name.lstrip("_").startswith(("index.", "index_put", "index")) and len(args) > 1 and isinstance(args[1], list):
        if not isinstance(args[0], OnGPU):
            raise RuntimeError(f"{name}: a tensor of the CPU is indexed by one of the GPU, at {place()}")
        for index in args[1]:
            if index is not None and not isinstance(index, OnGPU):
                _seen.wait("indices uploaded")
        foreign = [x for x in foreign if not any(x is index for index in args[1])]
    strict = name.lstrip("_").rstrip("_") in SAME_DEVICE
    if torch._C._current_graph_task_id() != -1:  # gradients that are zero are made by C++, which knows only the CPU
        foreign = [x for x in foreign if x.any()]
    if any(strict or x.ndim > 0 for x in foreign):
        shapes = ", ".join(f"{'cuda' if isinstance(x, OnGPU) else 'cpu'} {tuple(x.shape)}" for x in tensors)
        raise RuntimeError(f"{name}: tensors on both devices, {shapes}, at {place()}")


def _count(func: Any, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    where = (name, place())
    if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _seen.waits[where] += 1
    if name.lstrip("_").startswith("index") and len(args) > 1 and isinstance(args[1], list):
        masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
        filled = name.startswith(("index_put", "_index_put")) and args[2].numel() == 1
        if masks and not filled:
            _seen.waits["boolean index", where[1]] += 1
    if is_view(func) or name in ALLOCATING or name == "_local_scalar_dense":
        return
    _seen.kernels[where] += launches(name, args)
    if any(x.dtype == torch.float64 for x in tensors if isinstance(x, OnGPU)):
        _seen.float64[where] += 1


def _upload(values: Tensor, non_blocking: bool = False) -> None:
    """Counts an upload: as a kernel, and as a wait if the CPU must wait until it is done."""
    _seen.kernels["upload", place()] += 1
    if not (non_blocking and values.is_pinned()):
        _seen.wait("pageable upload" if not values.is_pinned() else "blocking upload")


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Calls(TorchFunctionMode):
    """Brings tensors to the pretended GPU and back, and makes tensors there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("to", "cuda", "cpu", "type_as") and args and isinstance(args[0], Tensor):
            return _move(name, args, kwargs)
        if name in ("numpy", "__array__", "tolist") and isinstance(args[0], OnGPU):
            return _read(name, args[0], kwargs)
        if name == "new_tensor" and isinstance(args[0], OnGPU):
            _seen.wait("pageable upload")
            return OnGPU(func(args[0].values, *args[1:], **kwargs))
        if kwargs.pop("pin_memory", False):
            return func(*args, **kwargs).pin_memory()
        if _is_gpu(kwargs.get("device")):
            del kwargs["device"]
            random = kwargs.get("generator")
            if random is not None and random.device.type == "cpu":
                raise RuntimeError(f"{name}: a generator of the CPU draws on the GPU, at {place()}")
            if name in ("tensor", "as_tensor") and not isinstance(args[0], OnGPU):
                _seen.wait("pageable upload")
            made = func(*args, **kwargs)
            _seen.kernels[name, place()] += "empty" not in name
            return made if isinstance(made, OnGPU) else OnGPU(made.detach()).requires_grad_(made.requires_grad)
        return func(*args, **kwargs)


def _read(name: str, tensor: OnGPU, kwargs: dict[str, Any]) -> Any:
    if name == "tolist" or kwargs.get("force"):
        _seen.wait(name)
        return getattr(tensor.values.detach(), name)()
    raise TypeError(f"can't convert a tensor on cuda:0 to NumPy, at {place()}")


class _Moved(torch.autograd.Function):
    """A tensor on the other device, with a gradient that goes back."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return tensor.values.clone() if isinstance(tensor, OnGPU) else OnGPU(tensor.clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient.values if isinstance(gradient, OnGPU) else OnGPU(gradient)


def _move(name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """``Tensor.to``, ``cuda``, ``cpu`` and ``type_as``."""
    tensor, *rest = args
    device: Any = {"cuda": CUDA, "cpu": "cpu"}.get(name)
    if rest and isinstance(rest[0], Tensor):
        device, rest[0] = rest[0].device, rest[0].dtype
    elif name == "to" and rest and not isinstance(rest[0], torch.dtype):
        device, *rest = rest
    names = ("non_blocking",) if name in ("cuda", "cpu") else ("dtype", "non_blocking", "copy")
    kwargs |= dict(zip(names, rest, strict=False))
    device, non_blocking = kwargs.pop("device", device), kwargs.pop("non_blocking", False)
    if _is_gpu(device) and not isinstance(tensor, OnGPU):
        _upload(tensor, non_blocking)
        tensor = _Moved.apply(tensor)
        if not non_blocking:
            tensor.memory.kept()
    elif device is not None and not _is_gpu(device) and isinstance(tensor, OnGPU):
        _seen.wait("copy to the CPU")
        tensor = _Moved.apply(tensor)
    return torch.Tensor.to(tensor, **kwargs) if kwargs else tensor


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    if isinstance(tensor, OnGPU):
        raise RuntimeError(f"cannot pin a tensor of the GPU, at {place()}")
    pinned = tensor.clone()
    _seen.pinned[pinned.untyped_storage().data_ptr()] = pinned
    return pinned


def _is_pinned(tensor: Tensor, *_: Any) -> bool:
    return tensor.untyped_storage().data_ptr() in _seen.pinned


@contextmanager
def pretended_gpu() -> Iterator[Seen]:
    """A context with a pretended GPU, ``cuda:0``; gives what happens there."""
    plain_autocast = torch.autocast.__init__
    plain_groups = torch._C._group_tensors_by_device_and_dtype

    def autocast(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        plain_autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def groups(lists: Any, with_indices: bool = False) -> Any:
        """C++ groups lists of tensors by device and type, for optimizers and norms of gradients; it knows only CPUs."""
        found = plain_groups(lists, with_indices)
        return {
            (CUDA if isinstance(tensors[0][0], OnGPU) else device, dtype): (tensors, indices)
            for (device, dtype), (tensors, indices) in found.items()
        }

    patches = [
        patch.multiple(
            torch.cuda,
            _lazy_init=lambda: None,
            is_available=lambda: True,
            device_count=lambda: 1,
            is_bf16_supported=lambda *_: True,
            is_current_stream_capturing=lambda: False,
            mem_get_info=lambda *_: (2**36, 2**36),
            get_device_name=lambda *_: "a pretended GPU",
            get_device_properties=lambda *_: SimpleNamespace(L2_cache_size=50 * 2**20),
            synchronize=lambda *_: None,
            Stream=PretendedStream,
            stream=streams.use,
            current_stream=lambda *_: streams.current,
        ),
        patch.object(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None, create=True),
        patch.object(torch.autocast, "__init__", autocast),
        patch.object(torch._C, "_group_tensors_by_device_and_dtype", groups),
        patch.object(Tensor, "pin_memory", _pin),
        patch.object(Tensor, "is_pinned", _is_pinned),
        patch.object(_foreach_utils, "_foreach_supported_types", [*_foreach_utils._foreach_supported_types, OnGPU]),
    ]
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        stack.enter_context(_Calls())
        _seen.reset()
        _seen.pinned.clear()
        yield _seen
