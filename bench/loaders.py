"""Speed of making two augmented views of each JPEG in a folder, compared with the loaders of other libraries.

Run ``make bench``, or ``python -m bench.loaders --data FOLDER`` with lightly and stable-pretraining installed. All
loaders make the same crops and colors (SimCLR's) in batches of the same size, with two workers. "ours" is one process
with two threads, as in training with one process. "ours, ranks" is two processes with one thread each, which share
every batch, as under torchrun.

In each round every loader makes one pass of several epochs, one loader after the other. Figures are medians over the
rounds. "ours, first pass" is one epoch with an empty cache; it includes decoding and writing the cache.
"""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.transforms import v2
from tqdm import tqdm

from bench.common import RESULTS, photos, write
from kintsugi.contrastive import simclr
from kintsugi.data.images import open_images
from kintsugi.data.loader import Loader
from kintsugi.data.store import Store
from kintsugi.train.config import parse_command, user_errors
from kintsugi.train.dist import World, keep_freed_memory

Pass = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""A function that makes one pass over the folder. It yields the two views of each batch, float (n,3,S,S)."""


@dataclass(frozen=True, kw_only=True)
class LoadersConfig:
    """Compares the speed of our views with lightly, stable-pretraining and torchvision."""

    data: Path | None = None
    """A folder of class folders of JPEG files; default: built-in scenes, written at ImageNet's usual size."""
    like_imagenet: bool = False
    """Resize the photos of --data to ImageNet's usual size first."""
    sizes: tuple[int, ...] = (64, 224)
    """Sides of the views, px."""
    batch: int = 64
    """Images per batch."""
    workers: int = 2
    """Worker processes of the other loaders, and processes of "ours, ranks"."""
    rounds: int = 3
    """Number of passes of each loader."""
    epochs: int = 16
    """Epochs of each pass. The time of starting workers is included; they stay alive between epochs. "ours, first pass"
    has one epoch."""
    images: int = 512
    """Largest number of images to use."""
    out: Path = RESULTS
    """Folder for loaders.json and loaders.png."""


