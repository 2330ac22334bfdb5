from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import race, race_tables
from bench.contestants import peer_networks
from bench.contestants.laps import Laps, RaceSettings
from kintsugi.data.image_set import Images

TINY = {"minutes": 0.01, "laps": 2, "batch": 4, "known": 8, "queries": 6}


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with the classes red and blue, whose images any network tells apart."""
    root = tmp_path_factory.mktemp("colors")
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 6)):
        for name, channel in (("red", 0), ("blue", 2)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (40, 40, 3), np.uint8)
                pixels[:, :, channel] += 180
                Image.fromarray(pixels).save(root / split / name / f"{name}{number}.png")
    return root


def test_a_race_measures_laps_and_is_not_run_twice(colors: Path, tmp_path: Path):
    config = race.RaceConfig(
        data=colors, name="tiny", contestants=("kintsugi",), runs=tmp_path / "runs", out=tmp_path / "out", **TINY
    )
    race.run(config)
    found = json.loads((tmp_path / "out" / "race.json").read_text())["tiny"]
    ((first, last),) = found["curves"]["kintsugi"]
    run = tmp_path / "runs" / "kintsugi-0"
    steps = json.loads((run / "settings.json").read_text())["steps"]
    assert (first["images"], last["images"]) == (4 * round(steps / 2), 4 * steps)
    assert 0 <= first["minutes"] < last["minutes"]
    assert found["random weights"] == [100.0]
    assert (tmp_path / "out" / "race.png").is_file()
    kept, later = (torch.load(run / f"lap-{lap}.pt", weights_only=True) for lap in (1, 2))
    assert not torch.equal(kept["conv1.weight"], later["conv1.weight"])
    before = (run / "laps.json").stat().st_mtime_ns
    race.run(config)
    assert (run / "laps.json").stat().st_mtime_ns == before


def test_mae_races(colors: Path, tmp_path: Path):
    config = race.RaceConfig(data=colors, name="", method="mae", runs=tmp_path, **TINY)
    laps = race.run_contestant(config, "kintsugi", race.settings_of(config, tmp_path / "run", 2, 1, 0))
    assert [lap["images"] for lap in laps["laps"]] == [8]
    judge = race.Judge(config)
    assert judge.accuracy(judge.encoder(torch.load(tmp_path / "run" / "lap-1.pt", weights_only=True))) > 50


@pytest.mark.parametrize("stem", ["large", "small"])
def test_the_judge_has_the_network_of_the_other_libraries(colors: Path, tmp_path: Path, stem: str):
    judge = race.Judge(race.RaceConfig(data=colors, name="", runs=tmp_path, stem=stem))
    network = peer_networks.resnet18(stem).eval()
    image = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (peer_networks.IMAGENET_MEAN, peer_networks.IMAGENET_STD)
    )
    expected = network((image - mean) / std)
    encoder = judge.encoder(network.state_dict()).eval()
    torch.testing.assert_close(encoder.vectors(image), expected, rtol=1e-3, atol=1e-4)


def test_the_judge_has_the_vision_transformer_of_the_other_libraries(colors: Path, tmp_path: Path):
    config = race.RaceConfig(data=colors, name="", runs=tmp_path, method="mae")
    network = peer_networks.vit_tiny(race.settings_of(config, tmp_path, 1, 1, 0)).eval()
    image = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(each)[:, None, None] for each in (peer_networks.VIT_MEAN, peer_networks.VIT_STD))
    expected = network.forward_features((image - mean) / std)[:, 1:].mean(1)
    encoder = race.Judge(config).encoder(network.state_dict()).eval()
    torch.testing.assert_close(encoder.vectors(image), expected, rtol=1e-3, atol=1e-4)


def test_the_judge_finds_the_classes_by_their_neighbors(colors: Path, tmp_path: Path):
    judge = race.Judge(race.RaceConfig(data=colors, name="", runs=tmp_path, **TINY))
    assert judge.accuracy(judge.encoder(None)) == 100
    source = judge.heldout.source
    judge.heldout = Images(replace(source, labels=1 - source.labels), judge.heldout.rows)
    assert judge.accuracy(judge.encoder(None)) == 0


@pytest.mark.parametrize("method", ["simclr", "mae"])
@pytest.mark.parametrize(("name", "package"), [("lightly", "lightly"), ("stable-pretraining", "stable_pretraining")])
def test_other_libraries_race(colors: Path, tmp_path: Path, name: str, package: str, method: str):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    config = race.RaceConfig(data=colors, name="", method=method, runs=tmp_path, **TINY)
    laps = race.run_contestant(config, name, race.settings_of(config, tmp_path / "out", 4, 2, 0))
    assert [lap["images"] for lap in laps["laps"]] == [8, 16]
    state = torch.load(tmp_path / "out" / "lap-2.pt", weights_only=True)
    judge = race.Judge(config)
    assert judge.accuracy(judge.encoder(state)) > 50


def test_neither_the_start_nor_keeping_weights_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Start; first step done, end of the first lap, weights kept; end of the second lap, weights kept.
    now = iter([0.0, 5.0, 5.0, 7.0, 10.0, 11.0])
    monkeypatch.setattr("bench.contestants.laps.time.process_time", lambda: next(now))
    values = dict.fromkeys(RaceSettings.__dataclass_fields__, 0)
    laps = Laps(RaceSettings(**values | {"out": str(tmp_path), "steps": 2, "laps": 2, "batch": 8}))  # type: ignore[arg-type]
    for _ in range(2):
        laps.step_done(torch.nn.Linear(1, 1))
    found = json.loads((tmp_path / "laps.json").read_text())
    assert (found["start"], found["finished"]) == (5.0, True)
    assert found["laps"] == [
        {"file": "lap-1.pt", "images": 8, "seconds": 0.0},
        {"file": "lap-2.pt", "images": 16, "seconds": 3.0},
    ]


def test_who_does_not_race_is_named(colors: Path):
    with pytest.raises(ValueError, match="--contestants nobody: choose from kintsugi, lightly, stable-pretraining"):
        race.RaceConfig(data=colors, name="", contestants=("nobody",))


def test_minutes_to_an_accuracy():
    curve = [
        {"minutes": 2.0, "images": 100, "knn": 30.0},
        {"minutes": 4.0, "images": 700, "knn": 40.0},
        {"minutes": 6.0, "images": 1300, "knn": 38.0},
    ]
    assert race_tables.minutes_to(curve, 35.0) == pytest.approx(3.0)
    assert race_tables.minutes_to(curve, 30.0) == pytest.approx(2.0)
    assert race_tables.minutes_to(curve, 41.0) is None
