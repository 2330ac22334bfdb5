"""Distillation: its losses against loops, its crops, its frozen teacher, and the cache of the teacher's features."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Refused
from helpers.tiny_runs import TEACHER, arguments
from helpers.view_cases import WORLD
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models import alexnet

from kintsugi.augment import cropping
from kintsugi.contrastive import distill, teachers
from kintsugi.contrastive.distill import Distill, Standardize, cosine_loss, l2_loss, regridded
from kintsugi.contrastive.teachers import FeatureCache, TeacherFeatures
from kintsugi.nets.backbones import Backbone
from kintsugi.rng import generator
from kintsugi.train import checkpoint

COUNT = 6


class RandomImages:
    """A data set (``Indexed``) of random images."""

    images = torch.randint(0, 256, (10, 3, 40, 44), generator=generator(3), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        extent = torch.tensor([[40, 44]]).repeat(len(indices), 1)
        return {"image": self.images[indices], "extent": extent, "index": indices}


DATA = RandomImages()
BATCH = DATA.batch(torch.arange(COUNT))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a small encoder with random weights."""
    return saved_teacher(tmp_path_factory.mktemp("teacher") / "step-00000001.pt", 0)


def saved_teacher(file: Path, seed: int) -> str:
    torch.manual_seed(seed)
    net = Backbone("dcgan", width=0.25).build()
    encoders = {"encoder": {"spec": net.spec.plain(), "state": net.state_dict()}}
    checkpoint.save(file, {"method": "toy", "step": 1, "config": {}, "state": {}, "encoders": encoders})
    return str(file)


def made(teacher: str, **options: Any) -> Distill:
    config = replace(distill.demo(), size=32, batch=COUNT, teacher=teacher, teacher_size=64, **options)
    torch.manual_seed(1)
    method = Distill(config, WORLD)
    method.on_train_data(DATA)
    return method


# --- losses ---------------------------------------------------------------------------------------------------


def test_the_cosine_loss_equals_a_loop():
    predicted, target = torch.randn(2, 3, 5, 2, 3, generator=generator(0)).unbind()
    total = 0.0
    for n in range(3):
        for i in range(2):
            for j in range(3):
                one, other = predicted[n, :, i, j].tolist(), target[n, :, i, j].tolist()
                product = sum(a * b for a, b in zip(one, other, strict=True))
                total += 1 - product / math.hypot(*one) / math.hypot(*other)
    assert cosine_loss(predicted, target).item() == pytest.approx(total / 18, rel=1e-5)
    assert cosine_loss(3 * target, target).item() == pytest.approx(0, abs=1e-6)  # the length does not matter


def test_the_l2_loss_equals_a_loop():
    predicted, target = torch.randn(2, 3, 5, generator=generator(0)).unbind()
    total = sum((predicted[n, c].item() - target[n, c].item()) ** 2 for n in range(3) for c in range(5))
    assert l2_loss(predicted, target).item() == pytest.approx(total / 15, rel=1e-5)


def test_a_coarser_map_is_the_mean_of_its_cells_and_a_finer_one_is_interpolated():
    map = torch.randn(2, 3, 4, 6, generator=generator(0))
    coarse = regridded(map, (2, 3))
    for n in range(2):
        for i in range(2):
            for j in range(3):
                cell = map[n, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1)
                assert torch.allclose(coarse[n, :, i, j], cell.mean(1), atol=1e-6)
    assert torch.equal(regridded(map, (4, 6)), map)
    fine = regridded(map, (8, 12))
    assert torch.allclose(
        fine[:, :, 1, 1],
        (9 * map[:, :, 0, 0] + 3 * map[:, :, 0, 1] + 3 * map[:, :, 1, 0] + map[:, :, 1, 1]) / 16,
        atol=1e-5,
    )


def test_standardized_features_have_mean_0_and_deviation_1(teacher: str):
    method = made(teacher)
    found = method.targets(cropping.center_crops(DATA.batch(torch.arange(10)), 64))
    for features, standard in zip(found, (method.map_standard, method.vector_standard), strict=True):
        values = features.transpose(0, 1).flatten(1)
        assert values.mean(1).abs().max() < 1e-4
        varies = standard.std > standard.std.min() + 1e-6  # the other channels' deviations were raised
        assert torch.allclose(values.std(1, unbiased=False)[varies], torch.ones(int(varies.sum())), atol=1e-3)
    constant = Standardize(2)
    constant.fit([torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 4.0]])])
    assert constant.mean.tolist() == [1, 2]
    assert constant.std.tolist() == pytest.approx([0.1, 2])  # a constant channel is not divided by 0


# --- training -------------------------------------------------------------------------------------------------


