"""Transfer of every method to every task, in one table.

``python -m kintsugi.eval.transfer`` transfers the latest run of each method to the built-in scenes. ``--ckpts`` chooses
other checkpoints; ``--classification``, ``--segmentation``, ``--geometry``, ``--figure-ground`` and ``--detection``
choose other data. Finished results are kept in ``--out``, so that a command that was stopped continues where it was.
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
from kintsugi.eval.classification import Classification, ClassificationSettings
from kintsugi.eval.dense import DenseSettings
from kintsugi.eval.detection import Detection, DetectionSettings
from kintsugi.eval.geometry import Geometry
from kintsugi.eval.results import Results
from kintsugi.eval.segmentation import FigureGround, Segmentation
from kintsugi.eval.tasks import Task
from kintsugi.eval.weights import Weights, joined, saved_weights, with_random
from kintsugi.nets.pixels import Pixels
from kintsugi.nets.pretrained import load_published
from kintsugi.train import checkpoint
from kintsugi.train.compute import Compute
from kintsugi.train.config import parse_command, to_plain, user_errors


@dataclass(frozen=True, kw_only=True)
class TransferConfig(ClassificationSettings, DenseSettings, DetectionSettings):
    """Transfer of all methods to all tasks, against random weights."""

    ckpts: tuple[str, ...] = ()
    """Runs or checkpoints, each a PATH or NAME=PATH; default: the latest run of every method under --runs. Several
    paths with the same NAME are pre-trainings of one row, one for each of the --seeds."""
    published: tuple[str, ...] = ()
    """Published weights, each ENCODER=SOURCE: a name as for --encoder of a training, and a FILE of a state dict,
    torchvision:NAME, timm:NAME or hf:OWNER/REPO."""
    runs: Path = Path("runs")
    """Folder of the methods' runs."""
    train: Literal["", "demo", "small", "paper"] = ""
    """First train the methods that have no run under --runs, with this preset."""
    train_data: str = ""
    """Data for that training; default: the preset's."""

    classification: tuple[str, ...] = ("scenes",)
    """Folders with train/ and test/ of class folders, cifar10, stl10, imagenet:PATH; with several classes per image:
    scenes, voc2007."""
    segmentation: tuple[str, ...] = ("scenes",)
    """Folders with {train,val}/{images,masks}, voc2012, scenes."""
    void: int = VOID
    """The class id to ignore in the masks of --segmentation, besides 255; in CamVid it is mostly 11."""
    geometry: tuple[str, ...] = ("scenes",)
    """Folders with rgb/, depth/ and intrinsics.txt, scenes."""
    figure_ground: tuple[str, ...] = ()
    """Folders with frames/CLIP/ and masks/CLIP/."""
    detection: tuple[str, ...] = ()
    """Data for Faster R-CNN: voc2007, folders like it, scenes."""
    size: int = 64
    """Side of the central squares for classification, px, the same for all weights."""
    pixels: bool = True
    """Add a row for raw pixels."""
    out: Path = Path("runs/transfer")
    """Folder for the report and the finished results."""


def run(config: TransferConfig) -> Results:
    """Runs all experiments, prints the table and writes the report into ``--out``."""
    weights = with_random([*_checkpoints(config), *_published(config)])
    compute = report.opened(config, weights)
    if config.pixels:
        weights.append(Weights("pixels", Pixels().plain(), ({},)))
    return report.transfer(weights, tasks_of(config, compute), config.seeds, config.out, compute, to_plain(config))


def _checkpoints(config: TransferConfig) -> list[Weights]:
    """The weights of ``--ckpts``, or of the latest runs."""
    named = [_named(spec) for spec in config.ckpts] or _latest(config)
    weights: list[Weights] = []
    for name, path in named:
        found = saved_weights(path, name=name or _title(path))[1]
        if not name and (twice := {one.name for one in found} & {one.name for one in weights}):
            raise ValueError(f"two rows are called {min(twice)}: name them, as in --ckpts first={path}")
        weights += found
    return joined(weights)


def _latest(config: TransferConfig) -> list[tuple[str, Path]]:
    """Name (empty) and path of the latest run of each method. With ``--train``, missing runs are trained first."""
    for method in METHODS:
        name = method.name
        if config.train and not (config.runs / name / "latest").exists():
            data = ["--data", config.train_data] if config.train_data else []
            command = [sys.executable, "-m", method.module, "--preset", config.train, "--runs", str(config.runs), *data]
            print(f"training {name}: {' '.join(command[1:])}", flush=True)
            if subprocess.run(command, check=False).returncode:
                print(f"warning: {name} could not be trained; its row is left out", file=sys.stderr)
    candidates = [config.runs / method.name / "latest" for method in METHODS]
    found = [("", path) for path in candidates if path.exists()]
    if not found:
        raise ValueError(
            f"no runs under {config.runs}: train a method (make help lists how), train them all with --train demo, "
            "or name checkpoints with --ckpts"
        )
    return found


def _named(spec: str) -> tuple[str, Path]:
    """Name and path from NAME=PATH, or from PATH with the name empty."""
    name, equals, path = spec.partition("=")
    return (name, Path(path)) if equals and not Path(spec).exists() else ("", Path(spec))


def _title(path: Path) -> str:
    """The name of a checkpoint's row: its method, or autoencoder for an inpainter that was trained without holes."""
    content = checkpoint.read(path)[1]
    plain = content["method"] == "inpainting" and content["config"].get("mask") == "none"
    return "autoencoder" if plain else content["method"]


def _published(config: TransferConfig) -> list[Weights]:
    """The weights of ``--published``."""
    weights = []
    for spec in config.published:
        name, equals, source = spec.partition("=")
        if not equals:
            raise ValueError(f"--published {spec}: write ENCODER=SOURCE, as in resnet18=resnet18.safetensors")
        net, match = load_published(name, source)
        print(match.line(source))
        weights.append(Weights(f"{name}, {Path(source).name}", net.spec.plain(), (net.state_dict(),)))
    return weights


def tasks_of(config: TransferConfig, compute: Compute) -> list[Task]:
    """The tasks, one for each kind and data set."""
    return [
        *(Classification(data, config.size, config, compute) for data in config.classification),
        *(Segmentation(data, config, compute, config.void) for data in config.segmentation),
        *(Geometry(data, config, compute) for data in config.geometry),
        *(FigureGround(data, config, compute) for data in config.figure_ground),
        *(Detection(data, config, compute) for data in config.detection),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(TransferConfig, argv))


if __name__ == "__main__":
    main()
