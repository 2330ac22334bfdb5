"""Several rounds of mending on one photo: each mends the photo of the round before it, and can be drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kintsugi.apps.mend import paste
from kintsugi.apps.studio_photos import Photo, hole_of
from kintsugi.data.photos import to_tensor

KEPT = 8  # rounds that can be taken back; each keeps a photo in memory

MendPhoto = Callable[[Tensor, Tensor, int], Tensor]
"""Photo (3,H,W) in [0,1], mask (1,H,W), 1 = hole, and a seed -> the mended photo."""


@dataclass(frozen=True)
class Round:
    """One hole that was mended: the photo before and after, the hole (bool (H,W)) and the seed."""

    before: Image.Image
    hole: np.ndarray
    seed: int
    after: Image.Image


@dataclass(frozen=True)
class Session:
    """A photo and the rounds of mending, the first one first."""

    photo: Photo
    base: Image.Image
    """The photo before the first of the rounds that are kept."""
    rounds: tuple[Round, ...] = ()

    @property
    def current(self) -> Image.Image:
        """The photo as it is now, RGB or RGBA."""
        return self.rounds[-1].after if self.rounds else self.base

    @property
    def result(self) -> Photo:
        """The photo as it is now, with the transparency and the color profile of the original."""
        return self.photo.with_colors(self.current)


def next_round(session: Session, layers: Sequence[np.ndarray], mend: MendPhoto) -> Session:
    """Mends what is painted in the editor's layers, on the photo as it is now. Raises ValueError as ``hole_of``."""
    hole = hole_of(layers, session.photo.image.size)
    done = _round(session.current, hole, 0, mend)
    rounds = (*session.rounds, done)[-KEPT:]
    return replace(session, base=rounds[0].before, rounds=rounds)


def another(session: Session, mend: MendPhoto) -> Session:
    """Mends the hole of the last round again with the next seed. Raises ValueError if there was no round."""
    if not session.rounds:
        raise ValueError("Nothing is mended yet: paint over what should go, then press Mend")
    last = session.rounds[-1]
    return replace(session, rounds=(*session.rounds[:-1], _round(last.before, last.hole, last.seed + 1, mend)))


def undo(session: Session) -> Session:
    """The session before its last round. Raises ValueError if no round is left that is kept."""
    if not session.rounds:
        raise ValueError("There is no mend to undo")
    return replace(session, rounds=session.rounds[:-1])


def _round(before: Image.Image, hole: np.ndarray, seed: int, mend: MendPhoto) -> Round:
    mended = mend(to_tensor(before), torch.from_numpy(hole)[None].float(), seed)
    return Round(before, hole, seed, paste(before, mended, hole))
