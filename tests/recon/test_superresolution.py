from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Refused
from helpers.nested import tensors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torchvision.models import vgg19

from kintsugi.losses import adversarial, perceptual
from kintsugi.losses.perceptual import ContentFeatures, open_content
from kintsugi.nets.discriminators import SRGANDiscriminatorSpec
from kintsugi.nets.srresnet import SRResNetSpec
from kintsugi.recon import superresolution
from kintsugi.recon.superresolution import SuperResolution, demo
from kintsugi.rng import generator
from kintsugi.train import checkpoint, shipped
from kintsugi.train.dist import World

TINY = (
    "--blocks 1 --width 8 --size 64 --batch 4 --steps 6 --adversarial-start 3 --log-every 1 --show-every 3 "
    "--eval-every 3 --save-every 2 --eval-images 2 --content-weights off --device cpu"
).split()
WORLD = World(torch.device("cpu"))
CONFIG = replace(demo(), blocks=1, width=8, batch=4, steps=8, adversarial_start=0, content_weights="off")
BATCH = {
    "image": torch.randint(0, 256, (4, 3, 72, 80), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[72, 80]]).repeat(4, 1),
    "index": torch.arange(4),
}


def method(**settings: Any) -> SuperResolution:
    torch.manual_seed(0)
    return SuperResolution(replace(CONFIG, **settings), WORLD)


def weights(net: torch.nn.Module) -> list[Tensor]:
    return [p.clone() for p in net.parameters()]


# --- networks -------------------------------------------------------------------------------------------------


