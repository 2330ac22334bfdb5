"""The page's adapter to the other programs: it lists, loads and runs checkpoints, and refuses in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny_runs import OPTIONS
from helpers.untrained_runs import untrained

from kintsugi.apps.studio_models import COLORIZERS, ENLARGED, EVERY, MENDERS, SURFACES, UPSCALERS, Models
from kintsugi.rng import generator
from kintsugi.train import checkpoint, shipped

CPU = torch.device("cpu")
MENDER, CONTEXT_ENCODER, COLORIZER, UPSCALER = *MENDERS, *COLORIZERS, *UPSCALERS
METHODS = (*MENDERS, COLORIZER, UPSCALER, *SURFACES, "simclr", "splitbrain-hha")
SHIPPED = sorted(shipped.FOLDER.glob("*.safetensors"))


@pytest.fixture(autouse=True)
def ships(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of that of the weights that ship."""
    folder = tmp_path_factory.mktemp("weights")
    monkeypatch.setattr(shipped, "FOLDER", folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each method that the page uses, and two that only have features."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        untrained(method, folder)
    return folder


@pytest.fixture(scope="module")
def models(runs: Path) -> Models:
    return Models.of(runs, CPU, None)


@pytest.fixture(scope="module")
def choice(runs: Path) -> dict[str, str]:
    return {method: str(next((runs / method).iterdir())) for method in METHODS}


def image(height: int = 70, width: int = 90) -> torch.Tensor:
    return torch.rand(3, height, width, generator=generator(0))


def quiet(fraction: float, what: str) -> None:
    assert 0 <= fraction <= 1


# --- the list -------------------------------------------------------------------------------------------------


def test_only_runs_of_the_methods_are_offered(models: Models, choice: dict[str, str]):
    assert models.choices(COLORIZERS) == [(f"{COLORIZER}, 20260101-120000", choice[COLORIZER])]
    assert {path for _, path in models.choices(MENDERS)} == {choice[MENDER], choice[CONTEXT_ENCODER]}
    assert {path for _, path in models.choices(EVERY)} == set(choice.values())


def test_the_newest_run_comes_first_and_folders_without_a_checkpoint_are_left_out(runs: Path, tmp_path: Path):
    for age, name in enumerate(["new", "middle", "old"]):
        shutil.copytree(next((runs / UPSCALER).iterdir()), tmp_path / UPSCALER / name)
        os.utime(tmp_path / UPSCALER / name, (10**9 - age, 10**9 - age))
    (tmp_path / UPSCALER / "empty").mkdir()
    (tmp_path / UPSCALER / "latest").write_text("new")
    listed = Models.of(tmp_path, CPU, None).choices(UPSCALERS)
    assert [Path(path).name for _, path in listed] == ["new", "middle", "old"]


def test_without_runs_the_list_is_empty(tmp_path: Path):
    assert Models.of(tmp_path / "none", CPU, None).choices(EVERY) == []


def test_weights_that_ship_come_after_the_persons_own_runs(models: Models, choice: dict[str, str], ships: Path):
    content = checkpoint.read(Path(choice[UPSCALER]))[1]
    for name in ("srresnet", "srgan"):
        shipped.write(content, ships / f"{name}.safetensors")
    shipped.write(checkpoint.read(Path(choice[MENDER]))[1], ships / "mender.safetensors")
    assert models.choices(UPSCALERS) == [
        (f"{UPSCALER}, 20260101-120000", choice[UPSCALER]),
        ("srgan, ships with Kintsugi", str(ships / "srgan.safetensors")),
        ("srresnet, ships with Kintsugi", str(ships / "srresnet.safetensors")),
    ]
    assert models.choices(MENDERS)[-1] == ("mender, ships with Kintsugi", str(ships / "mender.safetensors"))
    assert {Path(path).suffix for _, path in models.choices(COLORIZERS)} == {""}


def test_another_checkpoint_is_offered_first_where_its_method_fits(choice: dict[str, str], tmp_path: Path):
    extra = Path(choice[COLORIZER])
    models = Models.of(tmp_path, CPU, extra)
    assert models.choices(COLORIZERS) == [(f"{COLORIZER}, {extra}", str(extra))]
    assert models.choices(MENDERS) == []


def test_a_file_that_is_no_checkpoint_is_refused_at_the_start(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        Models.of(tmp_path, CPU, tmp_path / "photo.jpg")


# --- the networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MENDERS)
def test_mending_keeps_what_is_outside_and_a_seed_gives_the_same_again(
    method: str, models: Models, choice: dict[str, str]
):
    photo, mask = image(80, 90), torch.zeros(1, 80, 90)
    mask[:, 30:50, 40:60] = 1
    mend = models.mender(choice[method], "patches", quiet)
    one, same, other = mend(photo, mask, 0), mend(photo, mask, 0), mend(photo, mask, 1)
    assert torch.equal(one.masked_fill(mask > 0, 0), photo.masked_fill(mask > 0, 0))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, models.mender(choice[method], "net", quiet)(photo, mask, 0))


def test_mending_reports_progress_to_the_end(models: Models, choice: dict[str, str]):
    done: list[float] = []
    mask = torch.zeros(1, 70, 90)
    mask[:, 20:30, 20:30] = mask[:, 50:60, 60:70] = 1
    models.mender(choice[MENDER], "patches", lambda fraction, what: done.append(fraction))(image(), mask, 0)
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 1)
    assert len(done) >= 5


