"""A user's own pictures at full size, for the commands that do a job on them: a file or a folder, into PNG."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
import tyro
from PIL import Image, ImageOps
from torch import Tensor

from core.data.decode import SUFFIXES, rgb

# --- one picture ----------------------------------------------------------------------------------------------


def read_photo(path: Path) -> tuple[Image.Image, str]:
    """A photo, upright, as 8-bit RGB or RGBA; and what to say of its conversion, "" where nothing was lost.

    ``info["icc_profile"]`` of the result is the profile that still describes its colours, or None. ValueError of one
    line for what cannot be read.
    """
    image, raw = open_upright(path)
    deep = image.mode.startswith("I") or ";16" in raw
    lossless = image.mode in ("RGB", "RGBA", "P", "PA") and not deep
    converted = "" if lossless else f"{'16-bit ' if deep else ''}{image.mode.split(';')[0]}"
    converted = {"16-bit I": "16-bit greyscale", "L": "greyscale", "LA": "greyscale with alpha"}.get(
        converted, converted
    )
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    upright = image.convert("RGBA") if transparent else rgb(image)
    upright.info["icc_profile"] = None if converted else image.info.get("icc_profile")
    return upright, converted and f"8-bit RGB, converted from {converted}"


def open_upright(path: Path) -> tuple[Image.Image, str]:
    """An image file, decoded and upright; and how its pixels are stored, in Pillow's words."""
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        with Image.open(path) as image:
            raw = str(image.tile)
            return ImageOps.exif_transpose(image), raw
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise ValueError(
            f"{path} cannot be read as an image ({type(error).__name__}): is it damaged?"
        ) from None


def write_png(image: Image.Image, out: Path, icc_profile: bytes | None = None) -> None:
    """Writes ``out``, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        image.save(part, "PNG", icc_profile=icc_profile)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit picture's colours as (3,H,W) in [0,1]; those under an alpha are left as they are."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def to_image(image: Tensor) -> Image.Image:
    """(3,H,W), clipped to [0,1], as an 8-bit picture."""
    return Image.fromarray((255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).cpu().numpy())


def whole_strides(extent: tuple[int, int], side: int, stride: int = 32) -> tuple[int, int]:
    """Height and width about in proportion to ``extent``'s with a short side of ``side`` px, in whole strides, so that
    no map of a network has to be cut."""
    scale = side / min(extent)
    height, width = (max(stride, stride * round(scale * length / stride)) for length in extent)
    return height, width


# --- a file, or a folder of them ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PhotosConfig:
    """What every command on photos is told."""

    source: Annotated[Path, tyro.conf.arg(name="in")]
    """A photo, or a folder of photos."""
    out: Path
    """A .png, or a folder."""
    ckpt: Path | None = None
    """A run's folder or a checkpoint; default: the method's newest run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class Job:
    photo: Path
    out: Path


J = TypeVar("J", bound=Job)


def find_jobs(source: Path, out: Path) -> list[Job]:
    """What --in and --out ask for: one photo into a PNG, or each photo of a folder into a folder.

    ValueError of one line where the paths make no sense.
    """
    if not source.exists():
        raise ValueError(f"--in {source}: no such file or folder")
    many = source.is_dir()
    photos = images_in(source) if many else [source]
    if not photos:
        raise ValueError(f"--in {source}: the folder holds no images ({', '.join(sorted(SUFFIXES))})")
    if many and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder, as --in is one")
    to_folder = many or out.is_dir()
    if not to_folder and out.suffix.lower() != ".png":
        raise ValueError(
            f"--out {out}: only PNG is written, which loses nothing; name it {out.with_suffix('.png').name}"
        )
    outs = [out / f"{photo.stem}.png" if to_folder else out for photo in photos]
    if len(set(outs)) < len(outs):
        twice = next(path for path in outs if outs.count(path) > 1)
        raise ValueError(f"--in {source}: several photos would become {twice}; rename all but one")
    refuse_overwriting(outs, photos)
    return [Job(*paths) for paths in zip(photos, outs, strict=True)]


def refuse_overwriting(outs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """ValueError of one line where a result would replace what it is made from."""
    originals = {path.resolve() for path in inputs}
    for out in outs:
        if out.resolve() in originals:
            raise ValueError(f"--out would overwrite {out}: name another file or folder")


def images_in(folder: Path) -> list[Path]:
    """The image files that lie in a folder, by name, hidden ones left out."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def run_jobs(jobs: Sequence[J], do: Callable[[J], str], *, stop: bool) -> int:
    """Does each job and prints its result and what ``do`` says of it; returns how many failed.

    stop: the first failure raises, as it should for a single file; else failures are named and counted.
    """
    failed = 0
    for job in jobs:
        try:
            said = do(job)
        except (ValueError, OSError) as error:
            if stop:
                raise
            failed += 1
            print(f"failed: {error}", file=sys.stderr)
        else:
            print(f"{job.out}" + (f" ({said})" if said else ""))
    if failed:
        print(f"{failed} of {len(jobs)} photos failed", file=sys.stderr)
    return failed
