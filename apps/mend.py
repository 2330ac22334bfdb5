"""Mends photos of any size with a trained network; pixels outside the hole stay exactly as they are.

``python -m kintsugi.apps.mend --in photo.jpg --mask mask.png --out out.png``; white (> 127) in the mask is the hole.

The network gives colors and structure. Detail comes from patches of the photo itself, unless --detail is net.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kintsugi.apps import jobs
from kintsugi.data import photos
from kintsugi.data.decode import rgb
from kintsugi.data.photos import open_upright, read_photo, to_tensor, write_png
from kintsugi.fill.areas import Report
from kintsugi.fill.choice import better_fit
from kintsugi.fill.patches import complete
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import run_command

Detail = Literal["auto", "patches", "net"]


# --- mending --------------------------------------------------------------------------------------------------


class Mending:
    """Mends photos of any size with the network of a checkpoint of the mender or of the context encoder."""

    def __init__(self, ckpt: Path, device: torch.device) -> None:
        """Reads the checkpoint. Raises ValueError with one line if it is of another method."""
        from kintsugi.recon.painters import open_painter  # here, because it imports all of training

        self.device = device
        self.paint = open_painter(ckpt, device)[1]

    def __call__(
        self, image: Tensor, mask: Tensor, detail: Detail = "auto", seed: int = 0, report: Report = lambda done: None
    ) -> Tensor:
        """Mends one photo: (3,H,W) in [0,1] and mask (1,H,W), 1 = hole -> (3,H,W) in [0,1], on the CPU.

        detail and seed: as in ``MendConfig``. Outside the hole the photo is unchanged; inside it the photo's content is
        not used.
        """
        image, mask = image.to(self.device), mask.to(self.device)
        if detail == "net":
            return self.paint(image, mask, report).cpu()
        painted = self.paint(image, mask, lambda done: report(done / 3))
        completed = complete(painted, mask, seed, lambda done: report((1 + 2 * done) / 3))
        return (better_fit(painted, completed, mask) if detail == "auto" else completed).cpu()


# --- files ----------------------------------------------------------------------------------------------------


def mend_file(
    photo: Path, mask_file: Path, out: Path, mender: Callable[[Tensor, Tensor], Tensor], *, invert: bool = False
) -> str:
    """Mends a photo and writes it as PNG: upright, 8-bit RGB, with its alpha channel and color profile.

    mender: a photo (3,H,W) in [0,1] and its mask (1,H,W), 1 = hole -> the mended photo. invert: black is the hole,
    instead of white. Returns a note on the photo's conversion, or "". Raises ValueError with one line if the photo and
    the mask do not fit together.
    """
    image, note = read_photo(photo)
    hole = _read_hole(mask_file, invert)
    if hole.shape != image.size[::-1]:
        raise ValueError(
            f"{mask_file} is {hole.shape[1]}x{hole.shape[0]} px but {photo} is {image.width}x{image.height} px "
            "upright: make the mask as large as the photo"
        )
    color = "black (<= 127)" if invert else "white (> 127)"
    if not hole.any():
        raise ValueError(
            f"{mask_file} has no hole: no pixel is {color}; paint the hole {color.split()[0]}, or "
            + ("leave --invert out" if invert else "add --invert")
        )
    if hole.all():
        raise ValueError(
            f"{mask_file} is all hole: every pixel is {color}, so there is nothing to mend from; "
            + ("try without --invert" if invert else "try --invert")
        )
    result = paste(image, mender(to_tensor(image), torch.from_numpy(hole)[None].float()), hole)
    if image.mode == "RGBA":
        result.putalpha(image.getchannel("A"))
    write_png(result, out, image.info["icc_profile"])
    return note


def paste(image: Image.Image, mended: Tensor, hole: np.ndarray) -> Image.Image:
    """The photo with the hole's pixels from ``mended`` (3,H,W) in [0,1]; all others stay, bit for bit. RGB."""
    pixels = np.array(image.convert("RGB"))  # convert leaves the colors under an alpha as they are
    inside = mended[:, torch.from_numpy(hole)].clamp(0, 1)  # (3,n)
    pixels[hole] = (255 * inside).round().byte().T.numpy()
    return Image.fromarray(pixels)


def _read_hole(path: Path, invert: bool) -> np.ndarray:
    """A mask as bool (H,W), True = hole; transparent pixels are not hole."""
    image, _ = open_upright(path)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white" if invert else "black")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return (np.asarray(rgb(image).convert("L")) > 127) != invert


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MendConfig(jobs.PhotosConfig):
    """Mends a photo, or a folder of photos, and writes PNG. Pixels outside the hole stay as they are."""

    mask: Path
    """White (> 127) is the hole. One mask for all photos, or a folder of masks named like the photos."""
    invert: bool = False
    """Black is the hole, instead of white."""
    detail: Detail = "auto"
    """patches: sharp, by patches of the photo itself that continue what the network painted; net: the network alone;
    auto: for each hole patches, unless they depart from what the network painted."""
    seed: int = 0
    """With patches: another seed gives another result, where the photo leaves a choice."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")


@dataclass(frozen=True)
class MendJob(jobs.PhotoJob):
    """A photo, the PNG to write, and the mask of its hole."""

    mask: Path


def find_jobs(config: MendConfig) -> list[MendJob]:
    """The jobs for --in, --mask and --out. Raises ValueError with one line if the paths do not fit together."""
    found = jobs.find_jobs(config.source, config.out)
    if not config.mask.exists():
        raise ValueError(f"--mask {config.mask}: no such file or folder")
    masks = [config.mask] * len(found)
    if config.mask.is_dir():
        stems = {path.stem: path for path in photos.images_in(config.mask)}
        masks = [stems.get(job.photo.stem, config.mask / f"{job.photo.stem}.png") for job in found]
    jobs.refuse_overwriting([job.out for job in found], masks)
    return [MendJob(job.photo, job.out, mask) for job, mask in zip(found, masks, strict=True)]


def run(config: MendConfig) -> int:
    """Mends all photos and returns how many failed. For a single photo a failure raises."""
    from kintsugi.recon.painters import METHODS  # here, because it imports all of training

    todo = find_jobs(config)
    mending = Mending(checkpoint.chosen(config.ckpt, *METHODS), pick_device(config.device))

    def mend_one(job: MendJob) -> str:
        with jobs.progress(job.photo.name) as report:

            def mender(image: Tensor, mask: Tensor) -> Tensor:
                return mending(image, mask, config.detail, config.seed, report)

            return mend_file(job.photo, job.mask, job.out, mender, invert=config.invert)

    return jobs.run_jobs(todo, mend_one, stop=not config.source.is_dir())


def main(argv: Sequence[str] | None = None) -> None:
    run_command(MendConfig, run, argv)


if __name__ == "__main__":
    main()
