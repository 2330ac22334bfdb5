from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kintsugi.eval.results import Experiment, FinishedResults, Result, figures
from kintsugi.eval.tasks import FrozenFeatures, Task, data_name, run
from kintsugi.eval.weights import Weights, joined, with_random
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.vit import ViT
from kintsugi.train.compute import Compute

CPU = Compute(torch.device("cpu"))


class Sums(Task):
    """The sum of the first weights, which differs between weights and seeds. ``measured``: the calls of ``measure``."""

    name = "sums"
    protocols = ("once", "again")

    def __init__(self, steps: int = 1, failing: str = "") -> None:
        self.steps, self.failing = steps, failing
        self.measured: list[tuple[str, str, int]] = []
        self.built = 0

    def settings(self, protocol: str) -> Mapping[str, Any]:
        return {"steps": self.steps} if protocol == "again" else {}

    def first_weights(self, encoder: Encoder) -> Tensor:
        self.built += 1
        return next(iter(encoder.state_dict().values()))

    def measure(self, features: FrozenFeatures, protocol: str, seed: int) -> Result:
        name = features.weights.name
        self.measured.append((name, protocol, seed))
        if (name, protocol) == (self.failing, "again"):
            raise RuntimeError("no more\nroom")
        return Result({protocol: features.once(self.first_weights).sum().item()})


@pytest.fixture
def weights() -> list[Weights]:
    torch.manual_seed(0)
    nets = [Backbone("alexnet").build() for _ in range(2)]
    pairs = zip(("one", "two"), nets, strict=True)
    one, two = (Weights(name, net.spec.plain(), (net.state_dict(),)) for name, net in pairs)
    return with_random([one, two])


def test_weights_of_one_network_share_random_weights(weights: list[Weights]):
    assert [one.name for one in weights] == ["one", "random init (alexnet)", "two"]
    assert [one.baseline for one in weights] == ["random init (alexnet)", None, "random init (alexnet)"]
    others = [Weights(str(i), Backbone("dcgan", width=width).plain(), ({},)) for i, width in enumerate((1, 0.5, 0.25))]
    assert [one.name for one in with_random(others)][1::2] == [
        "random init (dcgan)",
        "random init (dcgan, net 2)",
        "random init (dcgan, net 3)",
    ]
    transformers = [Weights(str(patch), ViT("test_vit", 64, patch).plain(), ({},)) for patch in (0, 8)]
    assert [one.name for one in with_random(transformers)][1::2] == [
        "random init (test_vit)",
        "random init (test_vit, patches of 8 px)",
    ]


def test_random_weights_depend_on_the_seed_and_others_do_not(weights: list[Weights], tmp_path: Path):
    task = Sums()
    found = figures(run(weights, [task], 3, tmp_path, CPU), weights)
    assert len(set(found["one"]["sums", "once"].values.values())) == 1
    assert len(set(found["random init (alexnet)"]["sums", "once"].values.values())) == 3
    assert found["one"]["sums", "once"].baseline == found["random init (alexnet)"]["sums", "once"].values
    assert task.built == 1 + 3 + 1  # frozen weights are computed once


def test_each_seed_has_a_pre_training_of_its_own(weights: list[Weights], tmp_path: Path):
    (row, *_), states = joined([replace(weights[i], name="both") for i in (0, 2)]), []
    assert row.states == weights[0].states + weights[2].states
    found = figures(run([row], [Sums()], 2, tmp_path, CPU), [row])["both"]["sums", "once"].values
    for one in (weights[0], weights[2]):
        torch.manual_seed(0)
        states.append(Sums().first_weights(one.encoder(0)).sum().item())
    assert [found[0], found[1]] == pytest.approx(states, abs=1e-4)
    assert abs(states[0] - states[1]) > 1
    with pytest.raises(ValueError, match="both has 2 pre-trainings, one for each seed: use --seeds 2"):
        run([row], [Sums()], 3, tmp_path, CPU)
    with pytest.raises(ValueError, match="two rows are called both, but their networks differ"):
        joined([row, Weights("both", Backbone("dcgan").plain(), ({},))])


def test_finished_experiments_are_not_run_again_and_others_are(weights: list[Weights], tmp_path: Path):
    first = run(weights, [Sums()], 2, tmp_path, CPU)
    again = Sums()
    assert run(weights, [again], 2, tmp_path, CPU) == first
    assert again.measured == []
    more = Sums()
    run(weights, [more], 3, tmp_path, CPU)
    assert {seed for _, _, seed in more.measured} == {2}
    other_settings = Sums(steps=2)
    run(weights, [other_settings], 1, tmp_path, CPU)
    assert {(name, protocol) for name, protocol, _ in other_settings.measured} == {(w.name, "again") for w in weights}
    changed = Sums()
    state = {name: value + 1 for name, value in weights[0].states[0].items()}
    run([Weights("one", weights[0].spec, (state,))], [changed], 1, tmp_path, CPU)
    assert len(changed.measured) == 2


def test_a_failed_experiment_is_reported_and_tried_again(
    weights: list[Weights], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    called: list[Experiment] = []
    results = run(weights, [Sums(failing="one")], 1, tmp_path, CPU, lambda experiment, _: called.append(experiment))
    assert results[Experiment("sums", "one", "again", 0)] == Result(error="RuntimeError: no more room")
    assert "seed 0: failed: RuntimeError: no more room" in capsys.readouterr().out
    assert len(results) == len(called) == 6
    assert sum(not result.error for result in results.values()) == 5
    repaired = Sums()
    run(weights, [repaired], 1, tmp_path, CPU)
    assert repaired.measured == [("one", "again", 0)]


def test_a_damaged_file_of_results_is_refused(tmp_path: Path):
    (tmp_path / FinishedResults.FILE).write_text('{"half')
    with pytest.raises(ValueError, match="remove it, or name another folder with --out"):
        FinishedResults(tmp_path)


def test_gains_are_over_the_seeds_that_both_have(weights: list[Weights]):
    def experiment(name: str, seed: int) -> Experiment:
        return Experiment("t", name, "p", seed)

    results = {
        experiment("one", 0): Result({"p": 0.30}),
        experiment("one", 1): Result({"p": 0.32}),
        experiment("one", 2): Result({"p": 0.28}),
        experiment("random init (alexnet)", 1): Result({"p": 0.33}),
        experiment("random init (alexnet)", 2): Result({"p": 0.20}),
        experiment("random init (alexnet)", 0): Result(error="failed"),
    }
    figure = figures(results, weights)["one"]["t", "p"]
    assert figure.mean == pytest.approx(30)
    assert figure.deviation == pytest.approx(2)
    assert figure.gains == pytest.approx([-1, 8])
    assert figure.won == "1/2"


def test_data_are_named_after_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert data_name("scenes") == "scenes"
    monkeypatch.chdir(tmp_path)
    assert data_name(".") == tmp_path.name
    assert data_name(f"{tmp_path}/") == tmp_path.name