def test_the_networks_have_the_papers_layers():
    net = SRResNetSpec().build()
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.kernel_size[0] for m in convolutions] == [9] + [3] * 33 + [3] * 2 + [9]
    assert {m.out_channels for m in convolutions[:34]} == {64}
    assert [m.out_channels for m in convolutions[34:]] == [256, 256, 3]
    discriminator = SRGANDiscriminatorSpec(96).build()
    layers = [(m.out_channels, m.stride[0]) for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert layers == [(c, s) for c in (64, 128, 256, 512) for s in (1, 2)]
    assert discriminator(torch.rand(2, 3, 96, 96)).shape == (2,)


# --- learning -------------------------------------------------------------------------------------------------


def vgg_layers() -> torch.nn.Module:
    """torchvision's VGG19 up to relu2_2, with random weights that keep the signal's scale."""
    with torch.device("meta"):
        layers = vgg19().features[:9]
    layers.to_empty(device="cpu")
    for weight in layers.parameters():
        torch.nn.init.normal_(weight, 0, (2 / weight[0].numel()) ** 0.5 / 2, generator=generator(0))
    return layers


def vgg() -> dict[str, Tensor]:
    return {f"features.{name}": weight for name, weight in vgg_layers().state_dict().items()}


def test_every_term_of_the_loss_changes_the_generator(monkeypatch: pytest.MonkeyPatch):
    """With the other terms at 0: the adversarial loss alone; the content loss alone, of pixels and of VGG features."""
    for silent, with_vgg in ((perceptual, True), (superresolution, False), (adversarial, True), (adversarial, False)):
        trained = method(adversarial=1.0)
        if with_vgg:
            trained.content_distance = ContentFeatures("relu2_2", vgg()).distance
        with torch.no_grad():
            trained.generator.last.weight.normal_(0, 0.01)
        term = "generator_loss" if silent is adversarial else "mse_loss"
        with monkeypatch.context() as patch:
            patch.setattr(silent, term, lambda a, *_: 0 * a.sum())
            before = weights(trained.generator)
            trained.update(trained.inputs(BATCH, 0), 0)
        assert not any(torch.equal(a, b) for a, b in zip(before, trained.generator.parameters(), strict=True))


@pytest.mark.parametrize("weights_of_terms", [{}, {"grain": 1000.0}, {"pixel_weight": 1.0}])
def test_the_options_of_phase_2_add_their_terms_alone(
    weights_of_terms: dict[str, float], monkeypatch: pytest.MonkeyPatch
):
    """With the content loss and the adversarial loss at 0."""
    trained = method(adversarial=0.0, **weights_of_terms)
    with torch.no_grad():
        trained.generator.last.weight.normal_(0, 0.01)
    monkeypatch.setattr(superresolution, "mse_loss", lambda a, *_: 0 * a.sum())
    before = weights(trained.generator)
    trained.update(trained.inputs(BATCH, 0), 0)
    pairs = zip(before, trained.generator.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs) == bool(weights_of_terms)


def test_content_features_are_vggs_map_of_normalized_images():
    net, image = vgg_layers(), torch.rand(1, 3, 32, 32, generator=generator(2))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = net((image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    torch.testing.assert_close(ContentFeatures("relu2_2", vgg())(image), expected)


def test_vgg_from_a_file_and_its_errors(tmp_path: Path):
    torch.save(vgg(), tmp_path / "v.pth")
    content, report = open_content("relu2_2", str(tmp_path / "v.pth"))
    assert content is not None
    assert "relu2_2" in report
    with pytest.raises(ValueError, match="does not reach VGG19's relu5_4: choose a lower --content-layer"):
        open_content("relu5_4", str(tmp_path / "v.pth"))
    (tmp_path / "bad.pth").write_text("no weights")
    with pytest.raises(ValueError, match="does not hold torchvision's VGG19"):
        open_content("relu2_2", str(tmp_path / "bad.pth"))
    with pytest.raises(ValueError, match="no such file"):
        open_content("relu2_2", str(tmp_path / "none.pth"))


def test_before_phase_2_the_discriminator_changes_nothing():
    never, later = method(adversarial_start=8), method(adversarial_start=4)
    later.generator.load_state_dict(never.generator.state_dict())
    later.config = replace(later.config, adversarial_start=8)  # which the learning rate of phase 1 depends on
    for trained in (never, later):
        trained.update(trained.inputs(BATCH, 0), 0)
        trained.update(trained.inputs(BATCH, 1), 1)
    pairs = zip(weights(never.generator), weights(later.generator), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_learning_rates_of_the_two_phases():
    trained = method(steps=400, adversarial_start=200, lr=1e-3, lr_adversarial=1e-4)
    assert trained.rate(100) == pytest.approx(1e-3)
    assert trained.rate(199) < 2e-5
    assert trained.rate(200) == trained.rate(299) == pytest.approx(1e-4)
    assert trained.rate(300) == trained.rate(399) == pytest.approx(1e-5)


def test_crops_are_the_images_own_pixels():
    crops = method(size=48).crops(BATCH, 0)
    windows = (BATCH["image"] / 255).unfold(2, 48, 1).unfold(3, 48, 1)
    for image, crop in zip(windows, crops, strict=True):
        both = ((image - crop[:, None, None]).abs().amax((0, 3, 4)), (image - crop.flip(-1)[:, None, None]).abs())
        assert min(both[0].min(), both[1].amax((0, 3, 4)).min()) < 1e-5


def test_turned_crops_are_the_images_own_pixels_in_eight_orientations():
    trained = method(size=48, turns=True)
    windows = BATCH["image"].unfold(2, 48, 1).unfold(3, 48, 1)  # (4,3,25,33,48,48)
    seen = []
    for step in range(16):
        for image, crop in zip(windows, (255 * trained.crops(BATCH, step)).round().byte(), strict=True):
            eight = [crop.rot90(k, (1, 2)) for k in range(4)] + [crop.rot90(k, (1, 2)).flip(2) for k in range(4)]
            equal = [(image == way[:, None, None]).all(-1).all(-1).all(0).any().item() for way in eight]
            assert equal.count(True) == 1
            seen.append(equal.index(True))
    assert set(seen) == set(range(8))


def test_scale_jitter_keeps_half_of_the_crops_native_and_shrinks_the_others():
    """On a picture whose rows and columns are ramps, the slope of a crop is the inverse of the factor."""
    ramp = torch.stack([torch.arange(256).expand(256, 256), torch.arange(256)[:, None].expand(256, 256)])
    image = torch.cat([ramp, ramp[:1]]).byte().repeat(64, 1, 1, 1)
    batch = {"image": image, "extent": torch.tensor([[256, 256]] * 60 + [[80, 200]] * 4), "index": torch.arange(64)}
    trained = method(size=64, batch=64, scale_jitter=0.5)
    crops = 255 * torch.cat([trained.crops(batch, step) for step in range(8)])
    across, down = (crops[:, 0, :, -8] - crops[:, 0, :, 7]).abs() / 49, (crops[:, 1, -8] - crops[:, 1, 7]).abs() / 49
    torch.testing.assert_close(across, across[:, :1].expand(-1, 64), atol=0.05, rtol=0)
    slope = across[:, 0]
    torch.testing.assert_close(down[:, 0], slope, atol=0.05, rtol=0)  # shrunk alike in both directions
    wide = slope.view(8, 64)[:, :60].flatten()  # the last images have no room for twice the crop
    assert (wide < 1.001).float().mean() == pytest.approx(0.5, abs=0.06)
    shrunk = wide[wide > 1.03]
    assert shrunk.max() == pytest.approx(2, abs=0.06)
    assert shrunk.log2().mean() == pytest.approx(0.52, abs=0.06)  # uniform in the logarithm
    assert slope.view(8, 64)[:, 60:].max() == pytest.approx(80 / 64, abs=0.02)


def test_the_crops_of_a_rank_are_its_share_of_the_global_batch():
    settings = {"size": 48, "turns": True, "scale_jitter": 0.7}
    whole = method(**settings).crops(BATCH, 3)
    for rank in range(2):
        alone = method(**settings)
        alone.world = World(torch.device("cpu"), rank=rank, size=2)
        share = {name: value[2 * rank : 2 * rank + 2] for name, value in BATCH.items()}
        assert torch.equal(alone.crops(share, 3), whole[2 * rank : 2 * rank + 2])


def test_it_becomes_better_than_bicubic():
    """On stripes, which bicubic enlargement blurs."""
    x = torch.arange(80) // 5 % 2
    stripes = (40 + 170 * x).expand(4, 3, 72, 80).byte()
    trained = method(steps=60, adversarial_start=60, lr=5e-3, width=16)
    batch = {**BATCH, "image": stripes}
    for step in range(50):
        trained.update(trained.inputs(batch, step), step)
    assert trained.evaluate([batch])["psnr"] > trained.baselines([batch])["bicubic"]["psnr"] + 1


# --- the commands ---------------------------------------------------------------------------------------------


def test_a_run_writes_pictures_losses_a_table_and_encoders(upscaler: Path):
    tags = EventAccumulator(str(upscaler), size_guidance={"images": 0}).Reload().Tags()
    assert tags["images"] == ["pictures/small | bicubic | super-resolved | truth"]
    assert {"losses/pixels", "losses/content", "losses/adversarial", "training/discriminator/real"} < set(
        tags["scalars"]
    )
    rows = json.loads((upscaler / "quality.json").read_text())
    assert list(rows) == ["bicubic", "pixels", "random init", "superresolution"]
    assert (upscaler / "before-adversary.pt").is_file()
    for role in ("generator", "discriminator"):
        assert checkpoint.load_encoder(upscaler, role)(torch.rand(1, 3, 64, 64))[16].shape[2:] == (4, 4)


@pytest.mark.parametrize("shipped_file", [False, True])
def test_phase_2_from_the_weights_of_another_run(upscaler: Path, photos: Path, tmp_path: Path, shipped_file: bool):
    """The run's folder, or a file of its weights in half precision."""
    init, tolerance = upscaler, 1e-6
    if shipped_file:
        init, tolerance = tmp_path / "weights.safetensors", 1e-3
        shipped.write(checkpoint.read(upscaler)[1], init)
    args = [*TINY, "--data", str(photos), "--steps", "1", "--adversarial-start", "0", "--init", str(init)]
    superresolution.main([*args, "--lr-adversarial", "1e-12", "--out", str(tmp_path / "two")])
    one, two = (superresolution.load_upscaler(f, torch.device("cpu")) for f in (upscaler, tmp_path / "two"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
    with pytest.raises(SystemExit):
        superresolution.main([*args, "--blocks", "2", "--out", str(tmp_path / "three")])


def test_phase_2_from_the_latest_run_and_its_resume_without_that_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    args = [*TINY, "--data", str(photos), "--steps", "2", "--adversarial-start"]
    superresolution.main([*args, "2"])
    latest = tmp_path / "runs/superresolution/latest"
    first = checkpoint.find(latest).parent.rename(latest.with_name("first"))  # runs are named by the second
    latest.write_text("first\n")
    superresolution.main([*args, "0", "--init", "runs/superresolution/first", "--out", "other"])
    superresolution.main([*args, "0", "--init", "runs/superresolution/latest"])
    assert latest.read_text() != "first\n"
    states = [tensors(checkpoint.load(checkpoint.find(f))["state"]) for f in (latest, tmp_path / "other")]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    for file in first.glob("*.pt"):
        file.unlink()
    superresolution.main(["--resume", "--out", "other", "--steps", "3", "--adversarial-start", "0"])
    assert checkpoint.load(checkpoint.find(tmp_path / "other"))["step"] == 3


def test_a_run_of_phase_1_continues_into_phase_2(photos: Path, tmp_path: Path):
    """It ends with the weights of a run that had both phases from the start."""
    both, one = tmp_path / "both", tmp_path / "one"
    args = [*TINY, "--data", str(photos), "--adversarial-start", "4"]
    superresolution.main([*args, "--steps", "6", "--out", str(both)])
    superresolution.main([*args, "--steps", "4", "--out", str(one)])
    superresolution.main(["--resume", "--out", str(one), "--steps", "6", "--adversarial-start", "4"])
    states = [tensors(checkpoint.load(checkpoint.find(f))["state"]) for f in (both, one)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_the_warning_of_a_collapse_names_options_that_exist():
    (warning,) = method().warnings({"loss/discriminator": 0.0})
    assert "--lr-adversarial" in warning
    assert "--discriminator-norm" not in warning


def test_bad_input_is_one_line(refused: Refused):
    assert "--adversarial-start 9 must be" in refused(superresolution.main, [*TINY, "--adversarial-start", "9"])
    assert "--scale-jitter must be in" in refused(superresolution.main, [*TINY, "--scale-jitter", "1.5"])
