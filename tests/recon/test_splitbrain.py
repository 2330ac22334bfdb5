from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy

from kintsugi import color
from kintsugi.data import hha_images
from kintsugi.data.store import Store
from kintsugi.recon import splitbrain, splitbrain_hha
from kintsugi.recon.splitbrain import SplitBrain, ab_loss, decode_ab, decode_lightness, lightness_loss
from kintsugi.recon.splitbrain_hha import SplitBrainHha, masked_l2
from kintsugi.rng import generator
from kintsugi.train import checkpoint
from kintsugi.train.dist import World

TINY = (
    "--size 64 --batch 4 --steps 6 --log-every 1 --show-every 3 --eval-every 3 --save-every 2 --eval-images 2 "
    "--device cpu"
).split()
WORLD = World(torch.device("cpu"))
BATCH = {
    "image": torch.randint(0, 256, (4, 3, 72, 80), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[72, 80]]).repeat(4, 1),
    "index": torch.arange(4),
}


def method(**settings: Any) -> SplitBrain:
    torch.manual_seed(0)
    return SplitBrain(replace(splitbrain.demo(), batch=4, steps=8, **settings), WORLD)


def with_depth() -> tuple[SplitBrainHha, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    trained = SplitBrainHha(replace(splitbrain_hha.demo(), batch=4, steps=8), WORLD)
    planes = torch.randint(0, 256, (4, 7, 72, 80), generator=generator(1), dtype=torch.uint8)
    return trained, {**BATCH, "image": planes}


# --- losses ---------------------------------------------------------------------------------------------------


def test_losses_equal_those_of_a_loop_over_pixels():
    ab = 60 * torch.randn(2, 2, 3, 4, generator=generator(2)).clamp(-1.5, 1.5)
    light = 100 * torch.rand(2, 1, 3, 4, generator=generator(3))
    ab_logits, light_logits = (torch.randn(2, n, 3, 4, generator=generator(n)) for n in (313, 50))
    bins, sums = color.ab_bins(), torch.zeros(2)
    for n in range(2):
        for y in range(3):
            for x in range(4):
                nearest = (bins - ab[n, :, y, x]).norm(dim=1).argmin()
                step = torch.tensor(int(light[n, 0, y, x] // 2))
                sums[0] += cross_entropy(ab_logits[n, :, y, x], nearest) / 24
                sums[1] += cross_entropy(light_logits[n, :, y, x], step) / 24
    torch.testing.assert_close(torch.stack([ab_loss(ab_logits, ab), lightness_loss(light_logits, light)]), sums)


def test_confident_logits_decode_to_their_bins():
    ab = torch.tensor([20.0, -30]).view(1, 2, 1, 1)
    index = color.soft_encode(ab, color.ab_bins(), 1)[0]
    logits = torch.zeros(1, 313, 1, 1).scatter_(1, index, 50.0)
    torch.testing.assert_close(decode_ab(logits), ab)
    logits = torch.zeros(1, 50, 1, 1).index_fill_(1, torch.tensor([17]), 50.0)
    torch.testing.assert_close(decode_lightness(logits), torch.full((1, 1, 1, 1), 35.0))


def test_missing_depth_is_left_out_of_the_loss():
    hha = torch.rand(2, 3, 16, 16, generator=generator(4))
    known = torch.rand(2, 1, 16, 16, generator=generator(5)) < 0.6
    known[:, :, :4, :4] = False
    predicted = torch.rand(2, 3, 4, 4, generator=generator(6), requires_grad=True)
    loss = masked_l2(predicted, hha, known, WORLD)
    expected, weight = 0.0, 0.0
    for n in range(2):
        for y in range(4):
            for x in range(4):
                here = known[n, 0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                if here.any():
                    truth = hha[n, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4][:, here].mean(1)
                    fraction = here.float().mean().item()
                    expected += fraction * (predicted[n, :, y, x] - truth).square().mean().item()
                    weight += fraction
    assert loss.item() == pytest.approx(expected / weight, rel=1e-4)
    loss.backward()
    assert predicted.grad is not None
    assert not predicted.grad[:, :, 0, 0].any()
    noise = torch.where(known, hha, torch.rand(hha.shape, generator=generator(7)))
    assert masked_l2(predicted, noise, known, WORLD).item() == pytest.approx(loss.item(), rel=1e-6)
    assert masked_l2(predicted, hha, torch.zeros_like(known), WORLD).item() == 0


# --- what each half sees --------------------------------------------------------------------------------------


def test_no_half_sees_what_it_predicts():
    """With other chroma and the same lightness, the predicted chroma stays the same; and vice versa."""
    trained = method()
    lab = color.rgb_to_lab(torch.rand(1, 3, 64, 64, generator=generator(8)) * 0.2 + 0.4)
    tinted = torch.cat([lab[:, :1], lab[:, 1:].flip(1)], 1)
    lighter = torch.cat([lab[:, :1] + 5, lab[:, 1:]], 1)
    plain, from_tinted, from_lighter = (trained.predict(color.lab_to_rgb(x)) for x in (lab, tinted, lighter))
    torch.testing.assert_close(from_tinted[:, 1:], plain[:, 1:], atol=0.05, rtol=0)
    torch.testing.assert_close(from_lighter[:, :1], plain[:, :1], atol=0.05, rtol=0)
    assert (from_tinted[:, :1] - plain[:, :1]).abs().max() > 0.1
    assert (from_lighter[:, 1:] - plain[:, 1:]).abs().max() > 0.1


@pytest.mark.parametrize("loss", ["classification", "l2"])
def test_both_losses_fall(loss: str):
    trained = method(loss=loss)
    first = trained.update(BATCH, 0)
    for step in range(1, 7):
        last = trained.update(BATCH, step)
    for name in ("ab", "lightness"):
        assert last[f"loss/{name}"] < first[f"loss/{name}"]


def test_with_depth_all_losses_fall_and_both_are_predicted():
    trained, batch = with_depth()
    first = trained.update(batch, 0)
    for step in range(1, 7):
        last = trained.update(batch, step)
    for name in ("hha", "lab", "lightness", "ab"):
        assert last[f"loss/{name}"] < first[f"loss/{name}"]
    predicted_hha, predicted_lab = trained.predict(*trained.centered(batch)[:2])
    assert predicted_hha.shape == predicted_lab.shape == (4, 3, 64, 64)


def test_features_of_both_halves_and_of_depth():
    encoder = method().encoders()["generator"]
    half = {stride: maps.shape[1] // 2 for stride, maps in encoder(torch.rand(1, 3, 64, 64)).items()}
    assert half == {4: 32, 8: 96, 16: 128, 32: 128}
    roles = with_depth()[0].encoders()
    assert roles["rgbd"].planes == 6
    both = roles["rgbd"].eval()(torch.rand(1, 6, 64, 64, generator=generator(9)))
    alone = roles["generator"].eval()(torch.rand(1, 6, 64, 64, generator=generator(9))[:, :3])
    assert all(torch.equal(both[s][:, : alone[s].shape[1]], alone[s]) for s in alone)


@pytest.mark.parametrize("kind", ["lab", "hha"])
def test_the_baseline_does_not_depend_on_how_images_are_batched(kind: str):
    trained, batch = (method(), BATCH) if kind == "lab" else with_depth()
    parts = [{name: value[i] for name, value in batch.items()} for i in (slice(0, 3), slice(3, 4))]
    (whole,), (split,) = trained.baselines([batch]).values(), trained.baselines(parts).values()
    assert split == pytest.approx(whole, rel=1e-4)


# --- the commands ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames with depth: a wall with a darker box in front of it, and an area where depth is missing."""
    folder = tmp_path_factory.mktemp("frames")
    for name in ("rgb", "depth"):
        (folder / name).mkdir()
    (folder / "intrinsics.txt").write_text("80 0 48\n0 80 36\n0 0 1\n")
    for i in range(24):
        rgb, depth = np.full((72, 96, 3), 200, np.uint8), np.full((72, 96), 3000, np.uint16)
        rgb[20:50, i : i + 40], depth[20:50, i : i + 40] = (90, 40 + 5 * i, 60), 1500
        depth[60:, 80:] = 0
        Image.fromarray(rgb).save(folder / "rgb" / f"{i:03d}.png")
        Image.fromarray(depth).save(folder / "depth" / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module", params=["lab", "hha"])
def run_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photos: Path, frames: Path
) -> Path:
    module, data = (splitbrain, photos) if request.param == "lab" else (splitbrain_hha, frames)
    folder = tmp_path_factory.mktemp(request.param) / "run"
    module.main([*TINY, "--data", str(data), "--out", str(folder)])
    return folder


def test_a_run_writes_pictures_a_table_and_an_encoder(run_folder: Path):
    tags = EventAccumulator(str(run_folder), size_guidance={"images": 0}).Reload().Tags()
    rows = json.loads((run_folder / "quality.json").read_text())
    if "hha" in str(run_folder):
        assert tags["images"] == ["pictures/image | HHA predicted from it | HHA | image predicted from HHA"]
        assert list(rows) == ["mean of each plane", "pixels", "random init", "splitbrain-hha"]
    else:
        title = "L | ab predicted from L | ab | L predicted from ab | both predicted | truth"
        assert tags["images"] == [f"pictures/{title}"]
        assert list(rows) == ["mean color", "pixels", "random init", "splitbrain"]
    encoder = checkpoint.load_encoder(run_folder)
    assert encoder(torch.rand(1, 3, 64, 64))[16].shape[2:] == (4, 4)


def test_frames_are_read_as_they_are(frames: Path, tmp_path: Path):
    split = hha_images.open_hha(str(frames), 64, Store(short_side=72, cache=tmp_path))
    assert len(split.train) + len(split.heldout) == 24
    image, hha, known = hha_images.unpack(split.train.batch(torch.tensor([0]))["image"])
    assert not known[0, 0, 60:, 80:].any()
    assert known[0, 0, :60].all()
    assert not hha[0, :, 60:, 80:].any()
    assert hha[0, 0, 5, 90] == pytest.approx(103 / 255)  # 31000 / 300 cm
    assert image[0, 0, 0, 0] == pytest.approx(200 / 255)


def test_bad_input_is_one_line(refused: Refused, frames: Path, tmp_path: Path):
    for name in ("lonely/rgb", "blind/rgb", "blind/depth"):
        (tmp_path / name).mkdir(parents=True)
    main = splitbrain_hha.main
    assert "no such folder; name one with rgb/, depth/" in refused(main, [*TINY, "--data", "none"])
    assert "no depth/ in it" in refused(main, [*TINY, "--data", "lonely"])
    assert "intrinsics.txt" in refused(main, [*TINY, "--data", "blind"])
    assert "use a multiple of 32" in refused(main, [*TINY, "--data", frames, "--size", "100"])
