from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run, refusal
from helpers.nested import tensors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from kintsugi.data.labeled import Labels, contours, pack
from kintsugi.losses.depth import contour_loss
from kintsugi.losses.domain_adversarial import domain_accuracy, reverse_gradient
from kintsugi.metrics.surface_errors import SurfaceErrors
from kintsugi.nets.specs import build_spec
from kintsugi.nets.surface_net import SurfacePrediction, depth_picture
from kintsugi.recon import synthetic
from kintsugi.recon.synthetic import Synthetic, add_errors, demo
from kintsugi.rng import generator
from kintsugi.scenes import rendering
from kintsugi.train import checkpoint
from kintsugi.train.dist import World
from kintsugi.train.domain_adversary import FeaturePool
from kintsugi.train.log import panel

TINY = (
    "--size 64 --short-side 72 --scenes 24 --batch 4 --steps 4 --log-every 1 --show-every 2 --eval-every 2 "
    "--save-every 2 --eval-images 4 --pool 6 --device cpu"
).split()
CONFIG = replace(demo(), size=64, batch=4, steps=4, pool=6, device="cpu")
WORLD = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Four scenes and four pictures of noise, 72 px."""
    found = rendering.render(0, torch.arange(4), 72)
    planes = pack(found["image"], Labels(found["depth"], found["normal"], found["instance"]))
    noise = torch.randint(0, 256, (4, 3, 72, 80), generator=generator(0), dtype=torch.uint8)
    return {
        "synthetic/image": planes,
        "synthetic/extent": torch.tensor([[72, 72]] * 4),
        "synthetic/first": torch.tensor([True] * 4),
        "real/image": noise,
        "real/extent": torch.tensor([[72, 80]] * 4),
        "real/first": torch.tensor([True, True, True, False]),
    }


def method(**settings: object) -> Synthetic:
    torch.manual_seed(0)  # as the loop does
    return Synthetic(replace(CONFIG, **settings), WORLD)  # type: ignore[arg-type]


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def equal(some: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, other, strict=True))


# --- the losses -----------------------------------------------------------------------------------------------


def test_the_contour_loss_weights_images_by_how_rare_their_contours_are():
    logits = torch.randn(2, 1, 4, 4, generator=generator(1))
    truth = torch.zeros(2, 1, 4, 4)
    truth[0, 0, :2] = 1  # 8 of 16
    truth[1, 0, 0, 0] = 1  # 1 of 16: weighted by 15 / 4, not 15
    total = 0.0
    for n, weight in ((0, 1.0), (1, 15 / 4)):
        for x, t in zip(logits[n].flatten().tolist(), truth[n].flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-x))
            total -= weight * math.log(p if t else 1 - p)
    assert contour_loss(logits, truth).item() == pytest.approx(total / 32, rel=1e-5)


def test_reversal_changes_only_the_gradient():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x, 0.25)
    assert torch.equal(y, x)
    (y * torch.tensor([3.0, 4.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-0.75, -1.0]


# --- the pool -------------------------------------------------------------------------------------------------


def test_the_pool_swaps_half_of_a_batch_with_what_it_kept():
    pool = FeaturePool(6)
    seen: set[float] = set()
    for step in range(20):
        batch = torch.arange(4.0) + 4 * step + 1
        before = None if pool.kept is None else pool.kept.flatten().tolist()
        mixed = pool.exchange(batch.view(4, 1, 1, 1), generator(step)).flatten().tolist()
        assert pool.kept is not None
        after = pool.kept.flatten().tolist()
        if before is not None:
            given = [v for v in mixed if v not in batch.tolist()]
            assert len(given) == 2
            assert all(v in before for v in given)
            assert sorted(before + batch.tolist()) == sorted(after + mixed)  # nothing is lost or duplicated
        seen |= set(mixed)
    assert len(seen) > 60  # of 80: nearly everything is returned at some time
    whole = torch.rand(4, 1, 1, 1)
    assert torch.equal(FeaturePool(0).exchange(whole, generator(0)), whole)


# --- one update -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["alexnet", "resnet18"])
@pytest.mark.parametrize("adversary", ["alternate", "reversal"])
def test_every_weight_changes(encoder: str, adversary: str, batch: dict[str, Tensor]):
    trained = method(encoder=encoder, adversary=adversary)
    before = weights(trained.net), weights(trained.discriminator)
    scalars = trained.update(batch, 1)
    assert all(value.shape == () and value.isfinite() for value in scalars.values())
    for old, net in zip(before, (trained.net, trained.discriminator), strict=True):
        assert not any(torch.equal(a, b) for a, b in zip(old, net.parameters(), strict=True))
    assert {"domain/accuracy", "loss/discriminator", "discriminator/real", "discriminator/fake"} <= set(scalars)


@pytest.mark.parametrize("only", ["depth", "normal", "contour", "adversarial"])
def test_each_loss_changes_the_encoder(only: str, batch: dict[str, Tensor]):
    names = {"depth": "depth_weight", "normal": "normal_weight", "contour": "contour_weight"}
    settings = {name: 0.0 for name in (*names.values(), "adversarial")} | {names.get(only, only): 1.0}
    trained = method(**settings)
    before = weights(trained.net.encoder)
    trained.update(batch, 1)
    assert not equal(before, weights(trained.net.encoder))


@pytest.mark.parametrize("adversary", ["alternate", "reversal"])
def test_at_weight_0_the_discriminator_has_no_effect_on_the_encoder(adversary: str, batch: dict[str, Tensor]):
    without, other = (method(adversary=adversary, adversarial=0.0, lr_discriminator=lr) for lr in (1e-3, 0.0))
    with_effect = method(adversary=adversary, adversarial=0.5)
    for trained in (without, other, with_effect):
        for step in (1, 2):
            trained.update(batch, step)
    assert not equal(weights(without.discriminator), weights(other.discriminator))
    assert equal(weights(without.net), weights(other.net))
    assert not equal(weights(without.net), weights(with_effect.net))


@pytest.mark.parametrize("adversary", ["alternate", "reversal"])
def test_the_encoder_learns_to_make_synthetic_images_look_real(adversary: str, batch: dict[str, Tensor]):
    """Against a fixed discriminator, its probabilities for synthetic images rise."""
    trained = method(
        adversary=adversary,
        adversarial=1.0,
        depth_weight=0.0,
        normal_weight=0.0,
        contour_weight=0.0,
        lr_discriminator=0.0,
        lr=1e-4,
        discriminator_norm="group",
        norm="group",
    )
    probabilities = [trained.update(batch, 3)["discriminator/fake"].item() for _ in range(6)]
    assert probabilities[-1] > probabilities[0] + 0.01


def test_the_encoder_sees_one_channel_of_images_and_of_photos(batch: dict[str, Tensor]):
    trained = method()
    image, labels = trained._labeled(batch, generator(5))
    photo = trained._photos(batch, generator(5))
    for seen in (image, photo):
        assert seen.shape == (4, 3, 64, 64)
        assert torch.equal(seen[:, 0], seen[:, 1])
        assert torch.equal(seen[:, 0], seen[:, 2])
    assert labels.depth.shape == (4, 1, 64, 64)
    colored = method(channels="all")._photos(batch, generator(5))
    assert not torch.equal(colored[:, 0], colored[:, 1])


def test_labels_are_cropped_and_mirrored_with_their_image(batch: dict[str, Tensor]):
    """The colors of each pixel are set to its own normal, depth and instance."""
    planes = batch["synthetic/image"].clone()
    planes[:, 0], planes[:, 1], planes[:, 2] = planes[:, 5], planes[:, 4], planes[:, 9]
    trained = method(channels="all")
    own = {**batch, "synthetic/image": planes}
    mirrored = 0
    for seed in range(4):
        image, labels = trained._labeled(own, generator(seed))
        red, green, blue = (255 * image).round().unbind(1)
        assert torch.equal(green, (1000 * labels.depth[:, 0]).round() % 256)
        assert torch.equal(blue, (labels.instance % 256).float())
        for n in range(4):
            same = (red[n] / 127.5 - 1 - labels.normal[n, 0]).abs().max() < 0.02
            opposite = (red[n] / 127.5 - 1 + labels.normal[n, 0]).abs().max() < 0.02
            assert same or opposite
            mirrored += int(opposite)
    assert 0 < mirrored < 16


# --- pictures and figures -------------------------------------------------------------------------------------


def test_figures_of_known_errors():
    errors = SurfaceErrors()
    depth = torch.tensor([1.0, 2.0, 0.0, 4.0]).view(1, 1, 1, 4)
    guess = torch.tensor([1.0, 2.0 * 1.2, 9.0, 4.0 / 2]).view(1, 1, 1, 4).log()
    normal = torch.tensor([[0.0, 0.0, -1.0]] * 4).mT.view(1, 3, 1, 4).clone()
    tilted = normal.clone()
    tilted[0, :, 0, 3] = torch.tensor([math.sin(math.radians(40)), 0, -math.cos(math.radians(40))])
    instance = torch.tensor([[[1, 1, 2, 2]]])
    contour = torch.tensor([-2.0, 2.0, 2.0, -2.0]).view(1, 1, 1, 4)
    add_errors(errors, SurfacePrediction(guess, tilted, contour), Labels(depth, normal, instance))
    found = errors.means()
    assert found["depth_rms"] == pytest.approx(math.sqrt((math.log(1.2) ** 2 + math.log(2) ** 2) / 3), rel=1e-5)
    assert found["depth_within_25"] == pytest.approx(2 / 3)
    assert found["normal_degrees"] == pytest.approx(10, rel=1e-3)
    assert found["normal_within_30"] == pytest.approx(0.75)
    assert found["contour_ap"] == pytest.approx(1)


def test_accuracy_gives_both_domains_equal_weight():
    assert domain_accuracy(torch.tensor([1.0, 2, 3, -1]), torch.tensor([-1.0])).item() == pytest.approx(0.875)


def test_near_is_white_and_far_or_missing_is_black():
    gray = depth_picture(torch.tensor([1.0, 8.0, 1e-3]).log().view(3, 1, 1, 1))[:, 0].flatten()
    torch.testing.assert_close(gray, torch.tensor([1.0, 0.0, 0.0]))


def test_evaluation_is_the_same_twice_and_counts_no_image_twice(batch: dict[str, Tensor]):
    trained = method()
    found = trained.evaluate([batch])
    assert found == trained.evaluate([batch])
    assert 0.0 <= found["domain_probe"] <= 1.0
    again = {**batch, "real/image": batch["real/image"].clone()}
    again["real/image"][3] = 0  # a repeated image: not counted
    assert trained.evaluate([again]) == found


def test_the_baseline_is_the_mean_scene(batch: dict[str, Tensor]):
    (baseline,) = method().baselines([batch]).values()
    assert 0 < baseline["depth_rms"] < 1
    one = {name: value[:1] for name, value in batch.items()}
    (exact,) = method().baselines([one]).values()  # the mean of one scene is that scene
    assert exact["depth_rms"] == pytest.approx(0, abs=1e-4)
    assert exact["normal_within_30"] == 1
    assert exact["contour_ap"] == pytest.approx(1, abs=1e-3)


def test_the_pictures_show_the_truth(batch: dict[str, Tensor]):
    shown = method().show(batch)
    assert [p.shape[0] for p in shown.values()] == [3, 3]
    sheet = shown["synthetic: image | depth, truth | normals, truth | contours, truth"]
    last = sheet[0, 2:66, 2 + 6 * 66 : 2 + 6 * 66 + 64]
    instance = 256 * batch["synthetic/image"][:1, 8].long() + batch["synthetic/image"][:1, 9].long()
    assert torch.equal(last, contours(instance[:, 4:68, 4:68])[0, 0])


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "run"
    synthetic.main([*TINY, "--real", str(photos), "--out", str(folder)])
    return folder


def test_the_command_writes_pictures_scalars_a_table_and_an_encoder(run_folder: Path):
    events = EventAccumulator(str(run_folder), size_guidance={"images": 0}).Reload()
    assert len(events.Tags()["images"]) == 2
    for name in (
        "domain/accuracy",
        "loss/depth",
        "loss/normal",
        "loss/contour",
        "loss/adversarial",
        "heldout/domain_accuracy",
        "heldout/depth_rms",
    ):
        assert panel(name) in events.Tags()["scalars"], name
    rows = json.loads((run_folder / "quality.json").read_text())
    assert list(rows) == ["the scenes' mean", "pixels", "random init", "synthetic"]
    encoder = checkpoint.load_encoder(run_folder)
    maps = encoder(torch.rand(2, 3, 64, 96))
    assert maps[16].shape == (2, 256, 4, 6)
    assert build_spec(encoder.spec.plain()).channels == encoder.channels


def test_a_resumed_run_with_gradient_reversal_ends_with_the_same_state(photos: Path, tmp_path: Path):
    options = [*TINY, "--real", str(photos), "--adversary", "reversal"]
    synthetic.main([*options, "--out", str(tmp_path / "whole")])
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "step-00000004.pt").unlink()
    synthetic.main(["--resume", "--out", str(tmp_path / "run")])
    one, other = (tensors(checkpoint.load(checkpoint.find(tmp_path / f))["state"]) for f in ("whole", "run"))
    assert len(one) > 100
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_bad_input_gives_an_error_of_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "--real is missing: name a folder" in refusal(run("kintsugi.recon.synthetic", "--preset", "small"))
    assert not list(tmp_path.glob("runs/*"))
    (tmp_path / "half" / "rgb").mkdir(parents=True)
    for option, value, message in (
        ("--real", str(tmp_path / "nowhere"), "nowhere: no such folder"),
        ("--data", str(tmp_path / "half"), "no depth/ in it"),
    ):
        with pytest.raises(SystemExit):
            synthetic.main([*TINY, "--runs", str(tmp_path / "runs"), option, value])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {option}")
        assert message in line


def test_the_demo_runs_on_sample_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    synthetic.main([*TINY, "--steps", "1", "--out", str(tmp_path / "run")])
    assert "no --real given" in capsys.readouterr().out
