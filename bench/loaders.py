"""Two augmented views of each image of a folder of JPEG: images a second, side by side with peers' loaders.

``make bench``; or ``python -m bench.loaders --data FOLDER``, with lightly and stable-pretraining installed. All have
the same crops and colors (SimCLR's), the same batches and two workers (ours: as many threads of one process, as in a
training by one; "ranks": as many processes of one thread that share each batch, as in one by torchrun). In each round
every contender makes a pass of some epochs, one after the other; figures are medians over the rounds. "first pass" is
one epoch of ours with an empty cache: decoding, writing it and the views.
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
"""One pass over the folder: batches of two views (n,3,S,S), float."""


@dataclass(frozen=True, kw_only=True)
class LoadersConfig:
    """Our views beside those of lightly, stable-pretraining and torchvision."""

    data: Path | None = None
    """A folder of class folders of JPEG; default: built-in scenes, written at ImageNet's size."""
    like_imagenet: bool = False
    """Photos of --data are brought to that size as well first."""
    sizes: tuple[int, ...] = (64, 224)
    batch: int = 64
    workers: int = 2
    rounds: int = 3
    epochs: int = 16
    """Of each pass, whose start counts as well; workers stay from one epoch to the next. A first pass has one."""
    images: int = 512
    """How many of the folder's images, at most."""
    out: Path = RESULTS
    """Where loaders.json and loaders.png are written."""


class Ours:
    """This project's loader and SimCLR's views, from a cache in ``cache``; by one process, or by ``ranks`` of one
    thread, this one among them."""

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
        others = [fork.Process(target=self.unseen, args=(method,)) for method in theirs]
        for process in others:
            process.start()
        yield from self.views(mine)
        for process in others:
            process.join()
            assert process.exitcode == 0
        torch.set_num_threads(threads)

    def views(self, method: simclr.SimCLR) -> Iterator[tuple[Tensor, Tensor]]:
        """Of its rank's part of each batch."""
        config, world = self.config, method.world
        split = open_images(str(self.folder), self.size, Store(cache=self.cache, quiet=True))
        loader = Loader(split.train, config.batch, seed=0, rank=world.rank, world=world.size)
        with loader.iterate(0) as batches:
            for step in range(config.epochs * (len(split.train) // config.batch)):
                batch = next(batches)
                yield method.view(batch, 0, step), method.view(batch, 1, step)

    def unseen(self, method: simclr.SimCLR) -> None:
        torch.set_num_threads(1)
        for _ in self.views(method):
            pass


class FirstPass(Ours):
    """The same with an empty cache, each time anew."""

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with tempfile.TemporaryDirectory() as empty:
            self.cache = Path(empty)
            yield from super().__call__()


def transform(size: int) -> v2.Compose:
    """SimCLR's, of torchvision: PIL image -> float (3,S,S)."""
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
    """Passes of torch's own loader; ``views``: where the two are in a batch of ``data``."""

    def one() -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            data,
            config.batch,
            shuffle=True,
            num_workers=config.workers,
            drop_last=True,
            persistent_workers=config.workers > 0,
        )
        for batch in itertools.chain.from_iterable(itertools.repeat(loader, config.epochs)):
            first, second = views(batch)
            yield first, second

    return one


def torchvisions(folder: Path, size: int, config: LoadersConfig) -> Pass:
    one = transform(size)
    data = datasets.ImageFolder(folder, lambda image: (one(image), one(image)))
    return passes(data, config, lambda found: found[0])


def lightlys(folder: Path, size: int, config: LoadersConfig) -> Pass:
    from lightly.data import LightlyDataset
    from lightly.transforms import SimCLRTransform

    data = LightlyDataset(str(folder), transform=SimCLRTransform(input_size=size, cj_strength=1.0))
    return passes(data, config, lambda found: found[0])


def stable_pretrainings(folder: Path, size: int, config: LoadersConfig) -> Pass:
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


PEERS = {"lightly": lightlys, "stable_pretraining": stable_pretrainings, "torchvision": torchvisions}


def rate(one: Pass, batch: int) -> float:
    """Images a second of a whole pass, its start included. batch: of all ranks."""
    start, count = time.perf_counter(), 0
    for first, second in one():
        assert first.shape == second.shape
        assert batch % len(first) == 0
        count += batch
    return count / (time.perf_counter() - start)


def measure(config: LoadersConfig, folder: Path, size: int) -> dict[str, float]:
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
    keep_freed_memory()  # as every training does
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
