from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kintsugi.fill.membrane import membrane, mend, seamless
from kintsugi.nets.context_encoder import MEAN_COLOR, ContextEncoder
from kintsugi.recon import inpainting
from kintsugi.recon.inpainting import Inpainting, InpaintingConfig, load_mender, reconstruction_loss
from kintsugi.train.dist import World

TINY = InpaintingConfig(size=64, batch=2, steps=4, lpips="off", norm="group", discriminator_norm="group", device="cpu")
BATCH = {
    "image": torch.randint(0, 256, (2, 3, 80, 72), generator=torch.Generator().manual_seed(0), dtype=torch.uint8),
    "extent": torch.tensor([[80, 72], [70, 66]]),
    "index": torch.arange(2),
}


def method(config: InpaintingConfig) -> Inpainting:
    torch.manual_seed(0)  # as the loop does
    return Inpainting(config, World(torch.device("cpu")))


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def equal(some: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, other, strict=True))


# --- the loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("band", [0, 1, 2])
def test_the_loss_equals_that_of_a_loop(band: int):
    random = torch.Generator().manual_seed(band)
    painted, truth = torch.rand(2, 2, 3, 9, 9, generator=random).unbind(0)
    mask = torch.zeros(2, 1, 9, 9)
    mask[0, 0, 3:6, 2:5] = 1
    mask[1, 0, 0:2, 6:9] = 1  # at the border, and with another size
    expected = []
    for n in range(2):
        hole = {(y, x) for y in range(9) for x in range(9) if mask[n, 0, y, x]}
        total = count = 0.0
        for y in range(9):
            for x in range(9):
                near = any(abs(y - a) <= band and abs(x - b) <= band for a, b in hole)
                weight = 1.0 if (y, x) in hole else 10.0 if near else 0.0
                for c in range(3):
                    d = 2 * (painted[n, c, y, x] - truth[n, c, y, x]).item()  # on the scale of [-1,1]
                    total += weight * d * d / 3
                count += weight > 0
        expected.append(total / count)
    loss = reconstruction_loss(painted, truth, mask, band, 10.0)
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_without_a_hole_the_loss_covers_the_whole_image():
    painted, truth = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    loss = reconstruction_loss(painted, truth, torch.zeros(2, 1, 8, 8), 1, 10.0)
    torch.testing.assert_close(loss, 4 * nn.functional.mse_loss(painted, truth))


def test_mend_uses_the_painting_only_in_the_hole():
    painted, image, mask = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., 1, 2] = 1
    assert mend(painted, image, mask).sum() == 3
    assert mend(painted, image, mask)[0, :, 1, 2].sum() == 3


# --- the networks ---------------------------------------------------------------------------------------------


def test_the_encoder_sees_the_mean_color_in_the_hole_and_not_the_truth():
    net = ContextEncoder(TINY.backbone, TINY.norm, TINY.size)
    seen: list[Tensor] = []
    net.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, 10:30, 20:50] = 1
    net(image, mask)
    hole = (mask > 0).expand_as(image)
    assert torch.equal(seen[0][~hole], image[~hole])
    color = torch.tensor(MEAN_COLOR).view(1, 3, 1, 1).expand_as(image)
    assert torch.equal(seen[0][hole], color[hole])


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "alexnet", "dcgan"])
@pytest.mark.parametrize("mask", ["center", "blocks", "regions", "none"])
def test_every_encoder_trains_with_every_kind_of_hole(encoder, mask):
    config = replace(TINY, encoder=encoder, mask=mask, size=128 if encoder == "dcgan" else 64, norm="batch")
    trained = method(config)
    before = weights(trained.generator)
    scalars = trained.update(trained.inputs(BATCH, 0), 0)
    assert all(value.shape == () and value.isfinite() for value in scalars.values())
    changed = [not torch.equal(a, b) for a, b in zip(before, trained.generator.parameters(), strict=True)]
    assert all(changed)
    assert ("discriminator/real" in scalars) == (mask != "none")
    roles = {"generator"} if mask == "none" else {"generator", "discriminator"}
    assert set(trained.encoders()) == roles


# --- one update -----------------------------------------------------------------------------------------------


def test_without_a_hole_it_is_an_autoencoder():
    trained = method(replace(TINY, mask="none"))
    assert trained.holes(2, 0, 0).sum() == 0
    truth = trained.inputs(BATCH, 0)["image"]
    loss = 4 * nn.functional.mse_loss(trained.generator(truth, torch.zeros(2, 1, 64, 64)), truth)
    scalars = trained.update(trained.inputs(BATCH, 0), 0)
    torch.testing.assert_close(scalars["loss/reconstruction"], loss)
    assert {name for name, _ in trained.named_children()} == {"generator", "average"}
    assert list(trained.show(BATCH)) == ["truth | painted"]
    image = trained.centered(BATCH)
    error = (trained.paint(image, torch.zeros(2, 1, 64, 64)) - image).abs().mean().item()
    assert trained.evaluate([BATCH])["l1"] == pytest.approx(100 * error, rel=1e-4)  # of whole images


