"""Enlarges photos of any size four times with a trained SRResNet or SRGAN.

``python -m kintsugi.apps.upscale --in small.png --out large.png``. To limit memory the photo is enlarged in tiles, each
with a margin as wide as the network's convolutions reach, so that the result equals that of the whole photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from kintsugi.apps import jobs
from kintsugi.data import photos
from kintsugi.nets.srresnet import SCALE, SelfEnsemble, pieces, tiles
from kintsugi.recon.superresolution import SuperResolution, load_upscaler
from kintsugi.train import checkpoint
from kintsugi.train.compute import pick_device
from kintsugi.train.config import run_command, within


@dataclass(frozen=True, kw_only=True)
class UpscaleConfig(jobs.PhotosConfig):
    """Enlarges a photo, or a folder of photos, four times and writes PNG."""

    tile: int = 128
    """Side of the tiles that are enlarged at a time, px of the photo; smaller tiles need less memory."""
    ensemble: bool = False
    """Enlarge each photo in its eight orientations and take the mean: a little better, eight times as long."""


def run(config: UpscaleConfig) -> int:
    """Enlarges all photos and returns how many failed. For a single photo a failure raises."""
    todo = jobs.find_jobs(config.source, config.out)
    within(config, tile=1)
    trained = load_upscaler(
        checkpoint.chosen(config.ckpt, SuperResolution.name, shipped_name="srgan"), pick_device(config.device)
    )
    net = SelfEnsemble(trained) if config.ensemble else trained

    def upscale_one(job: jobs.PhotoJob) -> str:
        image, note = photos.read_photo(job.photo)
        result = Image.new("RGB", (SCALE * image.width, SCALE * image.height))
        count = tiles(image.height, image.width, config.tile)
        with jobs.progress(job.photo.name) as report:
            for done, (top, left, piece) in enumerate(pieces(photos.to_tensor(image), net, config.tile), 1):
                result.paste(photos.to_image(piece), (left, top))
                report(done / count)
        if image.mode == "RGBA":
            result.putalpha(image.getchannel("A").resize(result.size, Image.Resampling.BICUBIC))
        photos.write_png(result, job.out, image.info["icc_profile"])
        return note

    return jobs.run_jobs(todo, upscale_one, stop=not config.source.is_dir())


def main(argv: Sequence[str] | None = None) -> None:
    run_command(UpscaleConfig, run, argv)


if __name__ == "__main__":
    main()
