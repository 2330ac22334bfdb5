"""Rounds of mending in the page: each continues from the one before, can be drawn anew and be undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kintsugi.apps.studio_mend import KEPT, Session, another, next_round, undo
from kintsugi.apps.studio_photos import Photo


def start(mode: str = "RGB") -> Session:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, len(mode)), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return Session(Photo(image, "photo"), image)


def stroke(row: int) -> list[np.ndarray]:
    painted = np.zeros((20, 30, 4), dtype=np.uint8)
    painted[row : row + 2, 4:20] = 255
    return [painted]


def flat(image: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Mends with one gray that depends on the seed, and also changes the photo outside the hole."""
    return torch.full_like(image, (100 + seed) / 255)


def pixels(session: Session) -> np.ndarray:
    return np.asarray(session.current.convert("RGB")).astype(int)


def test_a_round_changes_only_what_is_painted():
    session = start()
    after = next_round(session, stroke(3), flat)
    changed = (pixels(after) != pixels(session)).any(2)
    assert changed[3:5, 4:20].all()
    assert changed.sum() == 32


def test_the_next_round_starts_from_the_mended_photo():
    received = []

    def mend(image: Tensor, mask: Tensor, seed: int) -> Tensor:
        received.append(image)
        return flat(image, mask, seed)

    session = next_round(next_round(start(), stroke(3), mend), stroke(10), mend)
    assert (received[1][:, 3:5, 4:20] * 255).round().unique().tolist() == [100]
    assert (pixels(session)[3:5, 4:20] == 100).all()
    assert (pixels(session)[10:12, 4:20] == 100).all()


def test_the_mask_is_that_of_the_photo_and_holds_only_0_and_1():
    masks = []

    def mend(image: Tensor, mask: Tensor, seed: int) -> Tensor:
        masks.append(mask)
        return image

    next_round(start(), stroke(3), mend)
    assert masks[0].shape == (1, 20, 30)
    assert masks[0].sum() == 32
    assert masks[0].unique().tolist() == [0, 1]


def test_another_draws_the_same_hole_with_the_next_seed_from_the_same_photo():
    session = next_round(start(), stroke(3), flat)
    second = another(session, flat)
    third = another(second, flat)
    assert [(s.rounds[-1].seed, len(s.rounds)) for s in (session, second, third)] == [(0, 1), (1, 1), (2, 1)]
    assert (pixels(third)[3:5, 4:20] == 102).all()
    assert third.rounds[-1].before is session.rounds[-1].before


def test_a_new_round_starts_with_the_first_seed_again():
    session = another(next_round(start(), stroke(3), flat), flat)
    assert next_round(session, stroke(10), flat).rounds[-1].seed == 0


def test_undo_takes_back_round_after_round():
    first = start()
    one = next_round(first, stroke(3), flat)
    two = next_round(one, stroke(10), flat)
    assert (pixels(undo(two)) == pixels(one)).all()
    assert (pixels(undo(undo(two))) == pixels(first)).all()
    with pytest.raises(ValueError, match="no mend to undo"):
        undo(first)
    with pytest.raises(ValueError, match="Nothing is mended yet"):
        another(first, flat)


def test_only_the_last_rounds_are_kept_and_undo_stops_there():
    session = start()
    states = [session]
    for row in range(KEPT + 3):
        session = next_round(session, stroke(row), flat)
        states.append(session)
    for back in range(KEPT):
        assert (pixels(session) == pixels(states[-1 - back])).all()
        session = undo(session)
    assert (pixels(session) == pixels(states[3])).all()
    with pytest.raises(ValueError, match="no mend to undo"):
        undo(session)


def test_the_result_keeps_the_photos_transparency():
    session = next_round(start("RGBA"), stroke(3), flat)
    result = session.result.image
    assert result.mode == "RGBA"
    assert (np.asarray(result)[..., 3] == np.asarray(session.photo.image)[..., 3]).all()