def test_each_image_and_each_step_has_its_own_hole():
    for kind in ("blocks", "regions"):
        trained = method(replace(TINY, mask=kind))
        first, second = trained.holes(2, 0, 0)
        assert not torch.equal(first, second)
        assert not torch.equal(first, trained.holes(2, 0, 1)[0])
        assert torch.equal(first, trained.holes(2, 0, 0)[0])


def test_the_logged_losses_add_up():
    trained = method(replace(TINY, adversarial=0.1))
    scalars = trained.update(trained.inputs(BATCH, 0), 0)
    assert scalars["loss/adversarial_weighted"].item() == pytest.approx(0.1 * scalars["loss/adversarial"].item())
    whole = 0.9 * scalars["loss/reconstruction"] + scalars["loss/adversarial_weighted"]
    torch.testing.assert_close(scalars["loss/generator"], whole)
    for name in ("discriminator/real", "discriminator/fake"):
        assert 0 < scalars[name].item() < 1


def gradient(config: InpaintingConfig) -> list[Tensor]:
    """The generator's gradients of the first update."""
    trained, found = method(config), []
    optimizer = trained.optimizers["generator"]
    optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])
    )
    trained.update(trained.inputs(BATCH, 0), 0)
    return found


def test_every_term_reaches_every_weight_of_the_generator():
    hole = gradient(replace(TINY, overlap=0, adversarial=0.0))
    assert all(g.abs().max() > 0 for g in hole)
    every = replace(TINY, adversarial=0.5)
    assert equal(gradient(every), gradient(every))
    for without in (replace(every, overlap_weight=0.0), replace(every, adversarial_start=1)):
        pairs = zip(gradient(every), gradient(without), strict=True)
        assert not any(torch.equal(some, other) for some, other in pairs)


def test_the_adversarial_loss_alone_changes_the_generator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kintsugi.recon.inpainting.reconstruction_loss", lambda painted, *args: 0 * painted.sum())
    trained = method(replace(TINY, adversarial=0.5))
    before = weights(trained.generator)
    trained.update(trained.inputs(BATCH, 0), 0)
    assert not any(torch.equal(a, b) for a, b in zip(before, trained.generator.parameters(), strict=True))


def test_the_generators_step_does_not_change_the_discriminator(monkeypatch: pytest.MonkeyPatch):
    trained = method(replace(TINY, discriminator_norm="batch"))
    update, after = inpainting.update_discriminator, {}

    def watched(*args: Any, **options: Any) -> Mapping[str, Tensor]:
        scalars = update(*args, **options)
        after.update(copy.deepcopy(trained.discriminator.state_dict()))
        return scalars

    before = copy.deepcopy(trained.discriminator.state_dict())
    monkeypatch.setattr(inpainting, "update_discriminator", watched)
    trained.update(trained.inputs(BATCH, 0), 0)
    now = trained.discriminator.state_dict()
    assert all(torch.equal(after[name], now[name]) for name in now)  # weights, and batch norm's averages
    assert all(p.grad is None for p in trained.discriminator.parameters())
    assert any(not torch.equal(before[name], now[name]) for name in now)


