"""Images with depth, as HHA (``kintsugi.data.hha``): the built-in scenes, or folders rgb/ and depth/ of one camera.

A sample is seven planes of bytes, stored, read and cut as images are (``kintsugi.data.images``): image 3 (sRGB), HHA 3,
and 255 where depth is known. HHA is made of whole frames at their own size, before they are made smaller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kintsugi.data import hha as encoding
from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import reason, rgb, stored
from kintsugi.data.hha import hha
from kintsugi.data.images import Images, Opener, Split, held_out
from kintsugi.data.matched import nearest, open_matched, read_values
from kintsugi.data.pairs import read_intrinsics
from kintsugi.scenes import rendering

PLANES = 7


def open_hha(
    spec: str,
    size: int,
    *,
    short_side: int = 0,
    scenes: int = 4096,
    cache_dir: Path | None = None,
    cache_gb: float = 8.0,
    device: str = "cpu",
    quiet: bool = False,
) -> Split:
    """Images of seven planes (``unpack``): ``scenes``, that many of the built-in ones, or a folder.

    A folder holds, by the same names, rgb/ (any format) and depth/ (16-bit PNGs in millimeters, 0 = missing), and
    intrinsics.txt, the camera's 3x3 matrix. Stored size, cache and split as in ``open_images``. Frames that cannot be
    read or do not match are skipped, counted and named. ValueError of one line where nothing is left.
    """
    opener = Opener.of(spec, size, short_side, cache_dir, cache_gb, quiet)
    if spec == "scenes":
        return held_out(_scenes(opener, scenes, device))
    root = Path(spec).expanduser()
    # A folder without rgb/ and depth/ is told so by open_matched, not that it lacks a matrix.
    whole = (root / "rgb").is_dir() and (root / "depth").is_dir()
    matrix = read_intrinsics(root)[None] if whole else torch.eye(3)[None]
    sample = partial(_sample, matrix=matrix, short_side=opener.short_side)
    key = [_code(Path(encoding.__file__)), matrix.tolist()]
    return held_out(open_matched(opener, ("rgb", "depth"), sample, PLANES, "hha", key))


def unpack(planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 (n,7,H,W) -> image (n,3,H,W) and HHA (n,3,H,W) in [0,1], and where depth is known, bool (n,1,H,W)."""
    return planes[:, :3].float() / 255, planes[:, 3:6].float() / 255, planes[:, 6:] > 127


def _scenes(opener: Opener, count: int, device: str) -> Images:
    def read(rows: Sequence[int]) -> list[Pixels]:
        found = rendering.render(0, torch.tensor(rows), opener.short_side, device)
        matrix = found["intrinsics"].clone()
        matrix[:, :2, 2] -= 0.5  # of pixel centers at integers
        maps = hha(found["depth"], matrix, gravity=found["gravity"])
        image, known = (255 * found["image"]).round().byte(), 255 * (found["depth"] > 0).byte()
        return list(torch.cat([image, maps, known], 1).cpu().numpy())

    source = Source([f"scene-{i}" for i in range(count)], read, chunk=64, planes=PLANES)
    code = [_code(file) for file in (*rendering.SOURCE_FILES, Path(encoding.__file__))]
    return opener.open("hha-scenes", [PLANES, count, code], lambda: source, "rendering")


def _code(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _sample(paths: Sequence[Path], matrix: Tensor, short_side: int) -> Pixels:
    """The planes of an image and its depth, or the reason why there are none."""
    try:
        with Image.open(paths[0]) as file:
            picture = rgb(ImageOps.exif_transpose(file))
        depth = read_values(paths[1])
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        return reason(error)
    if depth.shape != (picture.height, picture.width):
        return f"its depth is {'x'.join(map(str, depth.shape))}, its image {picture.height}x{picture.width}"
    if depth.dtype == np.uint8:
        return "depth must have 16 bits"
    meters = torch.from_numpy(depth.astype(np.float32) / 1000)[None, None]
    maps = np.concatenate([hha(meters, matrix)[0].numpy(), 255 * (depth > 0)[None]]).transpose(1, 2, 0)
    image = stored(picture, short_side)
    return np.concatenate([image, nearest(maps, image.shape[1:]).transpose(2, 0, 1)]).astype(np.uint8)
