"""What features are worth for naming images, against random weights of the same network.

``python -m kintsugi.eval.classification --ckpt runs/simclr/latest --data caltech101``

Frozen features are computed once: ``knn`` votes among the nearest training images, ``linear`` reads each layer's map,
pooled to about 9,000 numbers, by a linear classifier, ``few`` the same with few labels of each class. ``finetune``
trains all layers; from random weights that is supervised training from scratch. Images may show one class (accuracy) or
several (mean average precision). Learning rate and layer are chosen on a part of the training images; the test images
are used once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kintsugi.data.image_set import Split
from kintsugi.data.images import open_labeled
from kintsugi.data.multilabel import MULTILABEL, open_multilabel
from kintsugi.data.store import Store
from kintsugi.eval.cells import Cell, Machine, Results, RunSettings, Subject, Task, named, settle_statistics, spaced
from kintsugi.eval.features import Features, extract, squares
from kintsugi.eval.finetune import finetune
from kintsugi.eval.linear import probe, some_of_each
from kintsugi.eval.report import Comparison, compare
from kintsugi.metrics.neighbors import classify as knn_classify
from kintsugi.nets.encoder import Encoder
from kintsugi.train import checkpoint
from kintsugi.train.config import parse_command, user_errors, within

Protocol = Literal["knn", "linear", "few", "finetune"]


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings(RunSettings):
    classification_protocols: tuple[Protocol, ...] = ("knn", "linear", "few", "finetune")
    labels: tuple[float, ...] = (0.01, 0.1)
    """Parts of the training labels for few; at least two images of each class are taken."""
    numbers: int = 9000
    """To how many numbers a layer's map is pooled, about, for linear classifiers."""
    steps_linear: int = 500
    """Steps of each linear classifier."""
    batch_linear: int = 256
    """Images per step of a linear classifier."""
    steps_tuned: int = 500
    """Steps of all layers."""
    batch_tuned: int = 64
    """Images per step of all layers."""
    lr_tuned: float = 1e-3
    """AdamW's highest rate for all layers."""
    labeled_scenes: int = 1000
    """How many scenes to train on, where scenes are asked what is in them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, numbers=1, steps_linear=1, batch_linear=1, steps_tuned=1, batch_tuned=1, labeled_scenes=1)
        if not all(0 < part < 1 for part in self.labels):
            raise ValueError(f"--labels must be between 0 and 1, not {self.labels}")


class Classification(Task):
    """data: a folder with train/ and test/ of class folders, cifar10, stl10 or imagenet:PATH, of one class an image; or
    scenes or voc2007, of several. size: side of the central squares that are seen, px."""

    def __init__(self, data: str, size: int, settings: ClassificationSettings, machine: Machine) -> None:
        self.data, self.size, self.given, self.machine = data, size, settings, machine
        store = Store(cache=settings.cache)
        if data in MULTILABEL:
            self.split: Split = open_multilabel(data, size, store, scenes=settings.labeled_scenes)
        else:
            self.split = open_labeled(data, size, store)
        self.several = data in MULTILABEL
        self.name = named(data) if not self.several else f"what is in {data}"
        self.protocols = tuple(
            name
            for protocol in settings.classification_protocols
            for name in (map(percent, settings.labels) if protocol == "few" else [protocol])
            if not (self.several and protocol == "knn")  # votes are for one class
        )

    def settings(self) -> Mapping[str, Any]:
        given = self.given
        return {
            "data": self.data,
            "size": self.size,
            "images": [len(self.split.train), len(self.split.heldout)],
            "linear": [given.numbers, given.steps_linear, given.batch_linear],
            "tuned": [given.steps_tuned, given.batch_tuned, given.lr_tuned],
        }

    def cell(self, subject: Subject, protocol: str, seed: int) -> Cell:
        given = self.given
        if protocol == "finetune":
            found = finetune(
                subject.encoder(),
                self.split.train,
                self.split.heldout,
                len(self.split.train.classes),
                self.size,
                seed,
                given.steps_tuned,
                given.batch_tuned,
                given.lr_tuned,
                self.machine,
            )
            return Cell({"fine-tuned": found})
        train, test = subject.once(self.features)
        if protocol == "knn":
            neighbors = 200 if len(train.labels) > 10_000 else 20
            said = knn_classify(train.vector, train.labels, test.vector, len(self.split.train.classes), neighbors)
            return Cell({"kNN": (said == test.labels).float().mean().item()})
        rows = slice(None)
        if protocol != "linear":
            part = next(part for part in given.labels if percent(part) == protocol)
            rows = some_of_each(train.labels, part, seed, least=2)  # type: ignore[assignment]
        by_layer = {
            stride: probe(
                x[rows],
                train.labels[rows],
                test.layers[stride],
                test.labels,
                seed,
                given.steps_linear,
                given.batch_linear,
            )
            for stride, x in train.layers.items()
        }
        # The best layer is that which is best on the training images kept aside.
        best = max(by_layer.values(), key=lambda scores: scores[1])[0]
        layers = {f"stride {stride}": found[0] for stride, found in by_layer.items()}
        return Cell({protocol: best}, {"by layer": layers})

    def features(self, encoder: Encoder) -> tuple[Features, Features]:
        some = squares(self.split.train, self.size, self.machine, spaced(len(self.split.train), 256))
        settle_statistics(encoder, (image for image, _ in some), self.machine)
        train, test = (
            extract(encoder, images, self.size, self.given.numbers, self.machine)
            for images in (self.split.train, self.split.heldout)
        )
        return train, test


def percent(part: float) -> str:
    return f"{100 * part:g} % of labels"


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config(ClassificationSettings, Comparison):
    """Transfer of a checkpoint's encoders to classification, against random init."""

    data: str = "scenes"
    """A folder with train/ and test/ of class folders, cifar10, stl10 or imagenet:PATH; scenes, voc2007."""
    size: int = 0
    """Side of the central squares that are seen, px; 0 = that of pre-training's crops."""


def run(config: Config) -> Results:
    def task(machine: Machine, file: Path) -> Task:
        size = config.size or checkpoint.load(file)["config"]["size"]
        return Classification(config.data, size, config, machine)

    return compare(config, "classification", task)


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
