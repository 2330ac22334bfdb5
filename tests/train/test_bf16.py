"""--precision auto on a CPU: measured once, said in one line, the same on all ranks, and kept by a resumed run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command_line import Refused

from kintsugi.contrastive import simclr
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.encoder import Encoder
from kintsugi.train import bf16, checkpoint, loop
from kintsugi.train.compute import Compute, Precision
from kintsugi.train.dist import World

CPU = torch.device("cpu")
RUN = (
    "--size 32 --short-side 40 --encoder alexnet --batch 4 --steps 2 --log-every 1 --show-every 2 --eval-every 2 "
    "--save-every 1 --eval-images 4 --device cpu"
).split()
Machine = Callable[[float], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this CPU one with bfloat16, which is so many times as fast."""

    def make(gain: float) -> None:
        monkeypatch.setattr(bf16, "in_hardware", lambda: True)
        monkeypatch.setattr(bf16, "speedup", lambda encoder, side: gain)

    return make


def unmeasurable(encoder: Encoder, side: int) -> float:
    raise AssertionError("this must not be measured")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Backbone("alexnet").build()


@pytest.mark.parametrize(
    ("gain", "line"),
    [
        (1.7, "precision: bf16 (1.7 x fp32 here)"),
        (1.04, "precision: fp32 (bf16 would be 1.0 x as fast here)"),
        (0.5, "precision: fp32 (bf16 would be 0.5 x as fast here)"),
    ],
)
def test_the_faster_precision_is_chosen_and_named(gain: float, line: str, machine: Machine, encoder: Encoder):
    machine(gain)
    compute = Compute(CPU)
    assert bf16.choose(compute, "auto", encoder, 64) == line
    assert compute.bf16 is (gain > 1.1)
    assert compute.precision == line.split()[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_given_precision_is_not_measured(
    precision: Precision, machine: Machine, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
):
    machine(2.0)
    monkeypatch.setattr(bf16, "speedup", unmeasurable)
    compute = Compute.of("cpu", precision)
    assert bf16.choose(compute, precision, encoder, 64) == ""
    assert compute.precision == precision


def test_without_instructions_nothing_is_measured(encoder: Encoder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bf16, "speedup", unmeasurable)
    compute = Compute(CPU)
    assert bf16.choose(compute, "auto", encoder, 64) == ""
    assert not compute.bf16


@pytest.mark.parametrize("norm", ["batch", "split"])
def test_the_measurement_changes_nothing(norm: str):
    encoder = Backbone("resnet18", norm).build()  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    random = torch.random.get_rng_state()
    assert 0 < bf16.speedup(encoder, 32) < 100
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_main_rank_decides_for_all(monkeypatch: pytest.MonkeyPatch):
    config = replace(simclr.demo(), size=32, encoder="alexnet", batch=4)
    other = World(CPU, 1, 2)
    monkeypatch.setattr(bf16, "in_hardware", lambda: True)
    monkeypatch.setattr(bf16, "speedup", unmeasurable)
    monkeypatch.setattr(World, "from_main", lambda self, text: "bf16")
    loop._choose_precision(simclr.SimCLR(config, other), config, other)
    assert other.bf16


def test_a_resumed_run_keeps_its_precision(
    photos: Path,
    machine: Machine,
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Also on a machine without bfloat16, of which it says so, and where another precision would be faster."""
    machine(1.7)
    out = ["--out", str(tmp_path / "run")]
    simclr.main([*RUN, "--data", str(photos), *out])
    assert capsys.readouterr().err.count("precision: bf16 (1.7 x fp32 here)") == 1
    assert checkpoint.load(checkpoint.find(tmp_path / "run"))["config"]["precision"] == "bf16"
    seen: list[bool] = []
    update = simclr.SimCLR.update

    def watched(self: simclr.SimCLR, *args: object) -> object:
        seen.append(self.world.bf16)
        return update(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(simclr.SimCLR, "update", watched)
    monkeypatch.setattr(bf16, "speedup", unmeasurable)
    simclr.main(["--resume", *out, "--steps", "3"])
    assert "note: " not in capsys.readouterr().err
    monkeypatch.setattr(bf16, "in_hardware", lambda: False)
    simclr.main(["--resume", *out, "--steps", "4"])
    assert "note: this run computes in bf16, for which this CPU has no instructions" in capsys.readouterr().err
    assert seen == [True, True]
    assert "--precision bf16 -> fp32" in refused(simclr.main, ["--resume", *out, "--steps", "5", "--precision", "fp32"])
    simclr.main(["--resume", *out, "--steps", "5", "--precision", "fp32", "--accept-changes"])
    assert seen == [True, True, False]


def test_a_run_of_an_earlier_version_stays_in_float32(
    photos: Path, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its checkpoint says ``auto``, which was float32 on a CPU."""
    out = tmp_path / "run"
    simclr.main([*RUN, "--data", str(photos), "--out", str(out)])
    file = checkpoint.find(out)
    content = checkpoint.load(file)
    content.pop("format")
    content["config"]["precision"] = "auto"
    checkpoint.save(file, content)
    machine(1.7)
    monkeypatch.setattr(bf16, "speedup", unmeasurable)
    simclr.main(["--resume", "--out", str(out), "--steps", "3"])
    assert checkpoint.load(checkpoint.find(out))["config"]["precision"] == "fp32"
