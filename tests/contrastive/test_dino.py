"""DINO: its loss compared with nested loops, its teacher, its schedules."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.command_line import Refused
from helpers.view_cases import BATCH, WORLD, small_dino
from torch import Tensor
from torch.nn.functional import normalize

from kintsugi.contrastive import dino
from kintsugi.contrastive.crops import encode_crops
from kintsugi.contrastive.dino import DINOHead, dino_loss, entropy, teacher_targets
from kintsugi.rng import generator
from kintsugi.train.ema import cosine_momentum
from kintsugi.train.optim import cosine


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=generator(seed))


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def test_the_loss_equals_nested_loops():
    student, teacher, center = random(5, 3, 6), random(2, 3, 6, seed=1), random(6, seed=2)
    total, pairs = 0.0, 0
    for i in range(2):
        for j in range(5):
            if i == j:
                continue
            for image in range(3):
                target = softmax([(teacher[i, image, k].item() - center[k].item()) / 0.04 for k in range(6)])
                chosen = softmax([student[j, image, k].item() / 0.1 for k in range(6)])
                total -= sum(target[k] * math.log(chosen[k]) for k in range(6))
                pairs += 1
    assert pairs == 3 * (4 + 4)
    found = dino_loss(student, teacher_targets(teacher, center, 0.04), 0.1)
    assert found.item() == pytest.approx(total / pairs, rel=1e-5)


def test_entropy_of_one_output_and_of_equal_outputs():
    assert entropy(torch.eye(4)[:2]).item() == pytest.approx(0, abs=1e-6)
    assert entropy(torch.full((3, 4), 0.25)).item() == pytest.approx(math.log(4))


def test_the_head_compares_directions():
    head = DINOHead(8, 16, 4, 10)
    logits = head(random(5, 8))
    hidden = head.layers(random(5, 8))
    for i in range(5):
        for k in range(10):
            expected = torch.dot(hidden[i], head.last[k]) / (hidden[i].norm() * head.last[k].norm())
            assert logits[i, k].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_teacher_sees_only_the_global_crops():
    method = small_dino()
    student, teacher = [], []
    method.encoder.register_forward_pre_hook(lambda _, args: student.append(tuple(args[0].shape)))
    method.teacher_encoder.register_forward_pre_hook(lambda _, args: teacher.append(tuple(args[0].shape)))
    method.update(method.inputs(BATCH, 0), 0)
    assert student == [(16, 3, 32, 32), (24, 3, 32, 32)]
    assert teacher == [(16, 3, 32, 32)]


def test_the_teacher_gets_no_gradient_and_is_a_moving_average():
    method = small_dino()
    before = [p.clone() for p in method.teacher.parameters()]
    method.update(method.inputs(BATCH, 10), 10)
    assert all(p.grad is None for p in method.teacher.parameters())
    momentum = cosine_momentum(method.config.momentum, 10, 40)
    for old, now, student in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(now, momentum * old + (1 - momentum) * student)


def test_the_center_is_a_moving_average_of_the_teachers_outputs():
    method = small_dino(norm="group")
    method.center.copy_(random(method.config.outputs))
    before, crops = method.center.clone(), method.crops(BATCH, 0)
    with torch.no_grad():
        outputs = [method.teacher[1](method.teacher_encoder.vectors(crop)) for crop in crops[0]]
        targets = [teacher_targets(output, before, method.sharpness(0)) for output in outputs]
        logits = method.head(encode_crops(method.encoder, crops)).unflatten(0, (5, 8))
        loss = dino_loss(logits, torch.stack(targets), method.config.temperature)
    found = method.update(method.inputs(BATCH, 0), 0)["loss/dino"]
    torch.testing.assert_close(found, loss)  # with the center of the steps before
    torch.testing.assert_close(method.center, 0.9 * before + 0.1 * torch.cat(outputs).mean(0))


def test_the_last_layer_is_frozen_at_the_start():
    method = small_dino(frozen=2, weight_decay=0.1)
    start, first = method.head.last.detach().clone(), method.head.layers[0].weight.detach().clone()
    for step in range(2):
        method.update(method.inputs(BATCH, step), step)
    assert torch.equal(method.head.last, start)
    assert not torch.equal(method.head.layers[0].weight, first)
    method.update(method.inputs(BATCH, 2), 2)
    assert not torch.equal(method.head.last, start)


def test_weight_decay_rises_along_a_cosine_and_spares_biases_and_norms():
    method = small_dino(weight_decay=0.04, last_weight_decay=0.4)
    decayed, spared = method.optimizers["student"].param_groups
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    for step in (0, 20, 39):
        method.update(method.inputs(BATCH, step), step)
        expected = 0.4 - 0.36 * (1 + math.cos(math.pi * step / 40)) / 2
        assert decayed["weight_decay"] == pytest.approx(expected)
        assert spared["weight_decay"] == 0
    assert cosine(0.04, 0.4, 0, 40) == pytest.approx(0.04)
    assert cosine(0.04, 0.4, 40, 40) == pytest.approx(0.4)


def test_the_teachers_temperature_warms_up():
    method = small_dino(temperature_warmup=10, first_teacher_temperature=0.04, teacher_temperature=0.07)
    assert [method.sharpness(step) for step in (0, 5, 10, 30)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert small_dino(temperature_warmup=0, teacher_temperature=0.05).sharpness(0) == pytest.approx(0.05)


def test_the_gradient_is_clipped():
    """With plain SGD, a step is the learning rate times the clipped gradient."""
    settings = {"optimizer": "sgd", "lr": 32.0, "weight_decay": 0, "last_weight_decay": 0, "clip": 0.001}
    method = small_dino(**settings, warmup=0, frozen=0, log_every=1)
    before = [p.detach().clone() for p in method.student.parameters()]
    norm = method.update(method.inputs(BATCH, 0), 0)["grad_norm/student"]
    assert norm > 0.001
    steps = torch.cat([(p - old).flatten() for p, old in zip(method.student.parameters(), before, strict=True)])
    assert steps.norm().item() == pytest.approx(32.0 * 8 / 256 * 0.001, rel=0.01)


def test_eval_gets_the_teachers_encoder():
    method = small_dino()
    assert method.encoders() == {"encoder": method.teacher_encoder}
    assert method.teacher_encoder is not method.encoder
    for _ in range(2):
        method.update(method.inputs(BATCH, 0), 0)
    image = torch.rand(2, 3, 32, 32, generator=generator(3))
    expected = method.teacher_encoder.eval().vectors(image)
    torch.testing.assert_close(method.features(image), expected)
    assert not torch.equal(method.encoder.eval().vectors(image), expected)


def test_training_lowers_the_loss_without_a_collapse():
    method = small_dino(momentum=0.9)
    scalars = [method.update(method.inputs(BATCH, step), step) for step in range(20)]
    assert scalars[-1]["loss/dino"] < scalars[0]["loss/dino"]
    assert scalars[-1]["targets/entropy_of_mean"] > 1
    assert scalars[-1]["spread/deviation"] > 0.1


def test_a_vision_transformer_takes_the_local_crops_too():
    method = small_dino(encoder="test_vit")
    found = method.update(method.inputs(BATCH, 0), 0)
    assert all(value.isfinite() for value in found.values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--outputs", "1"], "--outputs must be at least 2, not 1"),
        (["--momentum", "1.5"], "--momentum must be in [0, 1], not 1.5"),
        (["--temperature", "0"], "--temperature must be at least 0.001, not 0"),
        (["--teacher-temperature", "0"], "--teacher-temperature must be at least 0.001, not 0"),
        (["--frozen", "-1"], "--frozen must be at least 0, not -1"),
        (["--largest-local", "2"], "--largest-local must be in [0.001, 1], not 2"),
    ],
)
def test_bad_settings_are_one_line(args: list[str], message: str, refused: Refused):
    assert message in refused(dino.main, args)


def test_the_state_has_teacher_and_center():
    names = set(small_dino().state_dict())
    assert "center" in names
    assert any(name.startswith("teacher.0.") for name in names)
    assert dino.DINO(small_dino().config, WORLD).state_dict().keys() == names


@pytest.mark.parametrize("norm", [False, True])
def test_norms_in_the_head_remove_what_all_features_share(norm: bool):
    torch.manual_seed(0)
    head = DINOHead(32, 64, 16, 10, norm=norm)
    hidden = normalize(head.layers(3 + random(16, 32)), dim=1)
    shared = (hidden @ hidden.T).mean().item()
    assert (shared < 0.3) == norm
