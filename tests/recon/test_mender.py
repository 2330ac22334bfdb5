from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.one_step import photos
from torch import Tensor, nn
from torch.nn.functional import softplus

from kintsugi.recon import mender
from kintsugi.recon.mender import PhotoMending, load_unet
from kintsugi.train import shipped
from kintsugi.train.config import to_plain
from kintsugi.train.dist import World
from kintsugi.train.gan import gradient_ratio

WORLD = World(torch.device("cpu"))
TINY = replace(
    mender.demo(), width=4, blocks=1, size=32, batch=4, adversarial_start=0, content_weights="off", lpips="off"
)


def method(**changes: object) -> PhotoMending:
    torch.manual_seed(0)
    return PhotoMending(replace(TINY, **changes), WORLD)


def batch(count: int = 4) -> dict[str, Tensor]:
    return {name: value[:count] for name, value in photos(48, 52).items()}


def moved(net: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in net.named_parameters())


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def test_half_of_the_crops_have_the_photos_own_pixels():
    """Such a crop is found in its photo, pixel by pixel."""
    m, whole = method(batch=8, scale_jitter=0.5), photos(48, 52)
    own = 0
    for step in range(4):
        for crop, image in zip(m.crops(whole, step), whole["image"].float() / 255, strict=True):
            windows = image.unfold(1, 32, 1).unfold(2, 32, 1)  # (3,17,21,32,32)
            distance = min((windows - each[:, None, None]).abs().amax((0, 3, 4)).min() for each in (crop, crop.flip(2)))
            own += int(distance < 1e-6)
    assert 10 <= own <= 22


def test_every_loss_moves_the_generator():
    for only in ({"pixels": 4.0}, {"matching": 1.0}, {"adversarial": 1.0}):
        m = method(**{"pixels": 0.0, "matching": 0.0, "adversarial": 1e-12, **only})
        m.balance.fill_(float("adversarial" in only))
        before = weights(m.generator)
        m.update(m.inputs(batch(), 1), 1)  # step 1: the balance stays
        assert moved(m.generator, before), only


def test_only_patches_that_touch_the_hole_are_fake():
    """The discriminator's loss as a loop over logits."""
    m, truth, mask = method(), torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    mask[0, 0, 9:12, 17:30] = 1  # the second image has no hole
    mended = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        real, fake = m.discriminator(truth), m.discriminator(mended)
    terms = [
        softplus(fake[n, 0, y, x])
        for n in range(2)
        for y in range(4)
        for x in range(4)
        if mask[n, 0, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].any()
    ]
    assert len(terms) == 2
    expected = softplus(-real).mean() + sum(terms) / len(terms)
    found = m._train_discriminator(truth, mended, mask, 1)["loss/discriminator"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_adversarial_weight_moves_toward_the_wanted_gradient():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    ratio = gradient_ratio((3 * weight).sum(), weight.square().sum() / 2, weight, WORLD)
    assert ratio.item() == pytest.approx(3 * 2**0.5 / 5**0.5)
    m = method(adversarial=0.5)
    m.update(m.inputs(batch(), 1), 1)
    assert m.balance == 0
    for step in (16, 32, 48):
        before = m.balance.item()
        m.update(m.inputs(batch(), step), step)
        wanted = before + (m.balance.item() - before) / 0.1
        assert 0 < wanted <= 1 + 1e-5


def test_without_a_discriminator_there_is_none():
    m = method(adversarial=0.0)
    found = m.update(m.inputs(batch(), 16), 16)
    assert list(m.optimizers) == ["generator"]
    assert not any("adversarial" in name or "discriminator" in name for name in found)


def test_pixels_outside_the_hole_are_the_photos():
    m, truth, mask = method(), torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    mask[..., 5:20, 8:30] = 1
    mended = m.mended(truth, mask)
    assert torch.equal(mended[:, :, :5], truth[:, :, :5])
    assert not torch.equal(mended[:, :, 5:20, 8:30], truth[:, :, 5:20, 8:30])


def test_training_starts_from_other_weights(tmp_path: Path):
    m = method()
    m.update(m.inputs(batch(), 0), 0)
    content = {"method": m.name, "step": 1, "score": 0.0, "config": to_plain(m.config)}
    content["state"] = m.training_state()
    content["encoders"] = {
        role: {"spec": encoder.spec.plain(), "state": encoder.state_dict()} for role, encoder in m.encoders().items()
    }
    shipped.write(content, tmp_path / "m.safetensors")
    started = method(init=str(tmp_path / "m.safetensors"))
    for name, value in m.average.module.named_parameters():
        torch.testing.assert_close(dict(started.generator.named_parameters())[name], value, atol=2e-3, rtol=2e-3)
    net = load_unet(tmp_path / "m.safetensors", torch.device("cpu"))
    image, mask = torch.rand(1, 3, 40, 40), torch.ones(1, 1, 40, 40)
    torch.testing.assert_close(net(image, mask), started.generator.eval()(image, mask))
    with pytest.raises(ValueError, match="has --width 4 --blocks 1 --norm batch, this run --width 8 "):
        PhotoMending.check(replace(TINY, width=8, init=str(tmp_path / "m.safetensors")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 40}, "--size 40"),
        ({"size": 16}, "--size 16"),
        ({"adversarial": -1.0}, "--adversarial"),
        ({"width": 1}, "--width"),
    ],
)
def test_settings_that_cannot_work_give_one_line(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