class Ours:
    """A ``Pass`` with this project's loader and SimCLR's views. Decoded images are kept in the folder ``cache``.

    With one rank, this process does all the work. With more, that many processes of one thread each share every batch;
    this process is rank 0.
    """

    def __init__(self, folder: Path, size: int, config: LoadersConfig, cache: Path, ranks: int = 1) -> None:
        self.folder, self.size, self.config, self.cache = folder, size, config, cache
        settings = simclr.SimCLRConfig(size=size, batch=config.batch)
        worlds = [World(torch.device("cpu"), rank, ranks) for rank in range(ranks)]
        self.methods = [simclr.SimCLR(settings, world) for world in worlds]

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        mine, *theirs = self.methods
        if not theirs:
            yield from self.views(mine)
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        fork = multiprocessing.get_context("fork")
        others = [fork.Process(target=self.discard_views, args=(method,)) for method in theirs]
        for process in others:
            process.start()
        yield from self.views(mine)
        for process in others:
            process.join()
            assert process.exitcode == 0
        torch.set_num_threads(threads)

    def views(self, method: simclr.SimCLR) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the two views of this rank's share of each batch."""
        config, world = self.config, method.world
        split = open_images(str(self.folder), self.size, Store(cache=self.cache, quiet=True))
        loader = Loader(split.train, config.batch, seed=0, rank=world.rank, world=world.size)
        with loader.iterate(0) as batches:
            for step in range(config.epochs * (len(split.train) // config.batch)):
                batch = next(batches)
                yield method.view(batch, 0, step), method.view(batch, 1, step)

    def discard_views(self, method: simclr.SimCLR) -> None:
        """Does the work of another rank in a process of its own, and drops the views."""
        torch.set_num_threads(1)
        for _ in self.views(method):
            pass


class FirstPass(Ours):
    """As ``Ours``, but each pass starts with an empty cache."""

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with tempfile.TemporaryDirectory() as empty:
            self.cache = Path(empty)
            yield from super().__call__()


def transform(size: int) -> v2.Compose:
    """SimCLR's augmentation with torchvision: PIL image -> float (3,S,S) in [0,1], where S is ``size``, px."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(size, scale=(0.08, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2))], 0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def passes(data: Dataset[Any], config: LoadersConfig, views: Callable[[Any], Sequence[Tensor]]) -> Pass:
    """A ``Pass`` with torch's DataLoader. views: picks the two views from a batch of ``data``."""

    def one() -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            data,
            config.batch,
            shuffle=True,
            num_workers=config.workers,
            drop_last=True,
            persistent_workers=config.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
        for batch in itertools.chain.from_iterable(itertools.repeat(loader, config.epochs)):
            first, second = views(batch)
            yield first, second

    return one


def torchvision_pass(folder: Path, size: int, config: LoadersConfig) -> Pass:
    """A ``Pass`` with torchvision's ImageFolder and transforms."""
    one = transform(size)
    data = datasets.ImageFolder(folder, lambda image: (one(image), one(image)))
    return passes(data, config, lambda found: found[0])


def lightly_pass(folder: Path, size: int, config: LoadersConfig) -> Pass:
    """A ``Pass`` with lightly's transform, and torchvision's ImageFolder, of which lightly's data set is a wrapper."""
    from lightly.transforms import SimCLRTransform

    data = datasets.ImageFolder(folder, SimCLRTransform(input_size=size, cj_strength=1.0))
    return passes(data, config, lambda found: found[0])


def stable_pretraining_pass(folder: Path, size: int, config: LoadersConfig) -> Pass:
    """A ``Pass`` with stable-pretraining's data set and transforms."""
    from stable_pretraining.data import FromTorchDataset, transforms

    def view() -> transforms.Compose:
        return transforms.Compose(
            transforms.RGB(),
            transforms.RandomResizedCrop((size, size), scale=(0.08, 1)),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.PILGaussianBlur(p=0.5),
            transforms.ToImage(mean=[0.485, 0.456, 0.406], std=[0.229] * 3),
        )

    both = transforms.MultiViewTransform([view(), view()])
    data = FromTorchDataset(datasets.ImageFolder(folder), ["image", "label"], transform=both)
    return passes(data, config, lambda found: [view["image"] for view in found["views"]])


PEERS = {"lightly": lightly_pass, "stable_pretraining": stable_pretraining_pass, "torchvision": torchvision_pass}
"""Package of another library -> the function that makes its ``Pass``."""


def rate(one: Pass, batch: int) -> float:
    """Images per second of one whole pass, including its start.

    batch: images per global batch. The views that the pass yields may be one rank's share of it.
    """
    start, count = time.perf_counter(), 0
    for first, second in one():
        assert first.shape == second.shape
        assert batch % len(first) == 0
        count += batch
    return count / (time.perf_counter() - start)


def measure(config: LoadersConfig, folder: Path, size: int) -> dict[str, float]:
    """Images per second of each loader for views of ``size`` px, median over the rounds."""
    with tempfile.TemporaryDirectory() as cache:
        contenders: dict[str, Pass] = {
            "ours": Ours(folder, size, config, Path(cache)),
            "ours, ranks": Ours(folder, size, config, Path(cache), config.workers or 1),
            "ours, first pass": FirstPass(folder, size, replace(config, epochs=1), Path(cache)),
        }
        contenders |= {
            name: make(folder, size, config) for name, make in PEERS.items() if importlib.util.find_spec(name)
        }
        rate(contenders["ours"], config.batch)  # fills the cache
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in tqdm(range(config.rounds), desc=f"{size} px", unit="round"):
            for name, one in contenders.items():
                rates[name].append(rate(one, config.batch))
    return {name: round(statistics.median(found), 1) for name, found in rates.items()}


def run(config: LoadersConfig) -> None:
    keep_freed_memory()  # as in every training run
    with photos(config.data, config.images, config.like_imagenet) as folder:
        rates = {f"{size} px": measure(config, folder, size) for size in config.sizes}
    ratios = {
        f"{ours}, over": {
            size: {name: round(found[ours] / value, 2) for name, value in found.items() if name != ours}
            for size, found in rates.items()
        }
        for ours in ("ours", "ours, ranks")
    }
    settings = asdict(config) | {"data": (config.data or Path("scenes")).name, "out": ""}
    result = {"images a second": rates, **ratios, "settings": settings}
    write(result, {f"two views, {size}: images/s": found for size, found in rates.items()}, config.out, "loaders")


if __name__ == "__main__":
    with user_errors():
        run(parse_command(LoadersConfig))
