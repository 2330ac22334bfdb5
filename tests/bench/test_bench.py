from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command_line import torchrun

from bench import (
    equal_minutes,
    growth,
    kernels,
    loaders,
    masked_encoder,
    photo_holes,
    precision,
    reading,
    steps,
    transfer_row,
    tuning,
)
from kintsugi.contrastive import dino


def test_loaders_measures_all_installed_loaders(photos: Path, tmp_path: Path):
    loaders.run(
        loaders.LoadersConfig(
            data=photos, sizes=(32,), batch=4, workers=2, rounds=1, epochs=2, images=12, out=tmp_path / "out"
        )
    )
    found = json.loads((tmp_path / "out" / "loaders.json").read_text())
    rates = found["images a second"]["32 px"]
    assert {"ours", "ours, ranks", "ours, first pass", "torchvision"} <= set(rates)
    assert found["ours, over"]["32 px"]["torchvision"] == pytest.approx(rates["ours"] / rates["torchvision"], abs=0.01)
    assert (tmp_path / "out" / "loaders.png").is_file()


def test_steps_compares_whole_steps_with_their_parts(tmp_path: Path):
    steps.run(steps.StepsConfig(size=64, batch=4, rounds=1, scenes=8, out=tmp_path))
    found = json.loads((tmp_path / "steps.json").read_text())
    assert set(found["contrastive, ms"]) == {"simclr", "moco", "byol"}
    for one in found["contrastive, ms"].values():
        assert one["whole over model"] == pytest.approx(one["whole step"] / one["model only"], abs=0.001)
    assert set(found["GAN, ms"]) == {"inpainting", "superresolution"}


def test_the_encoder_is_faster_on_visible_patches(tmp_path: Path):
    settings = masked_encoder.MaskedEncoderConfig(size=64, batch=4, rounds=1, ratios=(0.75,), paper=False, out=tmp_path)
    masked_encoder.run(settings)
    (found,) = json.loads((tmp_path / "masked-encoder.json").read_text())["encoder, ms"].values()
    gain = found["all patches"] / found["0.75 masked"]
    assert found["0.75 masked, times as fast"] == pytest.approx(gain, abs=0.01)


def test_the_tasks_of_a_transfer_row_are_timed_one_by_one(tmp_path: Path):
    tiny = {
        "seeds": 2,
        "labeled_scenes": 24,
        "train_scenes": 8,
        "steps_linear": 2,
        "steps_frozen": 2,
        "precision": "fp32",
    }
    threads = torch.get_num_threads()
    for name in ("first", "second"):
        transfer_row.run(transfer_row.TransferRowConfig(name=name, results=tmp_path, cache=tmp_path / "cache", **tiny))
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "transfer-row.json").read_text())
    assert set(found) == {"first", "second"}
    assert set(found["first"]["seconds"]) == {"what is in scenes", "segmentation scenes", "geometry scenes"}
    total = sum(sum(each.values()) for each in found["first"]["seconds"].values())
    assert found["first"]["all seconds"] == pytest.approx(total, abs=0.06)
    assert found["first"]["figures of seed 0"] == found["second"]["figures of seed 0"]


def test_methods_train_for_equal_minutes(photos: Path, tmp_path: Path):
    settings = equal_minutes.EqualMinutesConfig(
        data=str(photos),
        methods=("splitbrain",),
        minutes=0.01,
        seeds=(3,),
        precision="fp32",
        warm=1,
        timed=1,
        out=tmp_path,
    )
    threads = torch.get_num_threads()
    equal_minutes.run(settings)
    (found,) = json.loads((tmp_path / "equal-minutes.json").read_text())
    run = tmp_path / "splitbrain-3"
    assert json.loads((run / "time.json").read_text()) == found
    assert (run.name, found["method"], found["seed"]) == ("splitbrain-3", "splitbrain", 3)
    assert found["steps"] == max(1, round(0.6 / found["seconds per step"]))
    assert (run / f"step-{found['steps']:08d}.pt").is_file()
    (run / "time.json").write_text("{}")
    equal_minutes.run(settings)  # a finished run is not made again
    assert (run / "time.json").read_text() == "{}"
    torch.set_num_threads(threads)
    with pytest.raises(ValueError, match="--teacher is missing"):
        equal_minutes.EqualMinutesConfig(data=str(photos))
    with pytest.raises(ValueError, match="--clips is missing, which odd-one-out needs"):
        equal_minutes.EqualMinutesConfig(data=str(photos), methods=("odd-one-out",))


@pytest.mark.parametrize("name", equal_minutes.OPTIONS)
def test_each_method_accepts_its_options_for_equal_minutes(name: str):
    settings = equal_minutes.EqualMinutesConfig(
        data="photos", methods=(name,), teacher="alexnet=file", clips="clips", precision="fp32"
    )
    _, found = equal_minutes.settings_of(name, settings, seed=3)
    assert found.seed == 3
    assert found.data == {"synthetic": "scenes", "frame-order": "clips", "odd-one-out": "clips"}.get(name, "photos")


def test_methods_train_for_equal_steps(photos: Path, tmp_path: Path):
    threads = torch.get_num_threads()
    equal_minutes.run(
        equal_minutes.EqualMinutesConfig(
            data=str(photos), methods=("splitbrain",), steps=2, seeds=(0,), precision="fp32", timed=1, out=tmp_path
        )
    )
    torch.set_num_threads(threads)
    (found,) = json.loads((tmp_path / "equal-minutes.json").read_text())
    assert (found["steps"], found["minutes"]) == (2, None)


