"""Transfer of features to image classification, against random weights of the same network.

``python -m kintsugi.eval.classification --ckpt runs/simclr/latest --data caltech101``

Frozen features are computed once. ``knn`` classifies by the nearest training images. ``linear`` trains a linear
classifier on each layer's map, pooled to about 9,000 features, and reports the best layer; then one on the average of
the coarsest map, as most papers do (``linear, pooled``). ``few`` does both with few labels of each class; ``shots``
has 1, 5 and 10 images of each class, and predicts the class of the nearest mean. ``finetune`` trains all layers; from
random weights that is supervised training from scratch. The figure is accuracy or, with several classes per image, mean
average precision. Learning rate and layer are chosen on held-out training images; the test images are used once, at the
end.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from kintsugi.data.image_set import Split
from kintsugi.data.images import open_labeled
from kintsugi.data.multilabel import MULTILABEL, open_multilabel
from kintsugi.data.store import Store
from kintsugi.eval.features import Features, central_squares, extract
from kintsugi.eval.finetune import finetune
from kintsugi.eval.linear import Inputs, probe, some_of_each
from kintsugi.eval.minimize import check_rates, layer_decay
from kintsugi.eval.report import Comparison, compare
from kintsugi.eval.results import Result, Results
from kintsugi.eval.tasks import FrozenFeatures, RunSettings, Task, data_name, evenly_spaced
from kintsugi.metrics.neighbors import accuracy, class_means, nearest
from kintsugi.nets.encoder import Encoder
from kintsugi.rng import derive_seed
from kintsugi.train import checkpoint
from kintsugi.train.compute import Compute
from kintsugi.train.config import parse_command, user_errors, within
from kintsugi.train.inference import fit_batch_norms

Protocol = Literal["knn", "linear", "few", "shots", "finetune"]
DRAWS = 10
"""The figure of few shots is the mean over so many draws of the labeled images, because single draws vary much."""


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings(RunSettings):
    """Options of classification."""

    classification_protocols: tuple[Protocol, ...] = ("knn", "linear", "few", "shots", "finetune")
    """knn: nearest neighbors; linear: a linear classifier; few: the same with few labels; shots: nearest means of very
    few images; finetune: trains all layers."""
    labels: tuple[float, ...] = (0.01, 0.1)
    """Fractions of the training labels that few uses; at least two images of each class."""
    shots: tuple[int, ...] = (1, 5, 10)
    """Images of each class that shots uses."""
    pooled_features: int = 9000
    """For linear classifiers, each layer's map is pooled to about this many features."""
    steps_linear: int = 500
    """Steps of each linear classifier."""
    batch_linear: int = 256
    """Images per step of a linear classifier."""
    steps_tuned: int = 500
    """Steps of fine-tuning."""
    batch_tuned: int = 64
    """Images per step of fine-tuning."""
    lr_tuned: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """AdamW's highest learning rate in fine-tuning. If there are several, each is tried, and the best is chosen on a
    held-out tenth of the training images."""
    labeled_scenes: int = 1000
    """Number of training scenes, if the data is scenes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, pooled_features=1, steps_linear=1, batch_linear=1, steps_tuned=1, batch_tuned=1, labeled_scenes=1)
        if not all(0 < fraction < 1 for fraction in self.labels):
            raise ValueError(f"--labels must be between 0 and 1, not {self.labels}")
        if not all(shots >= 1 for shots in self.shots):
            raise ValueError(f"--shots must be at least 1, not {self.shots}")
        check_rates("--lr-tuned", self.lr_tuned)


@dataclass(frozen=True)
class SplitFeatures:
    """Features of the training and of the test images, and the inputs of linear classifiers on them, of type
    ``dtype``."""

    train: Features
    test: Features
    dtype: torch.dtype

    @functools.cached_property
    def layers(self) -> dict[int, Inputs]:
        """stride -> the inputs of a classifier on that layer, with all labels."""
        return {stride: Inputs(x, self.test.layers[stride], self.dtype) for stride, x in self.train.layers.items()}

    @functools.cached_property
    def vector(self) -> Inputs:
        """The inputs of a classifier on the coarsest map's average, with all labels."""
        return Inputs(self.train.vector, self.test.vector, self.dtype)


