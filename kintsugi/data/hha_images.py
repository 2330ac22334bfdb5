"""Images with depth encoded as HHA (``kintsugi.data.hha``): built-in scenes, or folders rgb/ and depth/ of one camera.

A sample has seven uint8 planes: image (3, sRGB), HHA (3), and 255 where depth is known, else 0 (1). They are stored,
read and cropped as images are (``kintsugi.data.images``). HHA is computed from whole frames at their own size, before
they are shrunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kintsugi.data import hha as encoding
from kintsugi.data.cache import Pixels, Source
from kintsugi.data.decode import crop_and_shrink, reason, rgb
from kintsugi.data.hha import hha
from kintsugi.data.image_set import Images, Split, held_out
from kintsugi.data.matched import nearest, open_matched, read_values
from kintsugi.data.opener import Opener
from kintsugi.data.rendered import file_digest, renderer_digests, scene_names, to_bytes
from kintsugi.data.rgbd import read_intrinsics
from kintsugi.data.store import Store

PLANES = 7


def open_hha(spec: str, size: int, store: Store = Store(), *, scenes: int = 4096) -> Split:
    """Opens images of seven planes (``unpack``), split into training and held-out ones, for crops of ``size`` px.

    spec: ``scenes`` (the first ``scenes`` built-in scenes), or a folder that holds rgb/ (any format), depth/ (16-bit
    PNGs in millimeters, 0 = missing, named like the images) and intrinsics.txt, the camera's 3x3 matrix. Stored size,
    cache and split are as in ``open_images``. Frames that cannot be read or do not match are skipped and reported.
    Raises ValueError with one line if nothing is left.
    """
    opener = Opener(spec, size, store)
    if spec == "scenes":
        return held_out(_open_scenes(opener, scenes))
    root = Path(spec).expanduser()
    # Without rgb/ or depth/ the message of open_matched is more useful than one on a missing matrix.
    complete = (root / "rgb").is_dir() and (root / "depth").is_dir()
    matrix = read_intrinsics(root)[None] if complete else torch.eye(3)[None]
    sample = partial(_sample, matrix=matrix, short_side=opener.short_side)
    key = [file_digest(Path(encoding.__file__)), matrix.tolist()]
    return held_out(open_matched(opener, ("rgb", "depth"), sample, PLANES, "hha", key))


def unpack(planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Splits uint8 (n,7,H,W) into image and HHA, (n,3,H,W) each, in [0,1]; and where depth is known, bool (n,1,H,W)."""
    return planes[:, :3].float() / 255, planes[:, 3:6].float() / 255, planes[:, 6:] > 127


def _open_scenes(opener: Opener, count: int) -> Images:
    from kintsugi.scenes import rendering  # imported here: only runs on scenes need it

    def read(rows: Sequence[int]) -> list[Pixels]:
        found = rendering.render(0, torch.tensor(rows), opener.short_side, opener.store.device)
        matrix = found["intrinsics"].clone()
        matrix[:, :2, 2] -= 0.5  # the renderer's pixel centers are at half-integers, HHA's at integers
        maps = hha(found["depth"], matrix, gravity=found["gravity"])
        image, known = to_bytes(found["image"]), 255 * (found["depth"] > 0).byte()
        return list(torch.cat([image, maps, known], 1).cpu().numpy())

    source = Source(scene_names(count), read, chunk=64, planes=PLANES)
    key = [PLANES, count, [*renderer_digests(), file_digest(Path(encoding.__file__))]]
    return opener.open("hha-scenes", key, lambda: source, "rendering")


def _sample(paths: Sequence[Path], matrix: Tensor, short_side: int) -> Pixels:
    """The seven planes of an image file and its depth file, or the reason why there are none."""
    try:
        with Image.open(paths[0]) as file:
            picture = rgb(ImageOps.exif_transpose(file))
        depth = read_values(paths[1])
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        return reason(error)
    if depth.shape != (picture.height, picture.width):
        return f"its depth is {'x'.join(map(str, depth.shape))}, its image {picture.height}x{picture.width}"
    if depth.dtype == np.uint8:
        return "depth must have 16 bits"
    meters = torch.from_numpy(depth.astype(np.float32) / 1000)[None, None]
    maps = np.concatenate([hha(meters, matrix)[0].numpy(), 255 * (depth > 0)[None]]).transpose(1, 2, 0)
    image = crop_and_shrink(picture, short_side)
    return np.concatenate([image, nearest(maps, image.shape[1:]).transpose(2, 0, 1)]).astype(np.uint8)