def test_the_student_alone_is_trained(teacher: str):
    method = made(teacher)
    before = {name: value.clone() for name, value in method.teacher.encoder.state_dict().items()}
    student = [p.clone() for p in method.encoder.parameters()]
    for step in range(2):
        method.update(BATCH, step)
    after = method.teacher.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in method.teacher.encoder.parameters())
    assert not method.teacher.encoder.training
    assert all(not torch.equal(a, b) for a, b in zip(student, method.encoder.parameters(), strict=True))
    trained = {id(p) for group in method.optimizers["student"].param_groups for p in group["params"]}
    assert trained == {id(p) for p in method.parameters()}
    roles = {name.partition(".")[0] for name in method.state_dict()}
    assert roles == {"encoder", "map_head", "vector_head", "map_standard", "vector_standard", "_extra_state"}


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_each_weight_switches_its_loss(weights: tuple[float, float], teacher: str):
    method = made(teacher, map_weight=weights[0], vector_weight=weights[1])
    heads = [method.map_head.weight, method.vector_head.weight]
    before = [head.clone() for head in heads]
    scalars = method.update(BATCH, 0)
    assert scalars["loss/total"] == scalars["loss/map" if weights[0] else "loss/vector"]
    moved = [(head - was).abs().max() > 1e-6 for head, was in zip(heads, before, strict=True)]
    assert moved == [bool(weight) for weight in weights]


@pytest.mark.parametrize(
    "options", [{}, {"loss": "l2"}, {"grid": "student"}, {"teacher_stride": 8, "student_stride": 16}]
)
def test_it_learns_to_predict_the_teacher(options: dict[str, Any], teacher: str):
    method = made(teacher, views="fixed", steps=60, warmup=5, **options)
    first = method.update(BATCH, 0)["loss/total"]
    for step in range(1, 25):
        last = method.update(BATCH, step)["loss/total"]
    assert last < 0.6 * first


def test_both_networks_see_the_same_crop_and_only_the_student_sees_other_colors(
    teacher: str, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Tensor] = []
    y, x = torch.meshgrid(torch.linspace(0, 255, 120), torch.linspace(0, 255, 120), indexing="ij")
    smooth = torch.stack([x, y, 255 - x]).to(torch.uint8).expand(COUNT, -1, -1, -1)
    batch = {"image": smooth, "extent": torch.full((COUNT, 2), 120), "index": torch.arange(COUNT)}
    for views in ("random", "fixed"):
        for strength in (0.0, 1.0):
            method = made(teacher, views=views, strength=strength, features_gb=0)
            targets = method.targets
            monkeypatch.setattr(method, "targets", lambda image, t=targets: (seen.append(image), t(image))[1])
            student, _ = method.crops(batch, 5)
            assert student.shape == (COUNT, 3, 32, 32)
            assert seen[-1].shape == (COUNT, 3, 64, 64)
            small = interpolate(seen[-1], (32, 32), mode="area")
            assert ((small - student).abs().max() < 0.02) == (not strength)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])


# --- cached features ------------------------------------------------------------------------------------------


def test_cached_features_equal_those_computed_anew(teacher: str, monkeypatch: pytest.MonkeyPatch):
    kept, anew = made(teacher, views="fixed"), made(teacher, views="fixed", features_gb=0)
    assert anew.cache is None
    calls: list[int] = []
    call = teachers.Teacher.__call__
    monkeypatch.setattr(
        teachers.Teacher, "__call__", lambda self, image: (calls.append(id(self)), call(self, image))[1]
    )
    for step in range(4):  # other flips at each step
        (image, cached), (same, computed) = kept.crops(BATCH, step), anew.crops(BATCH, step)
        assert torch.equal(image, same)
        for one, other in zip(cached, computed, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=2e-3)  # half precision
    assert calls.count(id(kept.teacher)) == 2  # each image once, and once mirrored
    assert calls.count(id(anew.teacher)) == 4
    more = DATA.batch(torch.tensor([0, 9]))
    kept.crops(more, 9)
    assert calls.count(id(kept.teacher)) == 4
    assert kept.cache is not None
    assert kept.cache.known.tolist() == [i < COUNT or i == 9 for i in range(10)]


def test_features_that_do_not_fit_are_computed_at_each_step(teacher: str):
    method = made(teacher, views="fixed", features_gb=1e-6)
    expected = made(teacher, views="fixed", features_gb=0)
    for step in range(2):
        assert torch.equal(method.crops(BATCH, step)[1].map, expected.crops(BATCH, step)[1].map)
    assert method.cache is not None
    assert method.cache.kept is None
    calls: list[Tensor] = []

    def compute(flip: Tensor) -> TeacherFeatures:
        calls.append(flip)
        return TeacherFeatures(
            torch.zeros(2, 2, 3, 3), torch.zeros(2, 4)
        )  # 22 numbers of 2 bytes, of 10 images, mirrored too

    index, flip = torch.tensor([3, 5]), torch.tensor([True, False])
    for limit, number in ((22 * 2 * 10 * 2, 2), (22 * 2 * 10 * 2 - 1, 4)):
        calls.clear()
        cache = FeatureCache(10, limit)
        for _ in range(2):
            assert cache.features(index, flip, compute).map.shape == (2, 2, 3, 3)
        assert len(calls) == number


