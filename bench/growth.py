"""How the cost of SimCLR's training grows with batch, size, threads, images and ranks; and what each option gains.

Run ``make bench`` or ``python -m bench.growth``. Whole training runs use the built-in scenes, single steps use random
pixels. Jobs that are compared with each other take turns. Figures are medians, except for opening folders and for
ranks, which are measured once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench.common import Job, TimingConfig, logged, milliseconds, write
from kintsugi.contrastive import simclr
from kintsugi.data.hha import hha
from kintsugi.data.images import open_images
from kintsugi.data.store import Store
from kintsugi.scenes import rendering
from kintsugi.train.compiled import Compiling
from kintsugi.train.compute import pick_device
from kintsugi.train.config import parse_command, user_errors
from kintsugi.train.dist import World, keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class GrowthConfig(TimingConfig):
    """Measures how cost grows with batch, size, threads, images and ranks, and which options make training faster."""

    batches: tuple[int, ...] = (16, 32, 64, 128)
    """Batch sizes at which a training step is measured."""
    sizes: tuple[int, ...] = (32, 64, 96, 128, 224)
    """Sides of the crops at which training steps and views are measured, px."""
    folders: tuple[int, ...] = (1000, 10_000, 50_000)
    """Numbers of images in the folders to open."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of processes that share a batch, each with its own core or GPU. Too large numbers are left out."""
    compile: bool = True
    """Also measure torch.compile. This takes a minute and, on a CPU, needs a C++ compiler."""


def scenes_job(count: int, size: int, device: torch.device) -> tuple[int, Job]:
    """The job of rendering built-in scenes of ``size`` px, and their number."""
    return count, lambda: rendering.render(0, torch.arange(count), size, device.type)


def hha_job(count: int, device: torch.device) -> tuple[int, Job]:
    """The job of computing HHA of frames of 640x480 px that show a slope, and their number."""
    camera = torch.tensor([[518.9, 0, 325.6], [0, 519.5, 253.7], [0, 0, 1]], device=device).expand(count, 3, 3)
    slope = torch.linspace(1, 4, 480, device=device)[:, None].expand(480, 640)
    room = slope.expand(count, 1, 480, 640).contiguous()
    return count, lambda: hha(room, camera)


