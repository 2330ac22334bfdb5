"""Image files for tests of the data room, and what the sets made of them hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kintsugi.data import decode as decoding
from kintsugi.data.cache import Pixels
from kintsugi.data.image_set import Images
from kintsugi.data.images import open_images


def put(file: Path, value: int = 0, height: int = 40, width: int = 60) -> None:
    """A PNG filled with ``value``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(file)


def names(folder: Path, size: int = 32) -> list[str]:
    """All names that ``open_images`` finds in a folder, sorted."""
    split = open_images(str(folder), size)
    return sorted(split.train.names + split.heldout.names)


def values(*sets: Images) -> list[int]:
    """What the images are filled with."""
    return [int(image[0, 0, 0]) for images in sets for image in images.batch(torch.arange(len(images)))["image"]]


def assert_one_line(error: pytest.ExceptionInfo[Exception], *words: str) -> None:
    """The message is one line that contains all ``words``."""
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def record_decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list to which each file is added that is decoded from now on."""
    files: list[Path] = []
    decode = decoding.decode

    def recorded(file: Path, short_side: int) -> Pixels:
        files.append(file)
        return decode(file, short_side)

    monkeypatch.setattr(decoding, "decode", recorded)
    return files
