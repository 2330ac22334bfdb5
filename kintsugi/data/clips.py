"""Clips to learn order from: folders of frames, video files, the built-in scenes' own; frames drawn where things move.

Frames are decoded once into the cache, as images are (``kintsugi.data.images``), so memory holds only the batches. What
a method is given of a clip is a tuple of frames: a window is drawn with a probability that goes by its motion, and in
it the frames, as the method wants them.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import SUFFIXES, decode, reason, stored
from kintsugi.data.images import Images, Opener, pool, walk
from kintsugi.rng import generator

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEOS = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"))
HELDOUT = 0.2  # part of the clips that training never sees: clips are few, and one alone would say little
_TRAIN, _HELDOUT = 5, 6  # what random numbers are for
_MOTION = 24  # px, to which frames are averaged before they are compared: noise is no motion
_NAMED = "name a folder with a folder of frames or a video file for each clip, or scenes"

Draw = Callable[[torch.Generator], Tensor]
"""Draws the frames of one tuple: numbers below the window's length, int64 (K,)."""


@dataclass(frozen=True)
class Clips:
    """Frames of clips, in order: clip c has the ``lengths[c]`` rows of ``images`` from ``firsts[c]`` on.

    ``motion`` (rows,) float: how much each frame differs from the one before it, in [0,1]; 0 for a clip's first.
    """

    images: Images
    motion: Tensor
    firsts: Tensor
    lengths: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, chosen: Tensor) -> Clips:
        return Clips(
            self.images,
            self.motion,
            self.firsts[chosen],
            self.lengths[chosen],
            [self.names[clip] for clip in chosen.tolist()],
        )


