"""Shuffle and Learn and Odd-one-out: what each asks of its frames, what must not answer, and their commands."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clip_cases import BATCHES, COUNT, build
from helpers.command_line import Refused
from helpers.nested import tensors
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn.functional import avg_pool2d

from kintsugi.pictures import GREEN, RED
from kintsugi.pretext import frame_order, odd_one_out
from kintsugi.pretext.video import centered, view
from kintsugi.rng import generator
from kintsugi.train import checkpoint
from kintsugi.train.dist import World

MODULES = {"frame-order": frame_order, "odd-one-out": odd_one_out}
TINY = (
    "--encoder alexnet --size 32 --short-side 36 --batch 4 --steps 4 --log-every 1 --show-every 2 --eval-every 2 "
    "--save-every 2 --eval-images 6 --tuples 50 --dim 16 --device cpu"
).split()
EXTRA = {
    "frame-order": "--tau-max 3 --tau-min 1".split(),
    "odd-one-out": "--length 4 --within 5 --window 6 --encoding stack --fusion differences".split(),
}
WORLD = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of eight frames: a bright square that goes to the right over a field of color."""
    folder = tmp_path_factory.mktemp("clips")
    for clip in range(4):
        (folder / f"clip{clip}").mkdir()
        for frame in range(8):
            picture = np.full((40, 56, 3), (50 + 20 * clip, 90, 140 - 20 * clip), np.uint8)
            picture[10:22, 4 * frame : 4 * frame + 14] = (230, 200, 60 * clip)
            Image.fromarray(picture).save(folder / f"clip{clip}/{frame:03d}.png")
    return folder


@pytest.fixture(params=MODULES, scope="module")
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def start(method: str, data: Path | str, folder: Path, *more: str) -> None:
    MODULES[method].main([*TINY, *EXTRA[method], "--data", str(data), "--out", str(folder), *more])