class Growth:
    """The jobs of this benchmark and their measurements."""

    def __init__(self, config: GrowthConfig) -> None:
        self.config, self.device = config, pick_device(config.device)

    def rates(self, jobs: dict[str, tuple[int, Job]]) -> dict[str, float]:
        """Items per second of each job. jobs: name -> (number of items that one run makes, job)."""
        times = milliseconds({name: job for name, (_, job) in jobs.items()}, self.config.rounds, self.device)
        return {name: count / times[name] * 1e3 for name, (count, _) in jobs.items()}

    def method(
        self, size: int, batch: int, *, bf16: bool, channels_last: bool = True, compiling: Compiling = "no"
    ) -> simclr.SimCLR:
        """SimCLR's demo settings for crops of ``size`` px and this batch size, with fresh weights, on the device."""
        world = World(self.device, bf16=bf16)
        method = simclr.SimCLR(replace(simclr.demo(), size=size, batch=batch), world).to(self.device)
        world.place(method.children(), channels_last=channels_last, compiling=compiling)
        return method

    def usual(self, size: int, batch: int) -> simclr.SimCLR:
        """As ``method``, with the options of a usual run: the configured precision, channels last, not compiled."""
        return self.method(size, batch, bf16=self.config.precision == "bf16")

    def random_batch(self, size: int, batch: int) -> dict[str, Tensor]:
        """A batch of random pixels on the device, with the keys of ``Images.batch``. Images are 1.25 times as large as
        the crops."""
        side = size * 5 // 4
        pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        pixels = pixels.contiguous(memory_format=torch.channels_last).to(self.device)
        return {"image": pixels, "extent": torch.tensor([[side, side]]).expand(batch, 2)}

    def update(self, method: simclr.SimCLR) -> tuple[int, Job]:
        """The job of one training step on a random batch, and its number of images."""
        batch = self.random_batch(method.config.size, method.config.batch)
        return len(batch["image"]), lambda: method.update(method.inputs(batch, 0), 0)

    def views(self, size: int) -> tuple[int, Job]:
        """The job of making both views of a random batch, and its number of images."""
        method, batch = self.usual(size, self.config.batch), self.random_batch(size, self.config.batch)
        return self.config.batch, lambda: [method.view(batch, which, 0) for which in (0, 1)]

    def by_threads(self, job: tuple[int, Job]) -> dict[str, float]:
        """Items per second of a job with one thread and with all: number of threads -> rate."""
        threads = torch.get_num_threads()
        found = {}
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            found[str(count)] = self.rates({"": job})[""]
        torch.set_num_threads(threads)
        return found

    def options(self) -> dict[str, float]:
        """Speed of a training step with each option, relative to float32 with channels last."""
        size, batch = self.config.size, self.config.batch
        variants: dict[str, dict[str, Any]] = {
            "float32, channels last": {"bf16": False},
            "planes": {"bf16": False, "channels_last": False},
            "bf16": {"bf16": True},
        }
        if self.config.compile:
            variants |= {"compiled": {"bf16": False, "compiling": "compile"}}
            variants |= {"bf16, compiled": {"bf16": True, "compiling": "compile"}}
        found = self.rates({name: self.update(self.method(size, batch, **way)) for name, way in variants.items()})
        first = found["float32, channels last"]
        return {name: rate / first for name, rate in found.items()}

    def opening(self) -> dict[str, float]:
        """Seconds to open folders of small PNG files for training: first with decoding, then from the cache."""
        found = {}
        for count in self.config.folders:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "images"
                folder.mkdir()
                Image.new("RGB", (32, 32)).save(folder / "0.png")
                for number in range(1, count):
                    os.link(folder / "0.png", folder / f"{number}.png")
                for name in ("decoding", "cached"):
                    start = time.perf_counter()
                    open_images(str(folder), 32, Store(cache=Path(place) / "cache", quiet=True))
                    found[f"{count}, {name}"] = time.perf_counter() - start
        return found

    def by_ranks(self) -> dict[str, float]:
        """Images per second of whole training runs under torchrun: number of processes -> rate. All use the same global
        batch."""
        config, found = self.config, {}
        most = torch.cuda.device_count() if self.device.type == "cuda" else os.cpu_count() or 1
        for count in (count for count in config.ranks if count <= most):
            with tempfile.TemporaryDirectory() as runs:
                launch = (
                    f"-m torch.distributed.run --standalone --nproc-per-node={count} -m kintsugi.contrastive.simclr"
                )
                training = (
                    f"--size {config.size} --batch {config.batch} --scenes 256 --short-side {config.size * 5 // 4} "
                    f"--steps 12 --log-every 4 --show-every 999 --eval-every 999 --save-every 999 "
                    f"--device {self.device.type} --precision {config.precision}"
                )
                command = [sys.executable, *launch.split(), *training.split(), "--out", f"{runs}/run"]
                threads = {"OMP_NUM_THREADS": "1"} if self.device.type == "cpu" else {}
                subprocess.run(command, check=True, env=os.environ | threads, stdout=sys.stderr)
                rates = logged(Path(runs) / "run", "speed/images_per_second")
                found[str(count)] = rates[max(rates)]  # of the last steps: without the start
        return found

    def measure(self) -> dict[str, dict[str, float]]:
        """All figures, rounded to three significant digits: title -> name -> figure."""
        config, device = self.config, self.device
        usual = self.update(self.usual(config.size, config.batch))
        updates = {str(batch): self.update(self.usual(config.size, batch)) for batch in config.batches}
        found = {
            "images/s of updates by batch": self.rates(updates),
            "by size": self.rates({str(size): self.update(self.usual(size, 32)) for size in config.sizes}),
            "by threads": self.by_threads(usual),
            "images/s of two views by size": self.rates({str(size): self.views(size) for size in config.sizes}),
            "views by threads": self.by_threads(self.views(config.size)),
            "options, times as fast": self.options(),
            "seconds to open by images": self.opening(),
            "scenes/s": self.rates({"96 px": scenes_job(32, 96, device)}),
            "HHA frames/s, 640x480": self.rates({"one": hha_job(1, device)}),
            "images/s of trainings by ranks": self.by_ranks(),
        }
        return {name: {key: float(f"{value:.3g}") for key, value in one.items()} for name, one in found.items()}


def run(config: GrowthConfig) -> None:
    keep_freed_memory()  # as in every training run
    found = Growth(config).measure()
    write({"growth": found, "settings": asdict(config) | {"out": ""}}, found, config.out, "growth")


if __name__ == "__main__":
    with user_errors():
        run(parse_command(GrowthConfig))
