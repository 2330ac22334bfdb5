"""Code that the benchmarks share: timing, sample photos, the description of the machine, writing of results."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import torch
from PIL import Image, ImageOps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from kintsugi.data.decode import SUFFIXES
from kintsugi.data.images import open_images
from kintsugi.data.store import Store
from kintsugi.train.compute import Device
from kintsugi.train.log import panel

IMAGENET = (375, 500)
"""The most common height and width of ImageNet's photos, px."""

RESULTS = Path(__file__).parent / "results"


def write(result: Mapping[str, object], bars: Mapping[str, Mapping[str, float]], out: Path, name: str) -> None:
    """Prints ``result`` with a description of the machine, and writes both to ``out``/NAME.json.

    Also draws bar charts as ``out``/NAME.png. bars: title of a panel -> name of a bar -> its length.
    """
    text = json.dumps({**result, "machine": machine()}, indent=1, default=str)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(text + "\n")
    columns = min(len(bars), 4)
    rows = -(-len(bars) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.5 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(bars) :]:
        axis.set_axis_off()
    for axis, (title, values) in zip(axes.flat, bars.items(), strict=False):
        drawn = axis.barh(list(values), list(values.values()), color="#b8860b")
        axis.bar_label(drawn, fmt="%.3g", padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / f"{name}.png", dpi=110)
    plt.close(figure)


def add(record: object, name: str, out: Path, file: str) -> None:
    """Writes a result under ``name`` into ``out``/``file``.json. Results of other names there stay."""
    path = out / f"{file}.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, name: record}, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class TimingConfig:
    """Options of benchmarks of training steps."""

    device: Device = "auto"
    """auto: the GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: networks run in bfloat16 autocast."""
    size: int = 64
    """Side of the crops, px."""
    batch: int = 64
    """Images per step."""
    rounds: int = 4
    """Number of timed runs of each job, after one run as a warm-up."""
    out: Path = RESULTS
    """Folder for the results and their chart."""


Job = Callable[[], object]
"""Work that is timed. Its result is ignored."""


def milliseconds(
    jobs: Mapping[str, Job],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 1,
) -> dict[str, float]:
    """The median time of each job over ``rounds`` runs, in milliseconds.

    The jobs take turns. Each first runs once as a warm-up, which is not counted. On a GPU a run ends when the device is
    done. clock: ``time.process_time``, with one thread on a CPU, does not count the time of other programs. repeats:
    how often a run does its job; the time is then of one. With several, a GPU need not wait after each.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in tqdm(range(rounds + 1), desc=", ".join(jobs)[:60], leave=False):
        for name, job in jobs.items():
            start = clock()
            for _ in range(repeats):
                job()
            wait(device)
            times[name].append(1e3 * (clock() - start) / repeats)
    return {name: round(statistics.median(found[1:]), 2) for name, found in times.items()}


def wait(device: torch.device) -> None:
    """Waits until a GPU has done what it was given. On a CPU nothing is open."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def logged(run: Path, name: str) -> dict[int, float]:
    """A scalar that a training run logged, by its name in the loop, such as ``heldout/knn``: step -> value."""
    events = EventAccumulator(str(run)).Reload()
    tag = panel(name)
    return {one.step: one.value for one in events.Scalars(tag)} if tag in events.Tags()["scalars"] else {}


def machine() -> dict[str, object]:
    """Describes the machine: processor, cores, threads, GPU, load of the last minute, version of torch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "load before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }


@contextlib.contextmanager
def photos(data: Path | None, count: int, like_imagenet: bool = False) -> Iterator[Path]:
    """A context with a temporary folder of images, all in one class folder, ``all``.

    It holds up to ``count`` images: files from below ``data``, spread evenly over all of them, or built-in scenes if
    ``data`` is None. Scenes are written as JPEG at ImageNet's usual size. So are photos if ``like_imagenet`` is true;
    otherwise the folder holds links to them. Raises ValueError if ``data`` has no images.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photos" / "all"
        folder.mkdir(parents=True)
        if data is None:
            scenes = open_images("scenes", 64, Store(short_side=80), scenes=2048).train
            for index in range(min(count, len(scenes))):
                scene = scenes.batch(torch.tensor([index]))["image"][0]
                _write_jpeg(to_pil_image(scene), folder / f"{index}.jpg")
        else:
            files = sorted(file for file in data.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not files:
                raise ValueError(f"--data {data}: no images in this folder")
            for file in files[:: max(1, len(files) // count)][:count]:
                if like_imagenet:
                    _write_jpeg(Image.open(file), folder / f"{file.parent.name}-{file.stem}.jpg")
                else:
                    (folder / f"{file.parent.name}-{file.name}").symlink_to(file.resolve())
        yield folder.parent


def _write_jpeg(image: Image.Image, file: Path) -> None:
    """Writes a JPEG of ImageNet's usual size, landscape or portrait like the image. Crops what does not fit."""
    short, long = IMAGENET
    size = (long, short) if image.width >= image.height else (short, long)
    ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC).save(file, quality=95)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()