def test_options_are_compared_on_held_out_images(photos: Path, tmp_path: Path):
    classes = {"even", "odd"}
    for number, file in enumerate(sorted(photos.iterdir())):
        folder = tmp_path / "images" / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).symlink_to(file)
    threads = torch.get_num_threads()
    settings = tuning.TuningConfig(
        data=tmp_path / "images",
        method="splitbrain",
        trials=("", "lr=1e-3,weight-decay=0"),
        minutes=0.001,
        size=32,
        precision="fp32",
        out=tmp_path / "runs",
        results=tmp_path,
    )
    tuning.run(settings)
    torch.set_num_threads(threads)
    kept_out = list((tmp_path / "runs/images/test").rglob("*.jpg"))
    assert {path.parent.name for path in kept_out} == classes
    assert len(kept_out) == 4  # of twelve images in each class the first and the eleventh
    found = json.loads((tmp_path / "tuning.json").read_text())
    assert set(found) == {"splitbrain", "splitbrain lr=1e-3,weight-decay=0"}
    first, second = found.values()
    assert first["random"] == second["random"]
    assert set(first["trained"]) == {"kNN", "linear"}
    with pytest.raises(ValueError, match="no folders of images"):
        tuning.split(photos, tmp_path / "other")


def test_a_shorter_run_has_the_same_shares_of_warm_up_and_of_frozen_steps():
    settings = equal_minutes.scaled(replace(dino.demo(), temperature_warmup=100), 200)  # the demo has 400 steps
    assert (settings.steps, settings.warmup, settings.frozen, settings.temperature_warmup) == (200, 15, 16, 50)


@pytest.mark.slow
def test_growth_measures_one_thing_at_a_time(tmp_path: Path):
    growth.run(
        growth.GrowthConfig(
            size=32,
            batch=4,
            batches=(2, 4),
            sizes=(32,),
            folders=(8,),
            ranks=(1,),
            compile=False,
            rounds=1,
            out=tmp_path,
        )
    )
    found = json.loads((tmp_path / "growth.json").read_text())["growth"]
    assert set(found["images/s of updates by batch"]) == {"2", "4"}
    assert found["options, times as fast"]["float32, channels last"] == 1
    assert set(found["seconds to open by images"]) == {"8, decoding", "8, cached"}
    assert all(value > 0 for one in found.values() for value in one.values())


def test_reading_measures_decoding_opening_and_shards(photos: Path, tmp_path: Path):
    threads = torch.get_num_threads()
    reading.run(reading.ReadingConfig(data=photos, images=12, batch=4, files=1200, samples=2000, out=tmp_path / "out"))
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "out" / "reading.json").read_text())["reading"]
    assert {"decoded at 96 px", "at each use, 96 px", "torchvision, two workers"} <= set(found["decoding, ms"])
    assert {"at first, s", "then, s", "at first, MB more"} <= set(found["opening 1200 files"])
    assert set(found["indexing, us"]) == {"a sample"}


def test_photo_holes_compares_fills_with_and_without_patches(photos: Path, trained: Path, tmp_path: Path):
    photo_holes.run(
        photo_holes.PhotoHolesConfig(
            data=photos, ckpt=(trained,), every=3, count=2, size=64, lpips="off", out=tmp_path / "out"
        )
    )
    found = json.loads((tmp_path / "out" / "photo-holes.json").read_text())
    assert found["photos"] == 2
    for fills in found["holes"].values():
        assert {"biharmonic", "Navier-Stokes, patches", "context encoder", "context encoder, patches"} <= set(fills)
        assert all(of["psnr"] > 0 and of["psnr_deviation"] >= 0 for of in fills.values())
    with pytest.raises(ValueError, match="use squares of at most"):
        photo_holes.run(photo_holes.PhotoHolesConfig(data=photos, size=5000, out=tmp_path))


def test_precision_measures_four_methods_in_both(tmp_path: Path):
    precision.run(precision.PrecisionConfig(batch=4, rounds=1, scenes=8, out=tmp_path))
    found = json.loads((tmp_path / "precision.json").read_text())["step, ms"]
    assert set(found) == {"simclr", "splitbrain", "inpainting", "mae"}
    for one in found.values():
        assert one["bf16, times as fast"] == pytest.approx(one["fp32"] / one["bf16"], abs=0.01)


def test_messages_between_ranks_begin_during_the_backward_pass(tmp_path: Path):
    done = torchrun(tmp_path, 2, "bench.overlap", *"--encoder resnet18 --batch 4 --rounds 1 --out out".split())
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "overlap.json").read_text())["averaged"]
    during, after = found["during the backward pass"], found["after it"]
    assert during["messages"] == 3
    assert during["begun during it"] >= 2
    assert (after["messages"], after["begun during it"]) == (1, 0)
    assert after["messages after it, ms"] == after["messages, ms"] > 0


def test_kernels_counts_before_and_after(tmp_path: Path):
    for name in ("before", "after"):
        kernels.run(kernels.KernelsConfig(name=name, methods=("rotation",), out=tmp_path))
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert found["before"] == found["after"]  # counts are the same at every time
    assert found["after"]["rotation"]["waits"] == 0
    assert found["after"]["rotation"]["kernels"] > 200