def test_the_discriminators_averages_come_from_real_images_alone():
    trained = method(replace(TINY, discriminator_norm="batch"))
    alone = copy.deepcopy(trained.discriminator)
    alone(trained._judged(trained.inputs(BATCH, 0)["image"]))
    trained.update(trained.inputs(BATCH, 0), 0)
    for (name, expected), found in zip(alone.named_buffers(), trained.discriminator.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_before_its_start_the_discriminator_changes_only_the_scale_of_the_loss():
    """Compares weight 0 with a discriminator that never starts: the losses differ by the factor 1 - weight, here 1/2.
    Gradient descent makes up for it with twice the learning rate, because doubling is exact in floating point."""
    without, waiting = replace(TINY, adversarial=0.0), replace(TINY, adversarial=0.5, adversarial_start=99)
    results = []
    for config in (without, waiting):
        trained = method(config)
        lr = 0.01 / (1 - config.adversarial)
        trained.optimizers["generator"] = torch.optim.SGD(trained.generator.parameters(), lr)
        losses = [trained.update(trained.inputs(BATCH, step), step)["loss/generator"] for step in range(3)]
        results.append((losses, weights(trained.generator), weights(trained.average)))
    (losses, net, average), (half, same_net, same_average) = results
    assert torch.equal(torch.stack(losses), 2 * torch.stack(half))
    assert len(set(torch.stack(losses).tolist())) == 3  # the weights do change
    assert equal(net, same_net)
    assert equal(average, same_average)


def test_the_average_is_taken_over_weights_and_batch_norms():
    trained = method(replace(TINY, norm="batch", adversarial=0.0))
    start = copy.deepcopy(trained.generator.state_dict())
    states = []
    for step in range(3):
        trained.update(trained.inputs(BATCH, step), step)
        states.append(copy.deepcopy(trained.generator.state_dict()))
    average = trained.average.module.state_dict()
    assert any("running_mean" in name for name in average)
    for name, found in average.items():
        if not found.is_floating_point():
            assert torch.equal(found, states[-1][name])
            continue
        expected = states[0][name]  # the first update copies
        for count, state in enumerate(states[1:], 1):
            decay = min(0.999, (1 + count) / (10 + count))
            expected = decay * expected + (1 - decay) * state[name]
        torch.testing.assert_close(found, expected)
    assert not torch.equal(start["encoder.conv1.weight"], average["encoder.conv1.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {"gan": "hinge"},
        {"discriminator_norm": "spectral"},
        {"r1": 1.0, "discriminator_norm": "spectral"},
        {"gan": "hinge", "r1": 1.0, "discriminator_norm": "batch"},
    ],
)
def test_the_options_for_a_stable_gan_run(options: dict[str, object]):
    trained = method(replace(TINY, **options))  # type: ignore[arg-type]
    scalars = trained.update(trained.inputs(BATCH, 0), 0)
    assert all(value.isfinite() for value in scalars.values())
    assert ("loss/r1" in scalars) == ("r1" in options)
    assert "loss/r1" not in trained.update(trained.inputs(BATCH, 1), 1)  # every 16 steps
    if "r1" in options:
        assert scalars["loss/r1"] > 0


def test_a_collapsed_discriminator_gives_a_warning():
    trained = method(TINY)
    (warning,) = trained.warnings({"loss/discriminator": 1e-5})
    assert "--discriminator-norm spectral" in warning
    assert trained.warnings({"loss/discriminator": 0.7}) == []
    assert trained.warnings({"loss/reconstruction": 0.0}) == []


# --- pictures, figures, use -----------------------------------------------------------------------------------


def test_pictures_and_figures_are_the_same_at_every_call():
    trained = method(replace(TINY, mask="regions"))
    (title,), (again,) = trained.show(BATCH), trained.show(BATCH)
    assert title == again == "input | hole | mended | truth"
    picture = trained.show(BATCH)[title]
    assert picture.shape == (3, 2 * (128 + 2) + 2, 4 * (128 + 2) + 2)
    assert torch.equal(picture, trained.show(BATCH)[title])
    assert trained.evaluate([BATCH]) == trained.evaluate([BATCH])
    assert set(trained.evaluate([BATCH])) == {"psnr", "ssim", "l1", "l2"}


def test_the_mender_of_a_checkpoint_changes_only_holes(trained):
    mender = load_mender(trained, torch.device("cpu"))
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., 20:40, 20:40] = 1
    result = mender(image, mask)
    hole = (mask > 0).expand_as(image)
    assert torch.equal(result[~hole], image[~hole])
    assert torch.equal(result, mender(torch.where(hole, torch.zeros(()), image), mask))
    assert not torch.equal(result[hole], image[hole])


def test_membrane_solves_the_laplace_equation():
    """Each value is the mean of its neighbors: compared with a dense linear solve of the same equations."""
    torch.manual_seed(0)
    size = 12
    image = torch.rand(1, 1, size, size, dtype=torch.float64)
    mask = torch.zeros(1, 1, size, size, dtype=torch.float64)
    mask[..., 3:9, 2:10] = 1
    mask[..., 0:2, 0:2] = 1  # a hole at the corner: the border mirrors
    hole = mask[0, 0] > 0.5
    equations, right = torch.eye(size * size, dtype=torch.float64), (image * (1 - mask)).flatten().clone()
    for y, x in hole.nonzero().tolist():
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            ny, nx = min(max(y + dy, 0), size - 1), min(max(x + dx, 0), size - 1)
            equations[y * size + x, ny * size + nx] -= 0.25
    expected = torch.linalg.solve(equations, right).view(size, size)
    found = membrane(image, mask, rounds=400)[0, 0]
    assert torch.allclose(found, expected, atol=1e-6)
    quick = membrane(image, mask)[0, 0]
    assert (quick - expected).abs().max() < 0.03
    assert torch.equal(quick[~hole], image[0, 0][~hole])


def test_seamless_removes_a_constant_error_and_keeps_visible_pixels():
    torch.manual_seed(0)
    image = 0.2 + 0.6 * torch.rand(2, 3, 32, 32)
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    painted = image - 0.1  # right except for its brightness
    result = seamless(painted, image, mask)
    assert torch.equal(result * (1 - mask), image * (1 - mask))
    assert (result - image).abs().max() < 0.01
    assert (mend(painted, image, mask) - image).abs().max() > 0.09