@pytest.fixture(scope="module")
def whole(method: str, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    start(method, clips, folder)
    return folder


def test_a_resumed_run_ends_with_the_same_weights(method: str, whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "parts")
    (tmp_path / "parts/step-00000004.pt").unlink()
    MODULES[method].main(["--resume", "--out", str(tmp_path / "parts")])
    one, two = (tensors(checkpoint.load(checkpoint.find(run))["state"]) for run in (whole, tmp_path / "parts"))
    assert len(one) > 20
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    begun = tensors(checkpoint.load(whole / "step-00000002.pt")["state"])
    assert not all(torch.equal(a, b) for a, b in zip(one, begun, strict=True))


def test_what_a_run_leaves(method: str, whole: Path):
    tags = EventAccumulator(str(whole), size_guidance={"images": 0}).Reload().Tags()
    assert len(tags["images"]) == 1
    assert {"losses/cross_entropy", "training/accuracy/all", "held-out figures/accuracy"} <= set(tags["scalars"])
    rows = json.loads((whole / "quality.json").read_text())
    assert list(rows) == ["chance", "pixel distances", method]
    assert rows["chance"]["accuracy"] == pytest.approx(50 if method == "frame-order" else 100 / 6)
    assert 0 <= rows[method]["accuracy"] <= 100
    encoder = checkpoint.load_encoder(whole, "encoder")
    assert {stride: maps.shape[1] for stride, maps in encoder(torch.rand(2, 3, 64, 96)).items()} == encoder.channels


def test_the_built_in_clips_are_enough(method: str, tmp_path: Path):
    start(method, "scenes", tmp_path / "run", "--scenes", "3", "--frames", "6", "--steps", "1")
    assert (tmp_path / "run/step-00000001.pt").is_file()


@pytest.mark.parametrize(
    ("module", "args", "said"),
    [
        ("frame-order", ["--tau-max", "1"], "--tau-max must be at least 2, not 1"),
        ("frame-order", ["--tau-min", "0"], "--tau-min must be at least 1, not 0"),
        ("frame-order", ["--in-order", "1"], "--in-order must be in (0, 1), not 1"),
        ("frame-order", ["--smallest-crop", "0"], "--smallest-crop must be in [0.001, 1], not 0"),
        ("frame-order", ["--jitter", "2"], "--jitter must be in [0, 1], not 2"),
        ("frame-order", ["--size", "16"], "use at least 32"),
        ("frame-order", ["--every", "0"], "--every must be at least 1, not 0"),
        ("frame-order", ["--data", "nowhere"], "name a folder with a folder of frames or a video file"),
        ("odd-one-out", ["--subclips", "2"], "--subclips must be at least 3, not 2"),
        ("odd-one-out", ["--length", "2"], "--length must be at least 3, not 2"),
        ("odd-one-out", ["--within", "5", "--length", "6"], "--within 5 and --window 9 must not fall"),
        ("odd-one-out", ["--encoding", "stack", "--length", "5"], "use --length 4, not 5"),
        ("odd-one-out", ["--encoding", "flow"], "'flow'"),
    ],
)
def test_bad_settings_are_one_line(module: str, args: list[str | Path], said: str, refused: Refused):
    assert said in refused(MODULES[module].main, args)


def test_clips_that_are_too_short_are_one_line(method: str, clips: Path, refused: Refused):
    longer = ["--tau-max", "9", "--tau-min", "2"] if method == "frame-order" else ["--window", "14"]
    said = refused(MODULES[method].main, [*TINY, *EXTRA[method], "--data", str(clips), *longer])
    assert "0 of 4 clips have 14 frames, the longest has 8; two are needed" in said
    assert "use a smaller --tau-max" in said or "use a smaller --window" in said


def built(name: str, **settings: Any) -> Any:
    return build(name, WORLD, **settings)


@pytest.mark.parametrize("size", [32, 100])
@pytest.mark.parametrize("encoder", ["alexnet", "resnet18"])
def test_the_tower_keeps_the_places_of_things(encoder: str, size: int):
    tower = built("frame-order", encoder=encoder, size=size).tower.eval()
    image = torch.rand(1, 3, size, size, generator=generator(0))
    said, mirrored = tower(image), tower(image.flip(3))
    assert said.shape == (1, 16)
    assert not torch.allclose(said, mirrored, atol=1e-3)


# --- shortcuts ------------------------------------------------------------------------------------------------


def still(frames: int, brightness: list[float]) -> dict[str, Tensor]:
    """Clips in which nothing moves, but the brightness drifts."""
    picture = torch.randint(20, 200, (5, 1, 3, 40, 44), generator=generator(0))
    image = (picture * torch.tensor(brightness).view(1, frames, 1, 1, 1)).round().byte()
    return {"image": image, "extent": torch.tensor([[40, 44]]).repeat(5, 1), "index": torch.arange(5)}


def test_all_frames_of_a_tuple_are_cut_and_colored_alike():
    config = replace(frame_order.demo(), size=32, even=False)
    frames = view(still(5, [1.0] * 5), config, WORLD, 3)
    for k in range(1, 5):
        assert torch.allclose(frames[:, k], frames[:, 0], atol=1e-5)
    assert (frames[0, 0] - frames[1, 0]).abs().mean() > 0.02  # but each tuple by itself
    assert not torch.allclose(frames, view(still(5, [1.0] * 5), config, WORLD, 4), atol=0.02)


@pytest.mark.parametrize("way", ["train", "held out"])
def test_a_drifting_exposure_cannot_answer(way: str):
    """By its mean brightness each frame would be known; the defence leaves nothing, in training and in measuring."""
    batch = still(5, [0.9, 0.95, 1.0, 1.05, 1.1])
    guessed = {}
    for even in (False, True):
        config = replace(frame_order.demo(), size=32, even=even)
        frames = centered(batch, config) if way == "held out" else view(batch, config, WORLD, 3)
        orders, right = frame_order.draw_orders(5, 0.5, generator(1))
        seen = frame_order.chosen({"image": frames}, orders)["image"].mean((2, 3, 4))  # (5,3), all that is given
        between = (seen[:, 1] - seen[:, 0]) * (seen[:, 2] - seen[:, 1])
        guessed[even] = ((between > 0) == right) & (between.abs() > 1e-5)
        steps = (frames.mean((2, 3, 4)).diff(dim=1) / frames.mean()).abs()
        assert steps.max() < 2e-3 if even else steps.min() > 0.01
    assert guessed[False].all()


def test_first_and_last_frame_alone_say_nothing():
    """Which two frames stand at the ends is the same, in distribution, whether the three are in order or not."""
    orders, right = frame_order.draw_orders(40_000, 0.25, generator(0))
    ends = [Counter(map(tuple, orders[right == is_right][:, [0, 2]].tolist())) for is_right in (True, False)]
    for found in ends:
        assert set(found) == {(1, 3), (3, 1)}
        assert found[1, 3] / found.total() == pytest.approx(0.5, abs=0.02)


def test_a_weaker_contrast_cannot_answer():
    """Shuffled differences are weaker; the defence gives all sub-clips' images one contrast."""
    wide = avg_pool2d(torch.rand(40, 3, 40, 60, generator=generator(2)), 9, stride=1)  # (40,3,32,52)
    clip = torch.stack([wide[..., t : t + 32] for t in range(6)], 1)  # it moves to the left, a pixel a frame
    clip = clip.repeat(1, 6, 1, 1, 1)  # (40,6 sub-clips * 6 frames,3,32,32)
    orders, odd = odd_one_out.draw_odd(40, 6, 6, generator(1))
    frames = odd_one_out.shown(clip, orders)
    found = {}
    for even in (False, True):
        images = built("odd-one-out", even=even, length=6, within=6, window=9).encoded(frames)
        guess = images.std((3, 4)).mean(2).argmin(1)  # the weakest
        found[even] = (guess == odd).float().mean().item()
    assert found[False] > 0.9
    assert found[True] < 0.4


# --- Shuffle and Learn ----------------------------------------------------------------------------------------


def test_five_frames_are_all_that_fit_the_window():
    config = replace(frame_order.demo(), tau_max=4, tau_min=2)
    expected = {
        five
        for five in itertools.combinations(range(config.span), 5)
        if five[1] - five[0] == five[4] - five[3] == 2 and 2 <= five[3] - five[1] <= 4
    }
    found = {tuple(frame_order.draw_five(config, generator(0, i)).tolist()) for i in range(600)}
    assert found == expected


def test_orders_are_the_papers():
    orders, right = frame_order.draw_orders(40_000, 0.25, generator(0))
    found = Counter(zip(map(tuple, orders.tolist()), right.tolist(), strict=True))
    a, b, c, d, e = range(5)
    expected = {
        ((b, c, d), True): 1 / 8,
        ((d, c, b), True): 1 / 8,
        ((b, a, d), False): 3 / 16,
        ((d, a, b), False): 3 / 16,
        ((b, e, d), False): 3 / 16,
        ((d, e, b), False): 3 / 16,
    }
    assert found.keys() == expected.keys()
    for key, share in expected.items():
        assert found[key] / 40_000 == pytest.approx(share, abs=0.01)


def test_the_measure_is_balanced_and_the_same_at_every_call(monkeypatch: pytest.MonkeyPatch):
    method, batch = built("frame-order", even=False), BATCHES["frame-order"]
    assert method.evaluate([batch]) == method.evaluate([batch])
    frames, _, right = method.verdicts(batch)
    assert right.tolist() == [[True, False]] * len(frames)
    five = centered(batch, method.config)
    for n in range(len(frames)):
        middle = five[n, 0 if n % 2 == 0 else 4]
        for which, between in enumerate((five[n, 2], middle)):
            three = [five[n, 1], between, five[n, 3]]
            expected = torch.stack(three if n // 2 % 2 == 0 else three[::-1])
            assert torch.equal(frames[n, which], expected)
    # A net that always says the same is right half of the time; one that knows, always.
    for said, figures in ((-1.0, (50, 0, 100)), (1.0, (50, 100, 0))):
        monkeypatch.setattr(method, "logits", lambda frames, said=said: torch.full((len(frames),), said - 1.0986))
        assert tuple(method.evaluate([batch]).values()) == figures
    monkeypatch.setattr(method, "logits", lambda frames: torch.tensor([9.0, -9.0]).repeat(len(frames) // 2))
    assert method.evaluate([batch])["accuracy"] == 100


def test_the_rule_of_pixel_distances():
    """Where an edge moves one way, the ends of what is in order differ most."""
    image = torch.zeros(2, 5, 3, 36, 40, dtype=torch.uint8)
    for frame in range(5):
        image[:, frame, :, :, : 4 + 6 * frame] = 200
    batch = {**BATCHES["frame-order"], "image": image, "extent": torch.tensor([[36, 40]] * 2), "index": torch.arange(2)}
    assert built("frame-order", even=False).baselines([batch])["pixel distances"]["accuracy"] == 100
    batch["image"] = image[:, [2, 1, 0, 3, 4]]  # c is where a was: neither is between
    found = built("frame-order", even=False).baselines([batch])["pixel distances"]
    assert (found["in_order"], found["shuffled"]) == (0, 50)


def test_distances_are_those_of_each_pair(monkeypatch: pytest.MonkeyPatch):
    method, given = built("frame-order", fusion="distances"), []
    said = torch.rand(2, 3, 16, generator=generator(0))
    monkeypatch.setattr(method.tower, "forward", lambda images: said.flatten(0, 1))
    method.head.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    method.logits(torch.zeros(2, 3, 3, 32, 32))
    first, middle, last = said.unbind(1)
    expected = torch.cat([(first - middle).abs(), (middle - last).abs(), (last - first).abs()], 1)
    torch.testing.assert_close(given[0], expected)


def test_pictures_show_the_verdict(monkeypatch: pytest.MonkeyPatch):
    method, batch = built("frame-order"), BATCHES["frame-order"]
    monkeypatch.setattr(method, "logits", lambda frames: torch.full((len(frames),), 9.0))
    (picture,) = method.show(batch).values()
    middle = 4 + 2 * (3 + 16)  # of the first row, below the margin and the border
    assert torch.allclose(picture[:, middle, 4], torch.tensor(GREEN))  # in order, as the net says
    assert torch.allclose(picture[:, middle, -5], torch.tensor(RED))
    bar = picture[:, 4 + 2 * (3 + 31), 4 + 2 * (3 + 16)]
    assert torch.equal(bar, torch.ones(3))  # the net says: in order


# --- Odd-one-out ----------------------------------------------------------------------------------------------


def test_subclips_are_drawn_in_order_within_their_part():
    config = replace(odd_one_out.demo(), subclips=3, length=3, within=4, window=6)
    drawn = torch.stack([odd_one_out.draw_subclips(config, generator(0, i)).view(3, 3) for i in range(500)])
    found = set(map(tuple, drawn.flatten(0, 1).tolist()))
    assert found == {three for three in itertools.combinations(range(6), 3) if three[2] - three[0] < 4}


def test_the_odd_one_is_any_wrong_order_anywhere():
    orders, odd = odd_one_out.draw_odd(30_000, 4, 3, generator(0))
    found: Counter[tuple[int, ...]] = Counter()
    for question, which in zip(orders[:2000].tolist(), odd[:2000].tolist(), strict=True):
        assert [order == [0, 1, 2] for order in question] == [number != which for number in range(4)]
    found.update(map(tuple, orders[torch.arange(30_000), odd].tolist()))
    assert len(found) == 5
    assert all(count / 30_000 == pytest.approx(1 / 5, abs=0.01) for count in found.values())
    assert np.allclose(odd.bincount() / 30_000, 1 / 4, atol=0.01)


def test_frames_are_shown_in_the_order_drawn():
    frames = torch.arange(2 * 6).view(2, 6, 1, 1, 1).expand(2, 6, 3, 2, 2)
    orders = torch.tensor([[[2, 0, 1], [0, 1, 2]], [[0, 1, 2], [1, 0, 2]]])
    found = odd_one_out.shown(frames, orders)[..., 0, 0, 0]
    assert found.tolist() == [[[2, 0, 1], [3, 4, 5]], [[6, 7, 8], [10, 9, 11]]]


def test_a_sum_of_differences_is_a_dynamic_image():
    clip = torch.rand(2, 6, 3, 4, 5, generator=generator(0)) * 0.2
    found = odd_one_out.encode(clip, "sum")
    weights = [t * (6 - t) for t in range(1, 6)]
    for n in range(2):
        expected = torch.zeros(3, 4, 5)
        dynamic = torch.zeros(3, 4, 5)
        for t in range(1, 6):
            expected += weights[t - 1] / (sum(weights) / 5) * (clip[n, t] - clip[n, t - 1])
        for t in range(1, 7):
            dynamic += (2 * t - 6 - 1) * clip[n, t - 1]
        torch.testing.assert_close(found[n], 0.5 + expected / 2)
        torch.testing.assert_close(expected * sum(weights) / 5, dynamic, atol=1e-5, rtol=0)
    extreme = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 4, 1, 1, 1).expand(1, 4, 3, 2, 2)
    assert odd_one_out.encode(extreme, "sum").amax() <= 1


def test_a_stack_holds_the_gray_differences():
    clip = torch.rand(2, 4, 3, 4, 5, generator=generator(0))
    found = odd_one_out.encode(clip, "stack")
    assert found.shape == (2, 3, 4, 5)
    for n in range(2):
        for t in range(3):
            gray = [0.299 * f[0] + 0.587 * f[1] + 0.114 * f[2] for f in clip[n]]
            torch.testing.assert_close(found[n, t], 0.5 + (gray[t + 1] - gray[t]) / 2)


def test_pair_differences_equal_a_loop():
    said = torch.rand(2, 6, 5, generator=generator(0))
    expected = torch.zeros(2, 5)
    for i in range(6):
        for j in range(i + 1, 6):
            expected += said[:, i] - said[:, j]
    torch.testing.assert_close(odd_one_out.pair_differences(said), expected)


def test_questions_stay_the_same_and_the_odd_one_is_seen(monkeypatch: pytest.MonkeyPatch):
    method, batch = built("odd-one-out"), BATCHES["odd-one-out"]
    assert method.evaluate([batch]) == method.evaluate([batch])
    frames, _, odd = method.answers(batch)
    truth = centered(batch, method.config).unflatten(1, (6, -1))
    for n in range(len(frames)):
        same = [torch.equal(frames[n, k], truth[n, k]) for k in range(6)]
        assert same == [k != odd[n] for k in range(6)]
    answers = torch.nn.functional.one_hot(odd, 6).float()
    monkeypatch.setattr(method, "logits", lambda images: answers[: len(images)])
    assert method.evaluate([batch])["accuracy"] == 100
    (picture,) = method.show(batch).values()
    assert (picture == torch.tensor(GREEN).view(3, 1, 1)).all(0).any()
    assert not (picture == torch.tensor(RED).view(3, 1, 1)).all(0).any()
    monkeypatch.setattr(method, "logits", lambda images: answers[: len(images)].roll(1, 1))
    (picture,) = method.show(batch).values()
    for color in (torch.tensor(RED), odd_one_out.YELLOW):
        assert (picture == color.view(3, 1, 1)).all(0).any()


def test_the_rule_of_detours():
    """Where an edge moves one way, a path through shuffled frames is longer than its ends are apart, but backwards."""
    image = torch.zeros(COUNT, 24, 3, 36, 40, dtype=torch.uint8)
    for frame in range(24):
        image[:, frame, :, :, : 8 + 6 * (frame % 4)] = 200
    method, batch = built("odd-one-out", even=False), {**BATCHES["odd-one-out"], "image": image}
    drawn = [odd_one_out.draw_odd(1, 6, 4, generator(0, n, 4)) for n in range(COUNT)]
    seen = [orders[0, odd[0]].tolist() != [3, 2, 1, 0] or odd[0] == 0 for orders, odd in drawn]
    assert method.baselines([batch])["pixel distances"]["accuracy"] == 100 * np.mean(seen)


def test_each_command_says_what_it_can_do(method: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        MODULES[method].main(["--help"])
    assert stop.value.code in (0, None)
    assert "--smallest-crop" in capsys.readouterr().out
    for preset in (MODULES[method].demo, MODULES[method].small, MODULES[method].paper):
        assert preset().preset == preset.__name__
