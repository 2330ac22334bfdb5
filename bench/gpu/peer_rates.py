"""Images/s of SimCLR's training step with the views of other libraries: all else is the same network, loss, optimizer.

lightly and torchvision make views in worker processes, from JPEG files. stable-pretraining makes them on the GPU, from
decoded images, as ours are made; its other, slower way is measured too where the package can be imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.common import wait
from bench.gpu.record import Row
from bench.loaders import PEERS, LoadersConfig, Pass
from kintsugi.contrastive.views import ViewsConfig, ViewsMethod
from kintsugi.train.dist import World

os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"  # else lightly asks the network when it is imported
ON_GPU = "stable-pretraining, on the GPU"
NAMES = ("lightly", ON_GPU, "stable_pretraining", "torchvision")
_WARM = 5  # steps that are not counted: workers start, kernels are chosen


class Peers:
    """The other libraries, on random images of CIFAR's or ImageNet's size, which are made in ``folder``."""

    def __init__(self, folder: Path, config: ViewsConfig, tiny: bool) -> None:
        self.folder, self.config = folder, config
        self.workers = 0 if tiny else max(1, (os.cpu_count() or 1) - 1)
        self.side = (32, 32) if config.size == 32 else (500, 375)

    def rate(self, name: str, build: Callable[[World], ViewsMethod], world: World, seconds: float) -> Row:
        """Images/s with the views of a library. Raises ImportError if it is not there or does not work here."""
        try:
            views = self._on_gpu(world.device) if name == ON_GPU else self._from_files(name)
        except Exception as error:  # for example, a version that does not fit torchvision's
            raise ImportError(f"{type(error).__name__}: {error}") from error
        method: Any = build(world).to(world.device)
        world.place(method.children(), channels_last=True)
        done, since = 0, time.perf_counter()
        for number, pair in enumerate(views()):
            both = torch.stack([view.to(world.device, non_blocking=True) for view in pair])
            method.update({"global": both}, 0)
            done += both.shape[1]
            if number == _WARM:
                wait(world.device)
                done, since = 0, time.perf_counter()
            elif number > _WARM and time.perf_counter() - since > seconds:
                break
        wait(world.device)
        return {"images/s": round(done / (time.perf_counter() - since), 1)}

    def _from_files(self, name: str) -> Pass:
        """The views that a library's own loader makes of JPEG files."""
        if not self.folder.exists():
            _write_photos(self.folder / "all", max(512, 4 * self.config.batch) if self.workers else 8, self.side)
        settings = LoadersConfig(batch=self.config.batch, workers=self.workers, epochs=1000)
        return PEERS[name](self.folder, self.config.size, settings)

    def _on_gpu(self, device: torch.device) -> Pass:
        """stable-pretraining's views of a batch of decoded images on the device."""
        made, config = gpu_transforms(), self.config
        kernel = max(3, 2 * (config.size // 20) + 1)
        chain = [
            made.GPURandomResizedCrop(config.size, (0.08, 1)),
            made.GPURandomHorizontalFlip(),
            made.GPUColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
            made.GPURandomGrayscale(p=0.2),
            *([made.GPUGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5)] if config.blur else []),
        ]
        both = made.StackedMultiView(nn.Sequential(*chain)).to(device)
        width, height = (32, 32) if config.size == 32 else (340, 256)  # as ours are stored
        pixels = torch.randint(0, 256, (config.batch, 3, height, width), dtype=torch.uint8, device=device)

        def views() -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                first, second = (view["image"] for view in both({"image": pixels.float() / 255})["views"])
                yield first, second

        return views


def _write_photos(folder: Path, count: int, side: tuple[int, int]) -> None:
    """JPEG files of random fields of color, which take as long to decode as photos of this width and height, px."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (max(2, side[1] // 8), max(2, side[0] // 8), 3), dtype=np.uint8))
        coarse.resize(side, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def gpu_transforms() -> ModuleType:
    """stable-pretraining's module of transforms on the GPU, without the package's other needs."""
    package = importlib.util.find_spec("stable_pretraining")
    if package is None or not package.submodule_search_locations:
        raise ImportError("stable_pretraining is not installed")
    file = Path(package.submodule_search_locations[0]) / "data/gpu_transforms.py"
    spec = importlib.util.spec_from_file_location("stable_pretraining_gpu_transforms", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
