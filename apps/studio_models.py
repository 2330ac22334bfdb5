"""What the page uses of the other programs: it lists the checkpoints, loads them and runs them on one photo.

Everything that depends on how a network is found, loaded or called is in this file. Images are (3,H,W) in [0,1].
Functions raise ValueError with one line if a checkpoint is missing, damaged or of another method.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kintsugi.apps.mend import Detail, Mending
from kintsugi.apps.studio_mend import MendPhoto
from kintsugi.apps.surfaces import surfaces
from kintsugi.catalog import METHODS
from kintsugi.nets.colorizer import Colorizer, colorize, with_hints
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.srresnet import SCALE, SRResNet, pieces
from kintsugi.nets.surface_net import SurfaceNet
from kintsugi.recon.colorization import Colorization, load_colorizer
from kintsugi.recon.painters import METHODS as MENDERS
from kintsugi.recon.superresolution import SuperResolution, load_upscaler
from kintsugi.recon.synthetic import Synthetic, SyntheticConfig, load_net
from kintsugi.train import checkpoint, shipped

COLORIZERS, UPSCALERS, SURFACES = (Colorization.name,), (SuperResolution.name,), (Synthetic.name,)
EVERY = tuple(program.name for program in METHODS)
ENLARGED = SCALE

Progress = Callable[[float, str], object]
"""Receives how much is done, in [0,1], and what is being done, in a few words."""


@dataclass(frozen=True)
class Models:
    """Where the checkpoints are, and the device on which they run."""

    runs: Path
    device: torch.device
    extra: Path | None = None
    """A run's folder or a checkpoint that is offered too, before all others."""
    extra_method: str = ""
    """The method of ``extra``."""

    @staticmethod
    def of(runs: Path, device: torch.device, extra: Path | None) -> Models:
        """Reads the method of ``extra``. Raises ValueError with one line if it is not a checkpoint."""
        method = "" if extra is None else checkpoint.read(extra)[1]["method"]
        return Models(runs, device, extra, method)

    def choices(self, methods: tuple[str, ...]) -> list[tuple[str, str]]:
        """The checkpoints of some methods: what the person reads, and the path.

        First the person's own runs, the newest one first, then the weights that ship with this package.
        """
        found = [run for method in methods for run in _runs(self.runs / method)]
        found.sort(key=lambda run: run.stat().st_mtime, reverse=True)
        named = [(f"{run.parent.name}, {run.name}", str(run)) for run in found]
        if self.extra is not None and self.extra_method in methods:
            named.insert(0, (f"{self.extra_method}, {self.extra}", str(self.extra)))
        return named + [
            (f"{file.stem}, ships with Kintsugi", str(file))
            for file in sorted(shipped.FOLDER.glob(f"*{shipped.SUFFIX}"))
            if shipped.method_of(file) in methods
        ]

    def mender(self, choice: str | None, detail: Detail, progress: Progress) -> MendPhoto:
        """What mends: photo, mask (1,H,W), 1 = hole, and seed -> the mended photo, unchanged outside the hole."""
        mending = _mending(*self._key(choice, MENDERS))

        def mend_photo(image: Tensor, mask: Tensor, seed: int) -> Tensor:
            progress(0.0, "mending")
            return mending(image, mask, detail, seed, lambda done: progress(done, "mending"))

        return mend_photo

    def colorize(self, image: Tensor, colors: Tensor, known: Tensor, choice: str | None) -> Tensor:
        """Colorizes a photo; hints are ``colors`` (3,H,W) where ``known`` (1,H,W) is 1. Its lightness is unchanged.

        Raises ValueError if there are hints but the network was trained without.
        """
        net = _colorizer(*self._key(choice, COLORIZERS))
        image, colors, known = (x.to(self.device) for x in (image, colors, known))
        if not known.any():
            return colorize(image, net).cpu()
        if not net.spec.hints:
            raise ValueError("This network was trained without hints: choose another one, or remove your points")
        return colorize(with_hints(image, colors, known), net, known=known).cpu()

    def upscale(self, image: Tensor, choice: str | None, progress: Progress) -> Tensor:
        """Enlarges a photo four times -> (3,4H,4W)."""
        net = _upscaler(*self._key(choice, UPSCALERS))
        _, height, width = image.shape
        large, done = torch.empty(3, SCALE * height, SCALE * width), 0
        for top, left, piece in pieces(image, net):
            large[:, top : top + piece.shape[1], left : left + piece.shape[2]] = piece
            done += piece[0].numel()
            progress(done / large[0].numel(), "enlarging")
        return large

    def surfaces(self, image: Tensor, choice: str | None) -> list[Tensor]:
        """Pictures of the photo's depth, normals and contours, each (3,H,W)."""
        net, trained = _surface_net(*self._key(choice, SURFACES))
        side = trained.short_side or round(1.5 * trained.size)
        return [picture.cpu() for picture in surfaces(image.to(self.device), net, side, trained.channels)]

    def encoder(self, choice: str | None) -> Encoder:
        """The encoder of any method's checkpoint."""
        return _encoder(*self._key(choice, EVERY))

    def _key(self, choice: str | None, methods: tuple[str, ...]) -> tuple[Path, float, torch.device]:
        """What decides whether a loaded network is still the chosen one: path, time of its last change, device.

        Raises ValueError with one line if nothing is chosen, or if it is not there anymore.
        """
        if not choice:
            raise ValueError(none_yet(methods))
        path = checkpoint.resolve(Path(choice))
        if not path.exists():
            raise ValueError(f"{path} is not there anymore: reload this page, then choose another network")
        return path, os.path.getmtime(path), self.device


def none_yet(methods: tuple[str, ...]) -> str:
    """What a person reads where there is no network of these methods."""
    return f"There is no network for this yet: run make train-{methods[0]}, then reload this page"


def _runs(folder: Path) -> list[Path]:
    """The runs of one method that have a checkpoint."""
    if not folder.is_dir():
        return []
    return [run for run in folder.iterdir() if run.is_dir() and any(run.glob("*.pt"))]


# Each keeps the network that was used last, until another is chosen or its file changes.


@functools.lru_cache(maxsize=1)
def _mending(path: Path, changed: float, device: torch.device) -> Mending:
    return Mending(path, device)


@functools.lru_cache(maxsize=1)
def _colorizer(path: Path, changed: float, device: torch.device) -> Colorizer:
    return load_colorizer(path, device)


@functools.lru_cache(maxsize=1)
def _upscaler(path: Path, changed: float, device: torch.device) -> SRResNet:
    return load_upscaler(path, device)


@functools.lru_cache(maxsize=1)
def _surface_net(path: Path, changed: float, device: torch.device) -> tuple[SurfaceNet, SyntheticConfig]:
    return load_net(path, device)


@functools.lru_cache(maxsize=1)
def _encoder(path: Path, changed: float, device: torch.device) -> Encoder:
    return checkpoint.load_encoder(path).to(device)