def test_a_resumed_run_with_cached_features_ends_with_the_same_weights(photos: Path, teacher: str, tmp_path: Path):
    fixed = [*arguments("distill", {"photos": photos}), "--teacher", teacher, "--views", "fixed", "--batch", "8"]
    fixed += ["--steps", "8", "--save-every", "4", "--eval-every", "8", "--show-every", "8"]
    distill.main([*fixed, "--out", str(tmp_path / "whole")])
    distill.main([*fixed, "--out", str(tmp_path / "stopped")])
    (tmp_path / "stopped/step-00000008.pt").unlink()
    distill.main(["--resume", "--out", str(tmp_path / "stopped")])
    one, other = (
        checkpoint.load(tmp_path / run / "step-00000008.pt")["state"]["weights"] for run in ("whole", "stopped")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items() if isinstance(value, Tensor))


# --- teachers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--teacher (TEACHER= for make) is missing: name timm:NAME or torchvision:NAME"),
        (["--teacher", "nowhere"], "--teacher nowhere: no checkpoint at nowhere"),
        (["--teacher", "alexnet=nowhere.pth"], "no weights at nowhere.pth"),
        (["--teacher", "alexnett=nowhere.pth"], "alexnet"),
        (["--teacher", "torchvision:alexnett"], "neither torchvision nor timm has a convolutional network 'alexnett'"),
        (["--teacher", TEACHER, "--teacher-size", "-1"], "--teacher-size must be at least 0"),
        (["--teacher", TEACHER, "--map-weight", "0", "--vector-weight", "0"], "nothing would be learned"),
        (["--teacher", TEACHER, "--loss", "l1"], "'l1'"),
    ],
)
def test_wrong_teachers_and_settings_are_one_line(args: list[str], message: str, refused: Refused):
    assert message in refused(distill.main, args)


def test_a_wrong_stride_or_size_is_one_line(photos: Path, teacher: str, tmp_path: Path, refused: Refused):
    run = [*arguments("distill", {"photos": photos}), "--teacher", teacher]
    assert "--teacher-stride 3: toy has 2, 4, 8, 16, 32" in refused(
        distill.main, [*run, "--out", tmp_path / "a", "--teacher-stride", "3"]
    )
    assert "--student-stride 3: the student has 4, 8, 16, 32" in refused(
        distill.main, [*run, "--out", tmp_path / "c", "--student-stride", "3"]
    )
    file = tmp_path / "net.safetensors"
    save_file({n: v.clone() for n, v in alexnet().state_dict().items()}, file)
    line = refused(
        distill.main, [*run, "--out", tmp_path / "b", "--teacher", f"alexnet={file}", "--teacher-size", "40"]
    )
    assert "alexnet needs images of at least 63 px, not 40x40" in line


def test_resuming_with_another_teacher_is_refused(photos: Path, tmp_path: Path, refused: Refused):
    teacher = saved_teacher(tmp_path / "teacher.pt", 0)
    out = ["--out", str(tmp_path / "run")]
    distill.main([*arguments("distill", {"photos": photos}), "--teacher", teacher, "--steps", "2", *out])
    content = checkpoint.load(tmp_path / "run/step-00000002.pt")
    assert "teacher" not in {name.partition(".")[0] for name in content["state"]["weights"]}
    assert list(content["encoders"]) == ["encoder"]
    other = saved_teacher(tmp_path / "other.pt", 1)
    resume = ["--resume", "--steps", "4", *out]
    assert "--teacher " in refused(distill.main, [*resume, "--teacher", other])
    assert "its teacher is toy with weights " in refused(
        distill.main, [*resume, "--teacher", other, "--accept-changes"]
    )
    moved = str(Path(teacher).rename(tmp_path / "moved.pt"))  # the same teacher in another place
    distill.main([*resume, "--teacher", moved, "--accept-changes"])
    saved_teacher(Path(moved), 1)  # other weights in the same place
    assert "its teacher is toy with weights " in refused(distill.main, ["--resume", "--steps", "6", *out])


def test_figures_of_a_perfect_student(teacher: str):
    """If the student predicts what the teacher has, both cosines are 1."""
    method = made(teacher)
    method.predict = lambda image: method.targets(cropping.center_crops(BATCH, 64))  # type: ignore[method-assign]
    figures = method.evaluate([BATCH])
    assert figures["cosine"] == pytest.approx(1, abs=1e-5)
    assert figures["cosine_vector"] == pytest.approx(1, abs=1e-5)
    rows = method.baselines([BATCH])
    assert list(rows) == ["mean of the teacher's features", "pixels", "random init", "teacher, toy"]
    assert rows["teacher, toy"]["same_image"] > 0
