"""What reading costs: opening many files, decoding at each use beside a torchvision loader, indexing shards.

``python bench/reading.py FOLDER_OF_JPEGS [FILES]`` prints CPU seconds, which say the same on a busy machine; FILES, a
million by default, are made empty in a temporary folder and stand for images of one pixel.
"""

from __future__ import annotations

import io
import itertools
import os
import resource
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.data import images, shards
from core.data.decode import decode
from core.data.loader import Loader

T = TypeVar("T")


def seconds(job: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of this process and of those it has waited for."""
    before = os.times()
    result = job()
    return sum(os.times()[:4]) - sum(before[:4]), result


def opening(folder: Path, count: int) -> None:
    for number in range(count):
        file = folder / "files" / f"n{number % 1000:08d}" / f"{number}.JPEG"
        if number < 1000:
            file.parent.mkdir(parents=True)
        file.touch()
    images.decode = lambda file, short_side: np.zeros((3, 1, 1), np.uint8)
    for time in ("first", "then"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent, _ = seconds(lambda: images.open_images(str(folder / "files"), 1, cache_dir=folder, quiet=True))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
        print(f"opening {count} files, {time}: {spent:.2f} s, peak memory grew by {grown:.0f} MB")


class Plain(Dataset[Tensor]):
    """What a torchvision script does with the same files."""

    def __init__(self, files: list[Path]) -> None:
        from torchvision import transforms

        self.files = files
        self.change = transforms.Compose(
            [transforms.Resize(96), transforms.CenterCrop(96), transforms.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        return self.change(Image.open(self.files[row]).convert("RGB"))


def decoding(folder: Path, kept: Path) -> None:
    files = sorted(folder.rglob("*.jpg"))
    for side in (96, 256):
        spent, _ = seconds(partial(lambda side: [decode(file, side) for file in files[:60]], side))
        print(f"decoding one at {side} px: {1e3 * spent / len(files[:60]):.2f} ms")
    train = images.open_images(str(folder), 64, short_side=96, cache_dir=kept, cache_gb=0, quiet=True).train
    batches = len(train) // 64
    with Loader(train, 64, 0).iterate(0) as ours:
        spent, _ = seconds(lambda: [() for _ in itertools.islice(ours, batches)])
    print(f"decoded at each use: {1e3 * spent / (64 * batches):.2f} ms an image")
    theirs = DataLoader(Plain(files), 64, shuffle=True, num_workers=2)
    spent, _ = seconds(lambda: [() for _ in theirs])
    print(f"torchvision, two workers: {1e3 * spent / len(files):.2f} ms an image")


def indexing(folder: Path, count: int = 20_000) -> None:
    with tarfile.open(folder / "set.tar", "w") as tar:
        for number, (kind, content) in itertools.product(range(count), (("jpg", b"0" * 9000), ("cls", b"7"))):
            member = tarfile.TarInfo(f"{number:06d}.{kind}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    spent, _ = seconds(lambda: shards._indexed([folder / "set.tar"]))
    print(f"indexing a shard: {1e6 * spent / count:.0f} us a sample")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        indexing(Path(made))
        decoding(Path(sys.argv[1]), Path(made))
        opening(Path(made), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)
