"""The built-in scenes as data sets.

Training uses scenes of seed 0, which are rendered into the cache. ``labeled_scenes``, on which methods are compared,
are of seed 1. The renderer is imported inside the functions, so that only runs on scenes wait for it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.image_set import Images
from kintsugi.data.opener import Opener


def open_scenes(opener: Opener, count: int) -> Images:
    """The first ``count`` scenes, as square images."""

    def read(rows: Sequence[int]) -> list[Pixels]:
        from kintsugi.scenes import rendering

        rendered = rendering.render(0, torch.tensor(rows), opener.short_side, opener.store.device)
        return list(to_bytes(rendered["image"]).cpu().numpy())  # (n,3,S,S)

    source = Source(scene_names(count), read, chunk=64)
    return opener.open("scenes", [count, renderer_digests()], lambda: source, "rendering")


def scene_names(count: int) -> list[str]:
    return [f"scene-{i}" for i in range(count)]


def renderer_digests() -> list[str]:
    """Digests of the renderer's source files. As part of a set's key they cause new rendering if the code changes."""
    from kintsugi.scenes import rendering

    return [file_digest(file) for file in rendering.SOURCE_FILES]


def file_digest(file: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def to_bytes(image: Tensor) -> Tensor:
    """Images in [0,1] -> uint8, same shape."""
    return (255 * image).round().byte()


@functools.lru_cache(4)  # several tasks use the same scenes
def labeled_scenes(split: str, count: int, size: int) -> dict[str, Tensor]:
    """Renders scenes with labels. Returns the results of ``kintsugi.scenes.rendering.render`` on the CPU, image as
    uint8.

    split: ``train`` gives ``count`` scenes; ``val`` gives others, a quarter as many, at least one. They are square,
    ``size`` px.
    """
    from kintsugi.scenes.rendering import render

    indices = torch.arange(count) if split == "train" else torch.arange(count, count + max(1, count // 4))
    rendered = render(1, indices, size)
    return rendered | {"image": to_bytes(rendered["image"])}
