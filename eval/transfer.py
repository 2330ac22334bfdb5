"""Every method under every task, in one table.

``python -m kintsugi.eval.transfer`` moves the latest run of each method to the built-in scenes. ``--ckpts`` names
others, ``--classification``, ``--segmentation``, ``--geometry``, ``--figure-ground`` and ``--detection`` other data; a
run that was stopped goes on where it was, for finished cells are kept in ``--out``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kintsugi.catalog import METHODS
from kintsugi.data.pairs import VOID
from kintsugi.eval import report
from kintsugi.eval.cells import Machine, Results, Row, Task, saved_rows, with_random
from kintsugi.eval.classification import Classification, ClassificationSettings
from kintsugi.eval.dense import DenseSettings
from kintsugi.eval.detection import Detection, DetectionSettings
from kintsugi.eval.geometry import Geometry
from kintsugi.eval.segmentation import FigureGround, Segmentation
from kintsugi.nets.pixels import Pixels
from kintsugi.nets.published import load_published
from kintsugi.train import checkpoint
from kintsugi.train.config import parse_command, to_plain, user_errors


@dataclass(frozen=True, kw_only=True)
class Config(ClassificationSettings, DenseSettings, DetectionSettings):
    """Transfer of all methods to all tasks, against random init."""

    ckpts: tuple[str, ...] = ()
    """Runs or checkpoints, each a PATH or NAME=PATH; default: the latest run of every method under --runs."""
    published: tuple[str, ...] = ()
    """Other people's weights, each ARCHITECTURE=FILE: torchvision's or timm's name and its state dict."""
    runs: Path = Path("runs")
    train: Literal["", "demo", "small", "paper"] = ""
    """Train the methods that have no run under --runs, with this preset, before anything is moved."""
    train_data: str = ""
    """What they are trained on; default: the preset's."""

    classification: tuple[str, ...] = ("scenes",)
    """Folders with train/ and test/ of class folders, cifar10, stl10, imagenet:PATH; scenes, voc2007 (several classes
    an image)."""
    segmentation: tuple[str, ...] = ("scenes",)
    """Folders with {train,val}/{images,masks}, voc2012, scenes."""
    void: int = VOID
    """The class id in those masks that counts for nothing, beside 255 (CamVid's is 11, mostly)."""
    geometry: tuple[str, ...] = ("scenes",)
    """Folders with rgb/, depth/ and intrinsics.txt, scenes."""
    figure_ground: tuple[str, ...] = ()
    """Folders with frames/CLIP/ and masks/CLIP/."""
    detection: tuple[str, ...] = ()
    """Faster R-CNN: voc2007, folders like it, scenes."""
    size: int = 64
    """Side of the squares that classification sees, px, the same for all rows."""
    pixels: bool = True
    """A row for raw pixels."""
    out: Path = Path("runs/transfer")
    """Folder for the report and the finished cells."""


def run(config: Config) -> Results:
    """All cells; prints the table and writes the report into ``--out``."""
    machine = Machine.of(config)
    rows = with_random([*_checkpoints(config), *_published(config)])
    if config.pixels:
        rows.append(Row("pixels", Pixels().plain(), {}))
    return report.transfer(rows, _tasks(config, machine), config.seeds, config.out, machine, to_plain(config))


def _checkpoints(config: Config) -> list[Row]:
    named = [_named(spec) for spec in config.ckpts] or _latest(config)
    rows: list[Row] = []
    for name, path in named:
        rows += saved_rows(path, name=name or _title(path))[1]
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two rows are called {twice[0]}: name them, as in --ckpts first={named[0][1]}")
    return rows


def _latest(config: Config) -> list[tuple[str, Path]]:
    """The latest run of each method; missing ones are trained first if that was asked for."""
    for method in METHODS:
        name = method.name
        if config.train and not (config.runs / name / "latest").exists():
            data = ["--data", config.train_data] if config.train_data else []
            command = [sys.executable, "-m", method.module, "--preset", config.train, "--runs", str(config.runs), *data]
            print(f"training {name}: {' '.join(command[1:])}", flush=True)
            if subprocess.run(command, check=False).returncode:
                print(f"warning: {name} could not be trained; its row is left out", file=sys.stderr)
    found = [("", config.runs / method.name / "latest") for method in METHODS]
    there = [(name, path) for name, path in found if path.exists()]
    if not there:
        raise ValueError(
            f"no runs under {config.runs}: train a method (make help lists how), let them all be trained with "
            "--train demo, or name checkpoints with --ckpts"
        )
    return there


def _named(spec: str) -> tuple[str, Path]:
    name, equals, path = spec.partition("=")
    return (name, Path(path)) if equals and not Path(spec).exists() else ("", Path(spec))


def _title(path: Path) -> str:
    """A row's name. An inpainter that was given no holes is a plain autoencoder."""
    content = checkpoint.read(path)[1]
    plain = content["method"] == "inpainting" and content["config"].get("mask") == "none"
    return "autoencoder" if plain else content["method"]


def _published(config: Config) -> list[Row]:
    rows = []
    for spec in config.published:
        name, equals, file = spec.partition("=")
        if not equals:
            raise ValueError(f"--published {spec}: write ARCHITECTURE=FILE, as in resnet18=resnet18.safetensors")
        rows.append(Row(f"{name}, {Path(file).name}", *load_published(name, Path(file))))
    return rows


def _tasks(config: Config, machine: Machine) -> list[Task]:
    return [
        *(Classification(data, config.size, config, machine) for data in config.classification),
        *(Segmentation(data, config, machine, config.void) for data in config.segmentation),
        *(Geometry(data, config, machine) for data in config.geometry),
        *(FigureGround(data, config, machine) for data in config.figure_ground),
        *(Detection(data, config, machine) for data in config.detection),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
