"""Networks compiled into CUDA graphs: what graphs need is tested with pretended ones, for every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.pretended_graphs import pretended_graphs
from helpers.tiny_runs import OPTIONS, arguments, class_of, module_of
from torch import Tensor, nn
from torch._dynamo.utils import counters

from kintsugi.train.compiled import compile_network, uncompiled
from kintsugi.train.config import TrainConfig
from kintsugi.train.method import Batch

LATER = {"inpainting", "mender", "superresolution", "cliquecnn"}
"""Methods that begin to use networks after the first step."""


def steps_of(method: str, folders: dict[str, Path], more: str, out: Path) -> None:
    """Four steps of the smallest run, with pictures and an evaluation after the second one."""
    module_of(method).main([*arguments(method, folders), *more.split(), "--out", str(out)])


@pytest.mark.parametrize("method", OPTIONS)
def test_what_graphs_need(method: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No result is read after its step, networks are compiled in one piece, and only once, for training alone."""
    kind = class_of(method)
    plain = kind.update
    counters.clear()
    with pretended_graphs(monkeypatch) as found:

        def update(self: object, inputs: Batch, step: int) -> dict[str, Tensor]:
            found.step = step
            try:
                return plain(self, inputs, step)
            finally:
                found.step = -1

        monkeypatch.setattr(kind, "update", update)
        steps_of(method, folders, "--compile", tmp_path / "run")  # stops if a loss or a weight is nan
    assert not counters["graph_break"]
    assert found.steps
    assert set(found.steps) <= ({0, 1, 2} if method in LATER else {0})


def test_a_result_that_is_kept_is_found(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    kind = class_of("rotation")
    plain, kept = kind.update, list[Tensor]()

    def update(self: nn.Module, inputs: Batch, step: int) -> dict[str, Tensor]:
        scalars = plain(self, inputs, step)
        kept.append(self.encoder(torch.zeros(2, 3, 32, 32))[32])
        return {**scalars, "loss/kept": kept[0].mean()}

    monkeypatch.setattr(kind, "update", update)
    with pretended_graphs(monkeypatch), pytest.raises(SystemExit):
        steps_of("rotation", folders, "--compile", tmp_path / "run")
    assert "loss/kept is nan" in capsys.readouterr().err


def test_evaluation_is_not_compiled():
    calls = []
    net = nn.Linear(2, 2)
    net.compile(backend=lambda graph, inputs: calls.append(1) or graph.forward)
    with uncompiled("compile"):
        net(torch.zeros(1, 2))
    assert not calls
    net(torch.zeros(1, 2))
    assert calls


def test_the_mode_of_graphs(monkeypatch: pytest.MonkeyPatch):
    ways = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: ways.append(options))
    for how in ("no", "compile", "graph"):
        compile_network(nn.Linear(2, 2), how)
    assert ways == [{}, {"mode": "reduce-overhead"}]


def test_graphs_are_refused_without_a_gpu(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        steps_of("rotation", folders, "--graph", tmp_path / "run")
    assert "--graph needs a GPU: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["compile", "graph"])
def test_compiled_networks_cannot_be_sharded(option: str):
    with pytest.raises(ValueError, match=f"--shard does not work with --{option}"):
        TrainConfig(preset="demo", shard=True, **{option: True})


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["simclr", "inpainting"])
def test_graphs_train_as_kernels_do(method: str, folders: dict[str, Path], tmp_path: Path):
    for more in ("--graph", ""):
        steps_of(method, folders, f"--device cuda {more}", tmp_path / (more or "plain"))
    one, other = (
        torch.load(tmp_path / name / "step-00000004.pt", weights_only=True)["state"]["weights"]
        for name in ("--graph", "plain")
    )
    for name, value in one.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(value, other[name], rtol=1e-2, atol=1e-2)