def test_colorizing_keeps_the_size_and_hints_change_the_result(models: Models, choice: dict[str, str]):
    photo, colors, known = image(), torch.zeros(3, 70, 90), torch.zeros(1, 70, 90)
    plain = models.colorize(photo, colors, known, choice[COLORIZER])
    colors[0], known[:, 30:36, 40:46] = 1, 1
    hinted = models.colorize(photo, colors, known, choice[COLORIZER])
    assert plain.shape == hinted.shape == photo.shape
    assert not torch.equal(plain, hinted)


def test_upscaling_gives_four_times_the_size_and_reports_progress_to_the_end(models: Models, choice: dict[str, str]):
    done: list[float] = []
    large = models.upscale(image(140, 90), choice[UPSCALER], lambda fraction, what: done.append(fraction))
    assert large.shape == (3, ENLARGED * 140, ENLARGED * 90)
    assert done == sorted(done)
    assert done[-1] == 1


def test_surfaces_are_three_pictures_of_the_photos_size(models: Models, choice: dict[str, str]):
    assert [picture.shape for picture in models.surfaces(image(), choice[SURFACES[0]])] == [(3, 70, 90)] * 3


@pytest.mark.parametrize("method", METHODS)
def test_the_encoder_of_any_method_gives_features(method: str, models: Models, choice: dict[str, str]):
    assert models.encoder(choice[method]).vectors(image()[None]).shape[0] == 1


def test_a_checkpoint_that_changed_is_loaded_again(runs: Path, tmp_path: Path):
    run = tmp_path / UPSCALER / "run"
    shutil.copytree(next((runs / UPSCALER).iterdir()), run)
    models = Models.of(tmp_path, CPU, None)
    before = models.encoder(str(run))
    assert models.encoder(str(run)) is before
    os.utime(run, (10**9, 10**9))
    assert models.encoder(str(run)) is not before


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("", f"no network for this yet: run make train-{MENDER}"),
        ("gone", "gone is not there anymore"),
        (UPSCALER, "not of"),
    ],
)
def test_a_network_that_cannot_be_used_gives_one_line(
    chosen: str, message: str, models: Models, choice: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        models.mender(choice.get(chosen, chosen), "patches", quiet)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_gives_one_line(runs: Path, tmp_path: Path):
    file = tmp_path / "damaged.pt"
    file.write_bytes(next((runs / MENDER).rglob("*.pt")).read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"damaged\.pt is not a whole checkpoint"):
        Models.of(tmp_path, CPU, None).mender(str(file), "patches", quiet)


def test_hints_for_a_network_without_them_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(OPTIONS, COLORIZER, ("--encoder alexnet --size 64", "photos"))
    file = untrained(COLORIZER, tmp_path)
    known = torch.ones(1, 70, 90)
    with pytest.raises(ValueError, match="trained without hints"):
        Models.of(tmp_path, CPU, None).colorize(image(), image(), known, str(file))


# --- the weights that ship ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_weights_that_ship_work_without_any_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shipped, "FOLDER", file.parent)
    models, photo = Models.of(tmp_path, CPU, None), image(40, 48)
    (path,) = (path for _, path in models.choices(EVERY) if Path(path) == file)
    assert models.encoder(path).vectors(photo[None]).isfinite().all()
    offered = {methods: path in dict(models.choices(methods)).values() for methods in (MENDERS, COLORIZERS, UPSCALERS)}
    if offered[MENDERS]:
        mask = torch.zeros(1, 40, 48)
        mask[:, 15:25, 15:25] = 1
        assert models.mender(path, "patches", quiet)(photo, mask, 0).isfinite().all()
    if offered[COLORIZERS]:
        assert models.colorize(photo, photo, torch.zeros(1, 40, 48), path).shape == photo.shape
    if offered[UPSCALERS]:
        assert models.upscale(photo, path, quiet).shape == (3, 160, 192)


def test_the_mender_and_both_networks_for_enlarging_ship():
    assert {"mender", "srgan", "srresnet"} <= {file.stem for file in SHIPPED}
