"""Frames of video files, decoded by PyAV, an optional package that is imported only if there are videos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import crop_and_shrink, reason

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEOS = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"))


def is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEOS


def require_av(spec: str) -> None:
    """Raises ValueError with one line if PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise ValueError(
            f"--data {spec}: reading videos needs PyAV: pip install av; or give a folder of frames for each clip"
        ) from None


def video_source(root: Path, names: Sequence[str], every: int, short_side: int) -> Source:
    """Every ``every``-th frame of the video files ``names`` in ``root``, as images named VIDEO/NUMBER.

    A video that cannot be opened counts as one frame that cannot be read, with the reason.
    """
    counts = [max(1, len(range(0, _count_frames(root / name), every))) for name in names]
    places = [(video, i * every) for video, count in enumerate(counts) for i in range(count)]
    # The last video stays open, because frames are mostly read in order, and decoding always starts at the first frame.
    current, position = -1, 0
    frames: Iterator[Image | str] = iter(())

    def read(rows: Sequence[int]) -> list[Pixels]:
        nonlocal current, position, frames
        found: list[Pixels] = []
        for row in rows:
            video, number = places[row]
            if video != current or number < position:
                current, position, frames = video, 0, _frames(root / names[video])
            pixels: Pixels = "the video ends before this frame"
            for frame in frames:
                position += 1
                if isinstance(frame, str):
                    pixels = frame
                    break
                if position > number:
                    pixels = crop_and_shrink(frame, short_side)
                    break
            found.append(pixels)
        return found

    return Source([os.path.join(names[video], f"{number:06d}") for video, number in places], read)


def _count_frames(file: Path) -> int:
    """Counts a video's frames, as far as it can be read, without decoding them."""
    import av

    count = 0
    try:
        with av.open(str(file)) as container:
            for packet in container.demux(container.streams.video[0]):
                count += packet.size > 0
    except (av.error.FFmpegError, OSError, IndexError, ValueError):
        pass  # _frames gives the reason
    return count


def _frames(file: Path) -> Iterator[Image | str]:
    """The frames of a video, upright. If it is damaged, the reason comes after the last readable frame."""
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
