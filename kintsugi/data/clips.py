"""Opens clips, which are frames in order, and measures how much moves in them.

Clips come from folders of frames, video files or the built-in scenes. Frames are decoded once into the cache, as images
are (``kintsugi.data.images``), so memory holds only the batches.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import SUFFIXES, decode_all
from kintsugi.data.folders import walk
from kintsugi.data.image_set import Images
from kintsugi.data.opener import Opener
from kintsugi.data.rendered import renderer_digests, to_bytes
from kintsugi.data.video_files import VIDEOS, is_video, require_av, video_source

_MOTION_SIDE = 24  # px: frames are averaged to this side before comparison, so that noise does not count as motion
_HELP = "name a folder with a folder of frames or a video file for each clip, or scenes"


@dataclass(frozen=True)
class Clips:
    """Frames of M clips, in order: clip c consists of ``lengths[c]`` rows of ``images``, from ``firsts[c]`` on.

    motion: float (rows,), how much each frame differs from the one before it, in [0,1]; 0 for the first frame of a
    clip. firsts, lengths: int64 (M,). names: of the clips.
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


def open_scene_clips(opener: Opener, count: int, frames: int) -> Clips:
    """Clips of the first ``count`` built-in scenes: ``frames`` moments of each, evenly spread over its time."""
    from kintsugi.scenes import rendering  # imported here: only runs on scenes need it

    def read(rows: Sequence[int]) -> list[Pixels]:
        wanted = torch.tensor(rows)
        rooms, places = (wanted // frames).unique(return_inverse=True)
        rendered = rendering.render_clip(0, rooms, opener.short_side, frames, opener.store.device)
        image = rendered["image"]  # (n,T,3,S,S)
        return list(to_bytes(image[places, wanted % frames]).cpu().numpy())

    names = [os.path.join(f"scene-{i}", f"{moment:03d}") for i in range(count) for moment in range(frames)]
    source = Source(names, read, chunk=frames * max(1, 64 // frames))
    return _open_clips(opener, "scene-clips", [count, frames, renderer_digests()], lambda: source, "rendering")


def open_clip_folder(opener: Opener, every: int) -> Clips:
    """The clips of the folder ``opener.spec``, or of its subfolder frames/ if it has one.

    A clip is a subfolder of images or a video file. Every ``every``-th frame is used. The frames of a subfolder are
    ordered by their names, with frame9 before frame10. Raises ValueError with one line if there is no clip, or if the
    folder holds both kinds.
    """
    root = Path(opener.spec).expanduser()
    if not root.is_dir():
        raise ValueError(f"--data {opener.spec}: no such folder; {_HELP}")
    root = root / "frames" if (root / "frames").is_dir() else root
    found = sorted(walk(root, opener.store.report, SUFFIXES | VIDEOS), key=lambda entry: _natural(entry[0]))
    videos = [entry for entry in found if is_video(entry[0])]
    pictures = [entry for entry in found if not is_video(entry[0]) and os.path.dirname(entry[0])]
    if not videos and not pictures:
        raise ValueError(f"--data {opener.spec}: no clips in this folder; {_HELP}")
    if videos and pictures:
        raise ValueError(
            f"--data {opener.spec}: it holds folders of frames ({os.path.dirname(pictures[0][0])!r}) and videos "
            f"({videos[0][0]!r}); put them into two folders and name one"
        )
    key = [str(root.resolve()), every, videos or pictures]
    if videos:
        require_av(opener.spec)
        make = partial(video_source, root, [name for name, _, _ in videos], every, opener.short_side)
        return _open_clips(opener, root.resolve().name, key, make, must_fit=True)
    folders: dict[str, list[str]] = {}
    for name, _, _ in pictures:
        folders.setdefault(os.path.dirname(name), []).append(name)
    names = [name for frames in folders.values() for name in frames[::every]]

    def read(rows: Sequence[int]) -> list[Pixels]:
        return decode_all((root / names[row] for row in rows), opener.short_side)

    return _open_clips(opener, root.resolve().name, key, lambda: Source(names, read))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame9 before frame10."""
    return [(int(piece), "") if piece.isdecimal() else (0, piece) for piece in re.split(r"(\d+)", name)]


def _open_clips(
    opener: Opener, name: str, key: object, make: Callable[[], Source], verb: str = "decoding", must_fit: bool = False
) -> Clips:
    """Opens the frames of ``make()`` through the cache (``Opener.open``), and measures their motion once.

    The frames are named CLIP/FRAME. must_fit: raises ValueError if the frames exceed the cache's limit, for sources
    that are too slow to decode at each use.
    """
    folder = opener.folder_of(name, ["clips", key])
    images = opener.open(name, ["clips", key], make, verb)
    if must_fit and not folder.exists():
        raise ValueError(
            f"--data {opener.spec}: decoded, these videos take more than --cache-gb {opener.store.limit_gb:g}: raise "
            "it, lower --short-side, or use fewer of their frames with --every"
        )
    clip = [os.path.dirname(frame) for frame in images.names]
    firsts = [row for row in range(len(clip)) if row == 0 or clip[row] != clip[row - 1]]
    lengths = np.diff([*firsts, len(clip)])
    motion = _cached_motion(images, folder.with_name(folder.name + ".motion.npy"))
    motion[firsts] = 0
    return Clips(
        images, torch.from_numpy(motion), torch.tensor(firsts), torch.from_numpy(lengths), [clip[row] for row in firsts]
    )


def _cached_motion(images: Images, file: Path) -> np.ndarray:
    """``_motion`` of the images, read from ``file`` if it is there, else computed and written to it."""
    try:
        kept = np.load(file)
    except (OSError, ValueError):
        kept = np.empty(0, np.float32)
    if len(kept) == len(images):
        return kept
    motion = _motion(images)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as out:
            np.save(out, motion)
        unfinished.replace(file)
    except OSError:  # a cache built by another user may be read-only
        unfinished.unlink(missing_ok=True)
    return motion


def _motion(images: Images) -> np.ndarray:
    """The mean absolute difference of each frame from the one before it, in [0,1]; float32 (rows,).

    It is 0 for the very first frame.
    """
    motion = np.zeros(len(images), np.float32)
    before: Tensor | None = None
    for row in range(len(images)):
        one = images.batch(torch.tensor([row]))
        small = adaptive_avg_pool2d(one["image"].float() / 255, _MOTION_SIDE)[0]  # (3,24,24)
        if before is not None:
            motion[row] = (small - before).abs().mean()
        before = small
    return motion
