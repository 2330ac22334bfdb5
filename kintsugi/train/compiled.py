"""Networks that torch.compile has compiled, for the training steps alone; on a GPU as CUDA graphs if asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

Compiling = Literal["no", "compile", "graph"]
"""compile: torch.compile fuses operations. graph: it also records the kernels of a network's forward and backward pass
as CUDA graphs, so that a step starts few graphs instead of hundreds of kernels."""


def compile_network(net: nn.Module, how: Compiling) -> None:
    """Compiles calls of a network, in place, at its next call."""
    if how == "compile":
        net.compile()
    elif how == "graph":
        net.compile(mode="reduce-overhead")


def begin_step(how: Compiling) -> None:
    """To be called before each training step: the results of graphs of the step before may be overwritten."""
    if how == "graph":
        torch.compiler.cudagraph_mark_step_begin()


def uncompiled(how: Compiling) -> AbstractContextManager[object]:
    """A context in which networks run as if not compiled.

    Pictures and evaluation have images of other numbers and sizes, for each of which a network would be compiled anew;
    and they keep the results of several calls, which graphs would overwrite.
    """
    return nullcontext() if how == "no" else torch.compiler.set_stance("force_eager")
