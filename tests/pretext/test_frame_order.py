"""Shuffle and Learn: its tuples of frames, which exposure must not reveal, its figures and its pictures."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers.clip_cases import BATCHES, WORLD, build, still

from kintsugi.pictures import GREEN, RED
from kintsugi.pretext import frame_order
from kintsugi.pretext.video import centered, view
from kintsugi.rng import generator


@pytest.mark.parametrize("way", ["train", "held out"])
def test_a_drifting_exposure_does_not_reveal_the_order(way: str):
    """Mean brightness would order the frames; after equalizing nothing is left, in training and in evaluation."""
    batch = still(5, [0.9, 0.95, 1.0, 1.05, 1.1])
    hits = {}
    for even in (False, True):
        config = replace(frame_order.demo(), size=32, even=even)
        frames = centered(batch, config) if way == "held out" else view(batch, config, WORLD, 3)
        orders, ordered = frame_order.draw_orders(5, 0.5, generator(1))
        seen = frame_order.chosen({"image": frames}, orders)["image"].mean((2, 3, 4))  # (5,3), all that the rule sees
        between = (seen[:, 1] - seen[:, 0]) * (seen[:, 2] - seen[:, 1])
        hits[even] = ((between > 0) == ordered) & (between.abs() > 1e-5)
        steps = (frames.mean((2, 3, 4)).diff(dim=1) / frames.mean()).abs()
        assert steps.max() < 2e-3 if even else steps.min() > 0.01
    assert hits[False].all()


def test_first_and_last_frame_alone_reveal_nothing():
    """The two frames at the ends have the same distribution for tuples in order and for others."""
    orders, right = frame_order.draw_orders(40_000, 0.25, generator(0))
    ends = [Counter(map(tuple, orders[right == is_right][:, [0, 2]].tolist())) for is_right in (True, False)]
    for found in ends:
        assert set(found) == {(1, 3), (3, 1)}
        assert found[1, 3] / found.total() == pytest.approx(0.5, abs=0.02)


def test_all_tuples_of_five_frames_that_fit_the_window_are_drawn():
    config = replace(frame_order.demo(), tau_max=4, tau_min=2)
    expected = {
        five
        for five in itertools.combinations(range(config.span), 5)
        if five[1] - five[0] == five[4] - five[3] == 2 and 2 <= five[3] - five[1] <= 4
    }
    found = {tuple(frame_order.draw_five(config, generator(0, i)).tolist()) for i in range(600)}
    assert found == expected


def test_the_frequencies_of_orders_equal_the_papers():
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


def test_evaluation_is_balanced_and_the_same_at_every_call(monkeypatch: pytest.MonkeyPatch):
    method, batch = build("frame-order", even=False), BATCHES["frame-order"]
    assert method.evaluate([batch]) == method.evaluate([batch])
    frames, _, ordered = method.classified(batch)
    assert ordered.tolist() == [[True, False]] * len(frames)
    five = centered(batch, method.config)
    for n in range(len(frames)):
        middle = five[n, 0 if n % 2 == 0 else 4]
        for which, between in enumerate((five[n, 2], middle)):
            three = [five[n, 1], between, five[n, 3]]
            expected = torch.stack(three if n // 2 % 2 == 0 else three[::-1])
            assert torch.equal(frames[n, which], expected)
    # Always predicting the same class is right half of the time; perfect logits are right always.
    for offset, figures in ((-1.0, (50, 0, 100)), (1.0, (50, 100, 0))):
        monkeypatch.setattr(method, "logits", lambda frames, x=offset: torch.full((len(frames),), x - 1.0986))
        assert tuple(method.evaluate([batch]).values()) == figures
    monkeypatch.setattr(method, "logits", lambda frames: torch.tensor([9.0, -9.0]).repeat(len(frames) // 2))
    assert method.evaluate([batch])["accuracy"] == 100


def test_the_baseline_of_pixel_distances():
    """If an edge moves in one direction, the first and last frame in order differ most."""
    image = torch.zeros(2, 5, 3, 36, 40, dtype=torch.uint8)
    for frame in range(5):
        image[:, frame, :, :, : 4 + 6 * frame] = 200
    batch = {**BATCHES["frame-order"], "image": image, "extent": torch.tensor([[36, 40]] * 2), "index": torch.arange(2)}
    assert build("frame-order", even=False).baselines([batch])["pixel distances"]["accuracy"] == 100
    batch["image"] = image[:, [2, 1, 0, 3, 4]]  # a and c are exchanged, which misleads the rule
    found = build("frame-order", even=False).baselines([batch])["pixel distances"]
    assert (found["in_order"], found["shuffled"]) == (0, 50)


def test_distances_are_those_of_each_pair(monkeypatch: pytest.MonkeyPatch):
    method, inputs = build("frame-order", fusion="distances"), []
    codes = torch.rand(2, 3, 16, generator=generator(0))
    monkeypatch.setattr(method.tower, "forward", lambda images: codes.flatten(0, 1))
    method.head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    method.logits(torch.zeros(2, 3, 3, 32, 32))
    first, middle, last = codes.unbind(1)
    expected = torch.cat([(first - middle).abs(), (middle - last).abs(), (last - first).abs()], 1)
    torch.testing.assert_close(inputs[0], expected)


def test_pictures_show_the_predictions(monkeypatch: pytest.MonkeyPatch):
    method, batch = build("frame-order"), BATCHES["frame-order"]
    monkeypatch.setattr(method, "logits", lambda frames: torch.full((len(frames),), 9.0))
    (picture,) = method.show(batch).values()
    middle = 4 + 2 * (3 + 16)  # of the first row, below the margin and the border
    assert torch.allclose(picture[:, middle, 4], torch.tensor(GREEN))  # in order, as predicted
    assert torch.allclose(picture[:, middle, -5], torch.tensor(RED))
    bar = picture[:, 4 + 2 * (3 + 31), 4 + 2 * (3 + 16)]
    assert torch.equal(bar, torch.ones(3))  # white: predicted in order