class Tuples:
    """``count`` tuples of frames of ``clips``, in a fixed order. Tuple i is a function of (*key, i) alone.

    Each lies in a window of ``span`` frames, drawn with a probability proportional to the mean motion in it (Misra
    2016, section 3.1; there by optical flow, here by differences of frames, which cost nothing).
    """

    def __init__(self, clips: Clips, span: int, draw: Draw, count: int, *key: int) -> None:
        self.clips, self.draw, self.count, self.key = clips, draw, count, key
        self.starts = torch.cat(
            [  # row of each window's first frame
                torch.arange(first, first + length - span + 1)
                for first, length in zip(clips.firsts.tolist(), clips.lengths.tolist(), strict=True)
            ]
        )
        moved = torch.cat([torch.zeros(1, dtype=torch.float64), clips.motion.double().cumsum(0)])
        inside = moved[self.starts + span] - moved[self.starts + 1]  # the first's is to a frame outside
        self.weights = (inside / (span - 1)).clamp(min=0)
        if self.weights.sum() == 0:  # nothing ever moves
            self.weights = torch.ones_like(self.weights)
        self.bounds = self.weights.cumsum(0)

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The tuples at ``indices`` (n,), on the CPU:

        image uint8 (n,K,3,H,W) sRGB, padded with 0 right and below to the batch's largest; extent int64 (n,2), height
        and width that all frames of a tuple have; frame int64 (n,K), their rows among all frames; index int64 (n,).
        """
        rows = torch.stack([self._rows(index) for index in indices.tolist()])  # (n,K)
        read = self.clips.images.batch(rows.flatten())
        shape = rows.shape
        extent = read["extent"].unflatten(0, shape).amin(1)
        return {"image": read["image"].unflatten(0, shape), "extent": extent, "frame": rows, "index": indices}

    def _rows(self, index: int) -> Tensor:
        random = generator(*self.key, index)
        place = self.bounds[-1] * torch.rand((), generator=random, dtype=torch.float64)
        window = int(torch.searchsorted(self.bounds, place, right=True).clamp(max=len(self.starts) - 1))
        return self.starts[window] + self.draw(random)


@dataclass(frozen=True)
class TupleSplit:
    """Clips are held out whole."""

    train: Tuples
    heldout: Tuples


def open_tuples(
    spec: str,
    size: int,
    span: int,
    draw: Draw,
    *,
    shorter: str,
    count: int,
    seed: int = 0,
    frames: int = 16,
    every: int = 1,
    short_side: int = 0,
    scenes: int = 4096,
    cache_dir: Path | None = None,
    cache_gb: float = 8.0,
    device: str = "cpu",
    quiet: bool = False,
) -> TupleSplit:
    """Tuples of frames, ``draw``-n from windows of ``span`` frames of the clips that ``spec`` names.

    spec: ``scenes`` (that many clips of ``frames`` moments each) or a folder; in it, or in its folder frames/, each
    subfolder of images is a clip, its frames in the order of their names, and each video file. Of those every
    ``every``-th frame is used. Sizes, cache and what cannot be read: as in ``kintsugi.data.images.open_images``.

    ``count`` tuples for training, and as many of the held-out clips: a fifth, at least one, those whose names have the
    lowest SHA-256. Clips of fewer than ``span`` frames are skipped, counted and named.

    Raises ValueError of one line where fewer than two clips are left; ``shorter`` says how to ask for shorter ones.
    """
    opener = Opener.of(spec, size, short_side, cache_dir, cache_gb, quiet)
    clips = _scenes(opener, scenes, frames, device) if spec == "scenes" else _folder(opener, every)
    long = clips.lengths >= span
    if long.sum() < 2:
        raise ValueError(
            f"--data {spec}: {int(long.sum())} of {len(clips)} clips have {span} frames, the longest has "
            f"{int(clips.lengths.max())}; two are needed, because whole clips are held out: {shorter}"
        )
    if not long.all() and not quiet:
        short = [clips.names[clip] for clip in (~long).nonzero()[:, 0].tolist()]
        more = ", ..." if len(short) > 3 else ""
        print(
            f"{spec}: skipped {len(short)} of {len(clips)} clips, of fewer than {span} frames: "
            f"{', '.join(map(repr, short[:3]))}{more}",
            file=sys.stderr,
        )
    clips = clips.subset(long.nonzero()[:, 0])
    order = sorted(range(len(clips)), key=lambda clip: hashlib.sha256(os.fsencode(clips.names[clip])).digest())
    first = max(1, round(HELDOUT * len(order)))
    parts = (sorted(order[first:]), sorted(order[:first]))
    train, heldout = (clips.subset(torch.tensor(part)) for part in parts)
    # Measured are the same tuples, whatever the seed.
    return TupleSplit(Tuples(train, span, draw, count, seed, _TRAIN), Tuples(heldout, span, draw, count, 0, _HELDOUT))


def even(frames: Tensor, most: float = 2.0) -> Tensor:
    """Frames (n,K,3,H,W) in [0,1], each with the mean and the deviation, in each color channel, that the K have on
    average: so a camera's exposure and white balance, which drift along a clip, do not tell the order.

    Deviations change by a factor of ``most`` at most, either way: a blank frame stays blank. What leaves [0,1] is
    clipped.
    """
    mean, deviation = frames.mean((3, 4), keepdim=True), frames.std((3, 4), keepdim=True)
    ratio = deviation.mean(1, keepdim=True) / deviation.clamp(min=1e-6)
    return ((frames - mean) * ratio.clamp(1 / most, most) + mean.mean(1, keepdim=True)).clamp(0, 1)


# --- what there is to read ------------------------------------------------------------------------------------


def _scenes(opener: Opener, count: int, frames: int, device: str) -> Clips:
    from kintsugi.scenes import rendering  # here, because only those who use them pay for the import

    def read(rows: Sequence[int]) -> list[Pixels]:
        wanted = torch.tensor(rows)
        rooms, places = (wanted // frames).unique(return_inverse=True)
        rendered = rendering.render_clip(0, rooms, opener.short_side, frames, device)["image"]  # (n,T,3,S,S)
        return list((255 * rendered[places, wanted % frames]).round().byte().cpu().numpy())

    names = [os.path.join(f"scene-{i}", f"{moment:03d}") for i in range(count) for moment in range(frames)]
    code = [hashlib.sha256(file.read_bytes()).hexdigest() for file in rendering.SOURCE_FILES]
    source = Source(names, read, chunk=frames * max(1, 64 // frames))
    return _clips(opener, "scene-clips", [count, frames, code], lambda: source, "rendering")


def _folder(opener: Opener, every: int) -> Clips:
    root = Path(opener.spec).expanduser()
    if not root.is_dir():
        raise ValueError(f"--data {opener.spec}: no such folder; {_NAMED}")
    root = root / "frames" if (root / "frames").is_dir() else root
    found = sorted(walk(root, SUFFIXES | VIDEOS), key=lambda entry: _natural(entry[0]))
    videos = [entry for entry in found if _is_video(entry[0])]
    pictures = [entry for entry in found if not _is_video(entry[0]) and os.path.dirname(entry[0])]
    if not videos and not pictures:
        raise ValueError(f"--data {opener.spec}: no clips in this folder; {_NAMED}")
    if videos and pictures:
        raise ValueError(
            f"--data {opener.spec}: it holds folders of frames ({os.path.dirname(pictures[0][0])!r}) and videos "
            f"({videos[0][0]!r}); put them into two folders and name one"
        )
    key = [str(root.resolve()), every, videos or pictures]
    if videos:
        _require_av(opener.spec)
        make = partial(_video_source, root, [name for name, _, _ in videos], every, opener.short_side)
        return _clips(opener, root.resolve().name, key, make, must_fit=True)
    folders: dict[str, list[str]] = {}
    for name, _, _ in pictures:
        folders.setdefault(os.path.dirname(name), []).append(name)
    names = [name for frames in folders.values() for name in frames[::every]]

    def read(rows: Sequence[int]) -> list[Pixels]:
        files = (root / names[row] for row in rows)
        return list(pool().map(partial(decode, short_side=opener.short_side), files))

    return _clips(opener, root.resolve().name, key, lambda: Source(names, read))


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEOS


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame9 before frame10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _clips(
    opener: Opener, name: str, key: object, make: Callable[[], Source], doing: str = "decoding", must_fit: bool = False
) -> Clips:
    """The set of ``make()`` (``Opener.open``), its frames' motion measured once and kept beside it.

    must_fit: into the cache; for what is not to be decoded at each use.
    """
    place = opener.place(name, ["clips", key])
    images = opener.open(name, ["clips", key], make, doing)
    if must_fit and not place.exists():
        raise ValueError(
            f"--data {opener.spec}: decoded, these videos take more than --cache-gb {opener.limit / 1e9:g}: raise it, "
            "lower --short-side, or use fewer of their frames with --every"
        )
    clip = [os.path.dirname(frame) for frame in images.names]
    firsts = [row for row in range(len(clip)) if row == 0 or clip[row] != clip[row - 1]]
    lengths = np.diff([*firsts, len(clip)])
    file = place.with_name(place.name + ".motion.npy")
    try:
        moved = np.load(file)
    except (OSError, ValueError):
        moved = np.empty(0, np.float32)
    if len(moved) != len(clip):
        moved = _motion(images)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as kept:
                np.save(kept, moved)
            part.replace(file)
        except OSError:  # a cache that somebody else has built may be read-only
            part.unlink(missing_ok=True)
    moved[firsts] = 0
    return Clips(
        images, torch.from_numpy(moved), torch.tensor(firsts), torch.from_numpy(lengths), [clip[row] for row in firsts]
    )


def _motion(images: Images) -> np.ndarray:
    """The mean absolute difference, in [0,1], of each frame from the one before it, (rows,) float32; the first: 0."""
    moved = np.zeros(len(images), np.float32)
    before: Tensor | None = None
    for row in range(len(images)):
        one = images.batch(torch.tensor([row]))
        small = adaptive_avg_pool2d(one["image"].float() / 255, _MOTION)[0]  # (3,24,24)
        if before is not None:
            moved[row] = (small - before).abs().mean()
        before = small
    return moved


# --- videos ---------------------------------------------------------------------------------------------------


def _require_av(spec: str) -> None:
    try:
        import av  # noqa: F401
    except ImportError:
        raise ValueError(
            f"--data {spec}: reading videos needs PyAV: pip install av; or give a folder of frames for each clip"
        ) from None


def _video_source(root: Path, names: Sequence[str], every: int, short_side: int) -> Source:
    """Each ``every``-th frame of video files. A video that cannot be opened counts as one frame, with the reason."""
    counts = [max(1, len(range(0, _packets(root / name), every))) for name in names]
    places = [(video, i * every) for video, count in enumerate(counts) for i in range(count)]
    # Of the video that was read last: frames are mostly asked for in order, and each decoding begins at the first.
    now, at = -1, 0
    going: Iterator[Image | str] = iter(())

    def read(rows: Sequence[int]) -> list[Pixels]:
        nonlocal now, at, going
        found: list[Pixels] = []
        for row in rows:
            video, number = places[row]
            if video != now or number < at:
                now, at, going = video, 0, _frames(root / names[video])
            pixels: Pixels = "the video ends before this frame"
            for frame in going:
                at += 1
                if isinstance(frame, str):
                    pixels = frame
                    break
                if at > number:
                    pixels = stored(frame, short_side)
                    break
            found.append(pixels)
        return found

    return Source([os.path.join(names[video], f"{number:06d}") for video, number in places], read)


def _packets(file: Path) -> int:
    """How many frames a video holds as far as it can be followed, without decoding them."""
    import av

    count = 0
    try:
        with av.open(str(file)) as container:
            for packet in container.demux(container.streams.video[0]):
                count += packet.size > 0
    except (av.error.FFmpegError, OSError, IndexError, ValueError):
        pass  # reading its frames will say why
    return count


def _frames(file: Path) -> Iterator[Image | str]:
    """A video's frames, upright; then, where it is damaged, the reason."""
    import av

    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                yield "no picture in this video"
                return
            for frame in container.decode(container.streams.video[0]):
                picture = frame.to_image()
                yield picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
    except (av.error.FFmpegError, OSError, ValueError) as error:
        yield getattr(error, "strerror", None) or reason(error)
