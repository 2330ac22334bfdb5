"""What every method promises, checked for all methods of the catalog."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from helpers.command_line import Refused
from helpers.nested import tensors
from helpers.tiny_runs import OPTIONS, PROGRAMS, TEACHER, arguments, class_of, module_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kintsugi.train import checkpoint, feature_quality
from kintsugi.train.config import from_plain, to_plain
from kintsugi.train.dist import World
from kintsugi.train.loop import SHOWN
from kintsugi.train.method import Data, Method

assert list(OPTIONS) == list(PROGRAMS)  # a method that is added must be added there
pytestmark = pytest.mark.parametrize("method", OPTIONS)


@pytest.fixture(scope="session")
def run_of(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Method -> the folder of its smallest run, trained once by the method's own command, for all workers."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of this session's workers

    def run(method: str) -> Path:
        folder = root / "contract" / method
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "quality.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                module_of(method).main([*arguments(method, folders), "--out", str(folder)])
        return folder

    return run


def restored(method: str, folder: Path) -> tuple[Method[Any], Data]:
    """The method as a run left it, and its data."""
    kind, content = class_of(method), checkpoint.read(folder, method)[1]
    config = from_plain(type(module_of(method).demo()), content["config"])
    data = kind.open_data(config, True)
    torch.manual_seed(0)
    found = kind.build(config, World(torch.device("cpu")), data)
    found.on_train_data(data.train)
    found.load_training_state(content["state"])
    return found, data


def test_the_command_leaves_checkpoints_pictures_figures_and_an_encoder(method: str, run_of: Callable[[str], Path]):
    folder = run_of(method)
    assert {"step-00000002.pt", "step-00000004.pt", "best.pt"} <= {file.name for file in folder.glob("*.pt")}
    content = torch.load(folder / "step-00000004.pt", weights_only=True)
    assert content["method"] == method
    tags = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload().Tags()
    assert tags["images"]
    assert all(tag.startswith("pictures/") for tag in tags["images"])
    groups = {tag.partition("/")[0] for tag in tags["scalars"]}
    assert groups <= {"held-out figures", "losses", "training", "training health", "run summary"}
    assert {"held-out figures", "losses", "training health"} <= groups
    rows = json.loads((folder / "quality.json").read_text())
    assert list(rows)[-1] == method
    assert len(rows) > 1  # there is a baseline
    assert class_of(method).score in rows[method]
    for row in ("pixels", "random init", method):  # of the features, without labels
        assert {"rank", "same_image"} <= rows[row].keys()
    assert {"held-out figures/rank", "held-out figures/same_image"} <= set(tags["scalars"])
    for role in content["encoders"]:
        encoder = checkpoint.load_encoder(folder, role)
        image = torch.rand(2, encoder.planes, 64, 96, generator=torch.Generator().manual_seed(0))
        maps = encoder(image)
        assert {stride: x.shape[1] for stride, x in maps.items()} == encoder.channels
        for stride, x in maps.items():  # some networks do not pad, so that a map may lack a row
            assert abs(x.shape[2] - 64 / stride) <= 1
            assert abs(x.shape[3] - 96 / stride) <= 1


def test_a_resumed_run_ends_with_the_same_state(method: str, run_of: Callable[[str], Path], tmp_path: Path):
    """Weights, moments and whatever else training changes, bit for bit."""
    whole = run_of(method)
    shutil.copytree(whole, tmp_path / "stopped")
    for name in ("step-00000004.pt", "best.pt"):
        (tmp_path / "stopped" / name).unlink()
    begun = tensors(checkpoint.load(tmp_path / "stopped/step-00000002.pt")["state"])
    module_of(method).main(["--resume", "--out", str(tmp_path / "stopped")])
    one, other = (checkpoint.load(folder / "step-00000004.pt")["state"] for folder in (whole, tmp_path / "stopped"))
    assert one["weights"].keys() == other["weights"].keys()
    assert len(tensors(one)) == len(tensors(other)) > 20
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))
    # Two more steps have changed something.
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(tensors(one), begun, strict=False))


def test_pictures_and_figures_are_the_same_at_every_call(method: str, run_of: Callable[[str], Path]):
    found, data = restored(method, run_of(method))
    count = min(SHOWN, len(data.heldout))
    batch = data.heldout.batch(torch.arange(count))
    random = torch.get_rng_state()
    first, second = found.show(batch), found.show(batch)
    assert first.keys() == second.keys()
    assert first
    for title, picture in first.items():
        assert picture.ndim == 3
        assert picture.shape[0] == 3
        assert torch.equal(picture, second[title])
        assert picture.min() >= -0.01
        assert picture.max() <= 1.01
    assert found.evaluate([batch]) == found.evaluate([batch])
    figures = feature_quality.quality(found, [batch], {})
    assert figures.keys() == {"rank", "same_image"}
    assert feature_quality.quality(found, [batch], {}) == figures
    assert torch.equal(torch.get_rng_state(), random)  # nothing was drawn from the global generator


def test_an_update_logs_finite_numbers_and_changes_the_encoder(method: str, run_of: Callable[[str], Path]):
    found, data = restored(method, run_of(method))
    before = {role: [p.clone() for p in encoder.parameters()] for role, encoder in found.encoders().items()}
    scalars = found.update(found.inputs(data.train.batch(torch.arange(4)), 4 - 1), 4 - 1)
    assert any(name.startswith("loss/") for name in scalars)
    for name, value in scalars.items():
        assert value.ndim == 0, name
        assert value.isfinite(), name
    for role, encoder in found.encoders().items():
        assert any(not torch.equal(a, b) for a, b in zip(before[role], encoder.parameters(), strict=True)), role


def test_norms_of_gradients_and_figures_of_embeddings_cost_nothing_at_steps_that_are_not_logged(
    method: str, run_of: Callable[[str], Path]
):
    found, data = restored(method, run_of(method))
    names = []
    for log_every in (1, 1000):
        found.config = replace(found.config, log_every=log_every, steps=5)
        names.append(set(found.update(found.inputs(data.train.batch(torch.arange(4)), 4 - 1), 4 - 1)))
    logged, others = names
    health = {name for name in logged if name.startswith(HEALTH)}
    assert logged - others == health
    assert {f"grad_norm/{name}" for name in found.optimizers} <= health


HEALTH = ("grad_norm/", "contrast/", "similarity/", "spread/", "targets/", "momentum")


def test_every_preset_builds(method: str, folders: dict[str, Path]):
    """The networks of each preset, without memory for their weights."""
    module, kind = module_of(method), class_of(method)
    for preset in ("demo", "small", "paper"):
        config = getattr(module, preset)()
        assert config.preset == preset
        assert from_plain(type(config), to_plain(config)) == config
        data: Any = None
        if method == "supervised":  # its data is needed to know the classes
            data = kind.open_data(replace(config, data=str(folders["labeled"]), size=32, short_side=40), True)
        if hasattr(config, "content_weights"):
            config = replace(config, content_weights="off")  # nothing is downloaded in tests
        if hasattr(config, "teacher"):
            config = replace(config, teacher=TEACHER)
        if hasattr(config, "permutations"):
            config = replace(config, permutations=8)  # a thousand take long to choose
        place = torch.device("cpu" if method == "jigsaw" else "meta")  # permutations are drawn when it is built
        with place:
            built = kind.build(config, World(place), data)
        assert sum(p.numel() for p in built.parameters()) > 1e5
        assert built.optimizers


def test_wrong_options_are_one_line(method: str, refused: Refused, run_of: Callable[[str], Path]):
    main, folder = module_of(method).main, run_of(method)
    needed = {"REAL": ["--real", "photos"], "TEACHER": ["--teacher", TEACHER]}
    own = [*OPTIONS[method][0].split(), *(word for name in PROGRAMS[method].takes for word in needed.get(name, []))]
    assert "did you mean --batch?" in refused(main, ["--bach", "3"])
    assert "--steps must be at least 1, not 0" in refused(main, ["--steps", "0"])
    assert "nowhere" in refused(main, [*own, "--batch", "4", "--data", "nowhere"])
    assert "already holds a run" in refused(main, [*own, "--batch", "4", "--out", str(folder)])
    changed = refused(main, ["--resume", "--out", str(folder), "--seed", "5", "--steps", "9"])
    assert "--seed 0 -> 5" in changed


def test_a_checkpoint_of_another_method_is_refused(method: str, run_of: Callable[[str], Path], refused: Refused):
    other = "rotation" if method != "rotation" else "simclr"
    said = refused(module_of(method).main, ["--resume", "--out", str(run_of(other))])
    assert f"is a checkpoint of {other}, not of {method}" in said
