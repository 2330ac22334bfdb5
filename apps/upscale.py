"""Enlarges photos of any size four times with a trained SRResNet or SRGAN.

``python -m kintsugi.apps.upscale --in small.png --out large.png``: in tiles, each with as much around it as the
network's convolutions reach, so that the tiles' pixels are those of the whole image; of that only bytes are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from kintsugi.apps import jobs
from kintsugi.data import photos
from kintsugi.nets.srresnet import SCALE, pieces
from kintsugi.recon.superresolution import SuperResolution, load_upscaler
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import run_command, within


@dataclass(frozen=True, kw_only=True)
class Config(jobs.PhotosConfig):
    """Enlarges a photo, or a folder of them, four times; writes PNG."""

    tile: int = 128
    """Side of the pieces that are enlarged at a time, px of the photo; less needs less memory."""


def run(config: Config) -> int:
    """Enlarges everything and returns how many files failed; a single file that fails raises."""
    todo = jobs.find_jobs(config.source, config.out)
    within(config, tile=1)
    net = load_upscaler(checkpoint.chosen(config.ckpt, SuperResolution.name), pick_device(config.device))

    def upscale_one(job: jobs.Job) -> str:
        image, said = photos.read_photo(job.photo)
        result = Image.new("RGB", (SCALE * image.width, SCALE * image.height))
        for top, left, piece in pieces(photos.to_tensor(image), net, config.tile):
            result.paste(photos.to_image(piece), (left, top))
        if image.mode == "RGBA":
            result.putalpha(image.getchannel("A").resize(result.size, Image.Resampling.BICUBIC))
        photos.write_png(result, job.out, image.info["icc_profile"])
        return said

    return jobs.run_jobs(todo, upscale_one, stop=not config.source.is_dir())


def main(argv: Sequence[str] | None = None) -> None:
    run_command(Config, run, argv)


if __name__ == "__main__":
    main()
