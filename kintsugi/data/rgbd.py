"""Opens frames of an RGB-D camera: images with the depth of every pixel, in folders rgb/ and depth/; held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from kintsugi.data.decode import reason
from kintsugi.data.pairs import WrongKindError, read_pairs, stack_padded
from kintsugi.data.store import Store


@dataclass(frozen=True)
class RgbdFrames:
    """Frames of one RGB-D camera.

    images: uint8 (N,3,H,W) sRGB. depth: float (N,1,H,W), meters along the camera's axis, 0 = missing. intrinsics:
    (3,3), px. gravity: unit (3,) in camera axes (x right, y down, z forward), pointing down; None if unknown.
    """

    images: Tensor
    depth: Tensor
    intrinsics: Tensor
    gravity: Tensor | None

    def __len__(self) -> int:
        return len(self.images)


def open_rgbd(folder: Path, store: Store = Store()) -> RgbdFrames:
    """Opens the frames in a folder: rgb/, depth/ and intrinsics.txt, and gravity.txt if gravity is known.

    depth/ holds 16-bit PNGs in millimeters, named like the images; intrinsics.txt a 3x3 matrix in px; gravity.txt 3
    numbers. Frames that cannot be read are skipped and reported. Raises ValueError with one line if something is
    missing or does not match.
    """
    intrinsics = read_intrinsics(folder)
    gravity = None
    if (folder / "gravity.txt").exists():
        gravity = normalize(_read_numbers(folder / "gravity.txt", 3), dim=0)
    pairs = list(read_pairs(folder, "rgb", "depth", _millimeters, store))
    if not pairs:
        raise ValueError(f"{folder}: no pair of image and depth can be read; replace the files")
    images, depth = stack_padded(pairs, fill=0)
    return RgbdFrames(images, depth[:, None].float() / 1000, intrinsics, gravity)


def read_intrinsics(folder: Path) -> Tensor:
    """Reads the camera's matrix (3,3), px, from ``folder``/intrinsics.txt.

    Raises ValueError with one line if the file does not hold one.
    """
    matrix = _read_numbers(folder / "intrinsics.txt", 9).view(3, 3)
    fx, fy = matrix[0, 0].item(), matrix[1, 1].item()
    if min(fx, fy) <= 0:
        raise ValueError(
            f"{folder / 'intrinsics.txt'}: the focal lengths are {fx:g} and {fy:g} px, not above 0: "
            "write fx 0 cx, 0 fy cy, 0 0 1"
        )
    return matrix


def _read_numbers(path: Path, count: int) -> Tensor:
    """Reads ``count`` numbers from a text file, float (count,). Raises ValueError with one line if it does not hold
    them."""
    try:
        values = np.array(path.read_text().split(), np.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({reason(error)}): write {count} numbers into it") from None
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{path} holds {len(values)} values, not {count} numbers: write those into it")
    return torch.from_numpy(values)


def _millimeters(path: Path) -> np.ndarray:
    """Reads a depth file, int32 (h,w) in millimeters."""
    with Image.open(path) as depth:
        values, mode = np.array(depth), depth.mode
    if values.ndim != 2 or not mode.startswith("I"):
        raise WrongKindError(f"{path} is not a depth map: it must be a 16-bit PNG in millimeters, not mode {mode}")
    return values.astype(np.int32)
