"""Tuples of frames, from which methods learn the order of time. More are drawn where things move.

First a window of consecutive frames of a clip is drawn, with a probability proportional to the motion in it. Then the
method draws its frames within the window.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kintsugi.data.clips import Clips, open_clip_folder, open_scene_clips
from kintsugi.data.opener import Opener
from kintsugi.data.store import Store
from kintsugi.rng import generator

HELDOUT = 0.2
"""Fraction of the clips that is held out. It is larger than for images, because there are fewer clips."""
_TRAIN, _HELDOUT = 5, 6  # parts of the random keys, so that both sets draw different tuples

Draw = Callable[[torch.Generator], Tensor]
"""Draws the frames of one tuple: their positions within the window, int64 (K,) in 0..span-1."""


class Tuples:
    """``count`` tuples of frames of ``clips``, in a fixed order. Tuple i is a function of (*key, i) alone.

    Each lies in a window of ``span`` frames, which is drawn with a probability proportional to the mean motion in it
    (Misra 2016, section 3.1). Deviation: motion is measured by differences of frames, which are cheap, instead of
    optical flow.
    """

    def __init__(self, clips: Clips, span: int, draw: Draw, count: int, *key: int) -> None:
        self.clips, self.draw, self.count, self.key = clips, draw, count, key
        self.starts = torch.cat(
            [  # row of each window's first frame
                torch.arange(first, first + length - span + 1)
                for first, length in zip(clips.firsts.tolist(), clips.lengths.tolist(), strict=True)
            ]
        )
        total = torch.cat([torch.zeros(1, dtype=torch.float64), clips.motion.double().cumsum(0)])
        inside = total[self.starts + span] - total[self.starts + 1]  # the first frame's is to a frame outside
        self.weights = (inside / (span - 1)).clamp(min=0)
        if self.weights.sum() == 0:  # nothing ever moves
            self.weights = torch.ones_like(self.weights)
        self.bounds = self.weights.cumsum(0)

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The tuples at ``indices`` (n,), on the CPU, as a dictionary:

        - image: uint8 (n,K,3,H,W) sRGB, padded with 0 on the right and below to the batch's largest.
        - extent: int64 (n,2), the height and width, px, that all frames of a tuple have at least.
        - frame: int64 (n,K), the row of each frame in ``clips.images``.
        - index: int64 (n,), ``indices``.
        """
        rows = torch.stack([self._rows(index) for index in indices.tolist()])  # (n,K)
        read = self.clips.images.batch(rows.flatten())
        shape = rows.shape
        extent = read["extent"].unflatten(0, shape).amin(1)
        return {"image": read["image"].unflatten(0, shape), "extent": extent, "frame": rows, "index": indices}

    def _rows(self, index: int) -> Tensor:
        """Draws tuple ``index``: the rows of its K frames, int64 (K,)."""
        random = generator(*self.key, index)
        place = self.bounds[-1] * torch.rand((), generator=random, dtype=torch.float64)
        window = int(torch.searchsorted(self.bounds, place, right=True).clamp(max=len(self.starts) - 1))
        return self.starts[window] + self.draw(random)


@dataclass(frozen=True)
class TupleSplit:
    """Tuples for training and held-out tuples. They are of different clips."""

    train: Tuples
    heldout: Tuples


def open_tuples(
    spec: str,
    size: int,
    span: int,
    draw: Draw,
    store: Store = Store(),
    *,
    shorter: str,
    count: int,
    seed: int = 0,
    frames: int = 16,
    every: int = 1,
    scenes: int = 4096,
) -> TupleSplit:
    """Opens the clips that ``spec`` names, and draws tuples of frames from windows of ``span`` frames.

    spec: ``scenes`` (``scenes`` clips of ``frames`` moments each) or a folder of clips (``clips.open_clip_folder``), of
    which every ``every``-th frame is used. size, store: as in ``images.open_images``. draw: draws the frames of a tuple
    within a window. count: number of tuples for training, and as many held-out ones.

    A fifth of the clips is held out, at least one: those whose names have the lowest SHA-256. Clips of fewer than
    ``span`` frames are skipped and reported.

    Raises ValueError with one line if fewer than two clips are left. shorter: the end of that message, which tells the
    user how to get shorter windows.
    """
    opener = Opener(spec, size, store)
    clips = open_scene_clips(opener, scenes, frames) if spec == "scenes" else open_clip_folder(opener, every)
    long = clips.lengths >= span
    if long.sum() < 2:
        raise ValueError(
            f"--data {spec}: {int(long.sum())} of {len(clips)} clips have {span} frames, the longest has "
            f"{int(clips.lengths.max())}; two are needed, because whole clips are held out: {shorter}"
        )
    if not long.all():
        short = [repr(clips.names[clip]) for clip in (~long).nonzero()[:, 0].tolist()]
        store.report_skipped(spec, short, len(clips), f"clips, of fewer than {span} frames")
    train, heldout = _held_out(clips.subset(long.nonzero()[:, 0]))
    # The held-out tuples are the same for all seeds.
    return TupleSplit(Tuples(train, span, draw, count, seed, _TRAIN), Tuples(heldout, span, draw, count, 0, _HELDOUT))


def _held_out(clips: Clips) -> tuple[Clips, Clips]:
    """Splits clips into those for training and held-out ones."""
    order = sorted(range(len(clips)), key=lambda clip: hashlib.sha256(os.fsencode(clips.names[clip])).digest())
    count = max(1, round(HELDOUT * len(order)))
    return clips.subset(torch.tensor(sorted(order[count:]))), clips.subset(torch.tensor(sorted(order[:count])))


def equalize_exposure(frames: Tensor, limit: float = 2.0) -> Tensor:
    """Gives the K frames of a tuple the same mean and standard deviation in each color channel.

    Frames (n,K,3,H,W) in [0,1] -> the same shape and range; values outside it are clipped. The common mean and
    deviation are the averages over the K frames. So a camera's exposure and white balance, which drift along a clip, do
    not reveal the order of time. Deviations change by at most a factor of ``limit``, so that a blank frame stays blank.
    """
    mean, deviation = frames.mean((3, 4), keepdim=True), frames.std((3, 4), keepdim=True)
    ratio = deviation.mean(1, keepdim=True) / deviation.clamp(min=1e-6)
    return ((frames - mean) * ratio.clamp(1 / limit, limit) + mean.mean(1, keepdim=True)).clamp(0, 1)
