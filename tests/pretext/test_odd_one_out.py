"""Odd-one-out: its sub-clips and their encodings, its figures and pictures."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.clip_cases import BATCHES, COUNT, build
from torch.nn.functional import avg_pool2d

from kintsugi.pictures import GREEN, RED
from kintsugi.pretext import odd_one_out
from kintsugi.pretext.video import centered
from kintsugi.rng import generator


def test_a_weaker_contrast_does_not_reveal_the_odd_one():
    """Differences of shuffled frames are weaker; equalizing gives the images of all sub-clips the same contrast."""
    wide = avg_pool2d(torch.rand(40, 3, 40, 60, generator=generator(2)), 9, stride=1)  # (40,3,32,52)
    clip = torch.stack([wide[..., t : t + 32] for t in range(6)], 1)  # it moves to the left, a pixel a frame
    clip = clip.repeat(1, 6, 1, 1, 1)  # (40,6 sub-clips * 6 frames,3,32,32)
    orders, odd = odd_one_out.draw_odd(40, 6, 6, generator(1))
    frames = odd_one_out.reordered(clip, orders)
    found = {}
    for even in (False, True):
        images = build("odd-one-out", even=even, length=6, within=6, window=9).encoded(frames)
        weakest = images.std((3, 4)).mean(2).argmin(1)
        found[even] = (weakest == odd).float().mean().item()
    assert found[False] > 0.9
    assert found[True] < 0.4


def test_subclips_are_drawn_in_order_within_their_range():
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
    found = odd_one_out.reordered(frames, orders)[..., 0, 0, 0]
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
    codes = torch.rand(2, 6, 5, generator=generator(0))
    expected = torch.zeros(2, 5)
    for i in range(6):
        for j in range(i + 1, 6):
            expected += codes[:, i] - codes[:, j]
    torch.testing.assert_close(odd_one_out.pair_differences(codes), expected)


def test_evaluation_is_deterministic_and_pictures_show_the_odd_one(monkeypatch: pytest.MonkeyPatch):
    method, batch = build("odd-one-out"), BATCHES["odd-one-out"]
    assert method.evaluate([batch]) == method.evaluate([batch])
    frames, _, odd = method.classified(batch)
    truth = centered(batch, method.config).unflatten(1, (6, -1))
    for n in range(len(frames)):
        same = [torch.equal(frames[n, k], truth[n, k]) for k in range(6)]
        assert same == [k != odd[n] for k in range(6)]
    logits = torch.nn.functional.one_hot(odd, 6).float()
    monkeypatch.setattr(method, "logits", lambda images: logits[: len(images)])
    assert method.evaluate([batch])["accuracy"] == 100
    (picture,) = method.show(batch).values()
    assert (picture == torch.tensor(GREEN).view(3, 1, 1)).all(0).any()
    assert not (picture == torch.tensor(RED).view(3, 1, 1)).all(0).any()
    monkeypatch.setattr(method, "logits", lambda images: logits[: len(images)].roll(1, 1))
    (picture,) = method.show(batch).values()
    for color in (torch.tensor(RED), odd_one_out.YELLOW):
        assert (picture == color.view(3, 1, 1)).all(0).any()


def test_the_baseline_of_pixel_distances():
    """If an edge moves in one direction, shuffled frames make a longer path between their ends, unless reversed."""
    image = torch.zeros(COUNT, 24, 3, 36, 40, dtype=torch.uint8)
    for frame in range(24):
        image[:, frame, :, :, : 8 + 6 * (frame % 4)] = 200
    method, batch = build("odd-one-out", even=False), {**BATCHES["odd-one-out"], "image": image}
    drawn = [odd_one_out.draw_odd(1, 6, 4, generator(0, n, 4)) for n in range(COUNT)]
    seen = [orders[0, odd[0]].tolist() != [3, 2, 1, 0] or odd[0] == 0 for orders, odd in drawn]
    assert method.baselines([batch])["pixel distances"]["accuracy"] == 100 * np.mean(seen)
