"""The cost of reading: opening a folder of many files, decoding images at each use, indexing shards.

Run ``python -m bench.reading --data FOLDER``. Times are CPU seconds with one torch thread, because they depend little
on how busy the machine is. To measure opening alone, the many files are empty, and decoding is replaced by a function
that returns one pixel.
"""

from __future__ import annotations

import io
import itertools
import os
import resource
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.common import RESULTS, photos, write
from kintsugi.data import shards
from kintsugi.data.decode import decode
from kintsugi.data.images import open_images
from kintsugi.data.loader import Loader
from kintsugi.data.store import Store
from kintsugi.train.config import parse_command, user_errors, within


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """Measures the cost of reading: opening folders, decoding, indexing shards."""

    data: Path | None = None
    """A folder of class folders of JPEG files; default: built-in scenes, written at ImageNet's usual size."""
    images: int = 512
    """Largest number of images to use."""
    batch: int = 64
    """Images per batch."""
    files: int = 1_000_000
    """Number of empty files in the folder to open."""
    samples: int = 20_000
    """Number of samples in the shard to index."""
    out: Path = RESULTS
    """Folder for reading.json and reading.png."""

    def __post_init__(self) -> None:
        within(self, images=1, batch=1, files=1, samples=1)


def seconds(job: Callable[[], object]) -> float:
    """CPU seconds of a job, in this process and in child processes that ended meanwhile."""
    before = os.times()
    job()
    return sum(os.times()[:4]) - sum(before[:4])


def opening(folder: Path, count: int) -> dict[str, float]:
    """Opens a folder of ``count`` files twice: without a cache, then with it. Returns CPU seconds and the growth of
    peak memory, MB."""
    for number in range(count):
        file = folder / "files" / f"n{number % 1000:08d}" / f"{number}.JPEG"
        if number < 1000:
            file.parent.mkdir(parents=True)
        file.touch()
    found = {}
    open_them = partial(open_images, str(folder / "files"), 1, Store(cache=folder, quiet=True))
    with mock.patch("kintsugi.data.decode.decode", return_value=np.zeros((3, 1, 1), np.uint8)):
        for time in ("at first", "then"):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found[f"{time}, s"] = seconds(open_them)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            found[f"{time}, MB more"] = grown / 1e3
    return found


class Plain(Dataset[Tensor]):
    """Reads the same files as a typical torchvision script does: decodes, resizes and crops each image at each use."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.change = transforms.Compose([transforms.Resize(96), transforms.CenterCrop(96), transforms.PILToTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        return self.change(Image.open(self.files[row]).convert("RGB"))


def decoding(folder: Path, batch: int, kept: Path) -> dict[str, float]:
    """CPU milliseconds per image: decoding alone at two sizes, our loader without a cache, and torch's DataLoader.

    kept: a folder for our cache.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = {}
    for side in (96, 256):
        spent = seconds(partial(lambda side: [decode(file, side) for file in files[:60]], side))
        found[f"decoded at {side} px"] = spent / len(files[:60])
    train = open_images(str(folder), 64, Store(short_side=96, cache=kept, limit_gb=0, quiet=True)).train
    batches = max(1, len(train) // batch)
    with Loader(train, batch, 0).iterate(0) as ours:
        spent = seconds(lambda: list(itertools.islice(ours, batches)))
    found["at each use, 96 px"] = spent / (batch * batches)
    theirs = DataLoader(Plain(files), batch, shuffle=True, num_workers=2)
    found["torchvision, two workers"] = seconds(lambda: list(theirs)) / len(files)
    return {name: 1e3 * value for name, value in found.items()}


def indexing(folder: Path, count: int) -> float:
    """Writes a shard of ``count`` samples. Returns CPU microseconds per sample to index it."""
    with tarfile.open(folder / "set.tar", "w") as tar:
        for number, (kind, content) in itertools.product(range(count), (("jpg", b"0" * 9000), ("cls", b"7"))):
            member = tarfile.TarInfo(f"{number:06d}.{kind}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return 1e6 * seconds(lambda: shards._indexed([folder / "set.tar"])) / count


def run(config: ReadingConfig) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made, photos(config.data, config.images) as folder:
        found = {
            "decoding, ms": decoding(folder, config.batch, Path(made)),
            "indexing, us": {"a sample": indexing(Path(made), config.samples)},
            f"opening {config.files} files": opening(Path(made), config.files),
        }
    rounded = {name: {key: float(f"{value:.3g}") for key, value in one.items()} for name, one in found.items()}
    settings = asdict(config) | {"data": (config.data or Path("scenes")).name, "out": ""}
    write({"reading": rounded, "settings": settings}, rounded, config.out, "reading")


if __name__ == "__main__":
    with user_errors():
        run(parse_command(ReadingConfig))
