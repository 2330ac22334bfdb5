"""Networks whose results are overwritten at the next step, as those of CUDA graphs are; without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo import config as dynamo_config

from kintsugi.train import dist, loop


@dataclass
class Compilations:
    """What was compiled: the number of the training step of each graph, from 0; -1 = outside of the training steps."""

    steps: list[int] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)
    """Results of the step that runs."""
    step: int = -1

    def backend(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., list[object]]:
        """A backend of torch.compile that computes without compiling, and keeps the results."""
        self.steps.append(self.step)

        def compute(*values: Tensor) -> list[object]:
            found = [value.clone() if isinstance(value, Tensor) else value for value in graph(*values)]
            self.results += [value.detach() for value in found if isinstance(value, Tensor)]
            return found

        return compute

    def overwrite(self) -> None:
        """Fills the results of the step before with nan, which whoever kept one then finds."""
        for result in self.results:
            if result.is_floating_point():
                result.fill_(torch.nan)
        self.results.clear()


@contextmanager
def pretended_graphs(patch: pytest.MonkeyPatch) -> Iterator[Compilations]:
    """Runs of ``train`` with --compile then use pretended graphs."""
    found = Compilations()

    def compile_network(net: nn.Module, how: str) -> None:
        assert how == "compile"
        net.compile(backend=found.backend, dynamic=False)

    def begin_step(how: str) -> None:
        found.overwrite()

    patch.setattr(dist, "compile_network", compile_network)
    patch.setattr(loop, "begin_step", begin_step)
    torch.compiler.reset()
    with dynamo_config.patch(fail_on_recompile_limit_hit=True):  # networks would then run uncompiled
        yield found
    torch.compiler.reset()