class Classification(Task):
    """Predicts an image's class, or which classes it shows.

    data: one class per image: a folder with train/ and test/ of class folders, cifar10, stl10 or imagenet:PATH; several
    classes per image: scenes or voc2007. size: side of the central squares that the network sees, px.
    """

    def __init__(self, data: str, size: int, config: ClassificationSettings, compute: Compute) -> None:
        self.data, self.size, self.config, self.compute = data, size, config, compute
        self.several = data in MULTILABEL  # several classes per image
        store = Store(cache=config.cache)
        if self.several:
            self.split: Split = open_multilabel(data, size, store, scenes=config.labeled_scenes)
        else:
            self.split = open_labeled(data, size, store)
        self.name = data_name(data) if not self.several else f"what is in {data}"
        self.fractions = {percent(fraction): fraction for fraction in config.labels}
        self.shots = {f"{shots}-shot": shots for shots in config.shots}
        names: Mapping[str, Iterable[str]] = {"few": self.fractions, "shots": self.shots}
        self.protocols = tuple(
            name
            for protocol in config.classification_protocols
            for name in names.get(protocol, [protocol])
            if not (self.several and protocol in ("knn", "shots"))  # these predict one class
        )

    def settings(self, protocol: str) -> Mapping[str, Any]:
        config = self.config
        own: dict[str, Any] = {}
        if protocol == "finetune":
            own["tuned"] = [config.steps_tuned, config.batch_tuned, *config.lr_tuned]
        elif protocol == "linear" or protocol in self.fractions:
            own["linear"] = ["best and pooled", config.pooled_features, config.steps_linear, config.batch_linear]
        images = [len(self.split.train), len(self.split.heldout)]
        return {"data": self.data, "size": self.size, "images": images, **own}

    def measure(self, features: FrozenFeatures, protocol: str, seed: int) -> Result:
        if protocol == "finetune":
            figure, rate = self._finetuned(features, seed)
            return Result({"fine-tuned": figure}, {"learning rate": rate})
        found = features.once(self.features)
        train, test = found.train, found.test
        if protocol == "knn":
            return Result({"kNN": self._knn(train, test)})
        if protocol in self.shots:
            return Result({protocol: few_shots(train, test, len(self.split.train.classes), self.shots[protocol], seed)})
        return self._linear(found, protocol, seed)

    def _finetuned(self, features: FrozenFeatures, seed: int) -> tuple[float, float]:
        """The score, in [0,1], after fine-tuning, and the learning rate that was chosen."""
        config, split = self.config, self.split
        return finetune(
            features.encoder,
            split.train,
            split.heldout,
            len(split.train.classes),
            self.size,
            seed,
            config.steps_tuned,
            config.batch_tuned,
            config.lr_tuned,
            self.compute,
            layer_decay(features.weights),
        )

    def _knn(self, train: Features, test: Features) -> float:
        """Accuracy, in [0,1], of 20 nearest neighbors; of 200 if there are more than 10,000 training images."""
        neighbors = 200 if len(train.labels) > 10_000 else 20
        classes = len(self.split.train.classes)
        return accuracy(train.vector, train.labels, test.vector, test.labels, classes, neighbors)

    def _linear(self, features: SplitFeatures, protocol: str, seed: int) -> Result:
        """Scores of linear classifiers, with all labels or few: on the best layer, and on the coarsest map's average.

        details: the score on each layer.
        """
        config, train, test = self.config, features.train, features.test
        labels, layers, vector = train.labels, features.layers, features.vector
        if protocol != "linear":
            rows = some_of_each(labels, self.fractions[protocol], seed, least=2)
            labels = labels[rows]
            layers = {s: Inputs(x[rows], test.layers[s], self.compute.dtype) for s, x in train.layers.items()}
            vector = Inputs(train.vector[rows], test.vector, self.compute.dtype)

        def scores(inputs: Inputs) -> tuple[float, float]:
            return probe(inputs, labels, test.labels, seed, config.steps_linear, config.batch_linear)

        by_layer = {stride: scores(inputs) for stride, inputs in layers.items()}
        # The best layer is the one that is best on held-out training images.
        best = max(by_layer.values(), key=lambda found: found[1])[0]
        pooled = scores(vector)[0]
        each = {f"stride {stride}": found[0] for stride, found in by_layer.items()}
        return Result({protocol: best, f"{protocol}, pooled": pooled}, {"by layer": each})

    def features(self, encoder: Encoder) -> SplitFeatures:
        """Fits the encoder's batch norms; then the features of the training and of the test images."""
        train, test = self.split.train, self.split.heldout
        some = central_squares(train, self.size, self.compute, evenly_spaced(len(train), 256))
        fit_batch_norms(encoder, (image for image, _ in some), self.compute)
        first, second = (
            extract(encoder, images, self.size, self.config.pooled_features, self.compute) for images in (train, test)
        )
        return SplitFeatures(first, second, self.compute.dtype)


def few_shots(train: Features, test: Features, classes: int, shots: int, seed: int) -> float:
    """Accuracy, in [0,1], of the nearest class mean of ``shots`` images of each class, the mean over ``DRAWS`` draws.

    The center of the features is that of all training images, which takes no labels.
    """
    center = train.vector.mean(0)
    hits = []
    for draw in range(DRAWS):
        rows = some_of_each(train.labels, 0.0, derive_seed(seed, draw), least=shots)
        means = class_means(train.vector[rows] - center, train.labels[rows], classes)
        hits.append((nearest(means, test.vector - center) == test.labels).float().mean().item())
    return statistics.fmean(hits)


def percent(fraction: float) -> str:
    """The name of the protocol with this fraction of the labels."""
    return f"{100 * fraction:g} % of labels"


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(ClassificationSettings, Comparison):
    """Transfer of a checkpoint's encoders to classification, against random weights."""

    data: str = "scenes"
    """A folder with train/ and test/ of class folders, cifar10, stl10 or imagenet:PATH; scenes, voc2007."""
    size: int = 0
    """Side of the central squares that the network sees, px; 0 = the size of pre-training's crops."""


def run(config: ClassificationConfig) -> Results:
    """Runs the experiments, prints the table and writes the report; returns the results."""

    def task(compute: Compute, file: Path) -> Task:
        size = config.size or checkpoint.load(file)["config"]["size"]
        return Classification(config.data, size, config, compute)

    return compare(config, "classification", task)


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(ClassificationConfig, argv))


if __name__ == "__main__":
    main()
