"""What methods share that learn from clusters of their own: settings, the whole set's features, looking, measuring.

A clustering method forgets its networks now and then and looks at all training images; what it found then stays fixed
until the next time, is the target of its steps, and goes into the checkpoint.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchmetrics.functional.clustering import normalized_mutual_info_score
from torchmetrics.functional.clustering.utils import calculate_contingency_matrix

from kintsugi.augment import color_jitter, cropping
from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.data.loader import Indexed
from kintsugi.metrics import neighbors
from kintsugi.nets.backbones import Backbone, Encoder
from kintsugi.nets.planes import Planes
from kintsugi.nets.specs import fresh
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train.config import TrainConfig, within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch, Method

_CHUNK = 256  # images whose features are computed at once
COLLAPSED = 0.5
"""Part of the images in one cluster from which on there is not much to learn."""


@dataclass(frozen=True, kw_only=True)
class ClustersConfig(TrainConfig):
    """Settings of every method with clusters."""

    encoder: Literal["resnet18", "resnet50", "alexnet"] = "resnet18"
    norm: Literal["batch", "group"] = "batch"
    stem: Literal["large", "small"] = "large"
    """small, of the ResNets: for crops of about 32 px."""
    sees: Literal["rgb", "sobel"] = "rgb"
    """sobel: the encoder sees the gradients of the lightness alone, so that clusters are not of colors (Caron 2018,
    section 4.1); what is moved to other tasks then takes RGB all the same. rgb, because other tasks want color."""
    smallest_crop: float = 0.2
    """A crop shows at least this part of its image's area."""
    strength: float = 0.0
    """How strongly the colors of crops vary, as a factor on SeLa's jitter of .4; 0: crops and mirroring alone."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd, the papers', with momentum .9; adam for short runs."""
    lr: float = 0.05
    """Learning rate: for sgd per 256 images, for adam as it is."""
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, smallest_crop=cropping.SMALLEST_CROP, strength=0, lr=0, weight_decay=0)

    def build(self) -> Encoder:
        backbone = Backbone(name=self.encoder, norm=self.norm, stem=self.stem)
        return backbone.build() if self.sees == "rgb" else Planes("sobel", backbone).build()


K = TypeVar("K", bound=ClustersConfig)


class ClustersMethod(Method[K]):
    """The clusters are the method's; so is how an image is assigned to one, and how the net says to which."""

    score = "above_chance"

    def __init__(self, config: K, world: World) -> None:
        super().__init__(config, world)
        self.encoder = config.build()
        self.former = copy.deepcopy(self.encoder).requires_grad_(False)
        """The encoder as it was when all images were looked at last; it tells held-out images' clusters."""
        self.rate = config.lr * (1 if config.optimizer == "adam" else config.batch / 256)
        # What was found when all images were looked at last; empty before. On the device.
        self.clusters: dict[str, Tensor] = {}

    @abstractmethod
    def assign(self, image: Tensor) -> Tensor:
        """The clusters of images (n,3,S,S), as the training images got theirs: (H,n), for each of H clusterings."""

    @abstractmethod
    def classify(self, image: Tensor) -> Tensor:
        """The clusters that the classifiers say, (n,3,S,S) -> (H,n)."""

    @abstractmethod
    def rows(self) -> Tensor:
        """Training images to show, a cluster in each row, -1 = none: (rows, columns)."""

    def on_train_data(self, data: Indexed) -> None:
        self.data = data

    def get_extra_state(self) -> dict[str, Tensor]:
        """What the last clustering found."""
        return dict(self.clusters)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.clusters = {name: value.to(self.world.device) for name, value in state.items()}

    def view(self, batch: Batch, *key: int) -> Tensor:
        """This rank's random crops (n,3,S,S) in [0,1] of a batch, drawn for ``key`` and for the global batch."""
        config, count = self.config, len(batch["image"]) * self.world.size
        recipe = ColorAugmentation(0.4, 0.4, 0.4, 0.1, jitter=1.0, blur=0.0).with_strength(config.strength)
        return color_jitter.random_views(
            batch,
            recipe if config.strength else None,
            config.size,
            config.smallest_crop,
            count,
            self.world.part(count),
            (config.seed, *key),
        )

    @torch.no_grad()
    def represent(self, image: Tensor) -> Tensor:
        """What eval moves: the encoder's vectors, (N,3,S,S) -> (N,D)."""
        return self._vectors(self.encoder, image)

    @torch.no_grad()
    def represent_formerly(self, image: Tensor) -> Tensor:
        """The same by the encoder of the last clustering."""
        return self._vectors(self.former, image)

    def _vectors(self, encoder: Encoder, image: Tensor) -> Tensor:
        training = encoder.training
        with self.world.autocast():
            features = encoder.eval().vectors(image).float()
        encoder.train(training)
        return features

    def remember(self) -> None:
        """To be called before all images are looked at: keeps the encoder as it is."""
        self.former.load_state_dict(self.encoder.state_dict())

    @torch.no_grad()
    def whole(self, represent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        """What ``represent`` says, (n,3,S,S) -> (n,D), of the central crops of all N training images: (N,D), each rank
        having computed its part; and their labels (N,), or None."""
        count, world = len(self.data), self.world
        share = math.ceil(count / world.size)
        # The last rank's part may begin again at the first image, and is cut off after it is gathered.
        mine = torch.arange(world.rank * share, (world.rank + 1) * share) % count
        found, labels = [], []
        for indices in mine.split(_CHUNK):
            batch = {name: value.to(world.device) for name, value in self.data.batch(indices).items()}
            found.append(represent(cropping.center_crops(batch, self.config.size)))
            labels += [batch["label"]] if "label" in batch else []
        truth = world.gather(torch.cat(labels))[:count] if labels else None
        return world.gather(torch.cat(found))[:count], truth

    def agreed(self, mine: Tensor) -> Tensor:
        """The main rank's tensor, on every rank: sums on a GPU may differ in the last bit, and a label with them."""
        return self.world.gather(mine)[: len(mine)]

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        share = scalars.get("clusters/largest", 0.0)
        if share < COLLAPSED:
            return []
        return [f"one cluster holds {share:.0%} of the images: try a lower --lr, or fewer clusters"]

    # --- looking and measuring ----------------------------------------------------------------------------

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Training images, a cluster in each row; nothing before the first clustering."""
        if not self.clusters:
            return {}
        table = self.rows()
        crops = cropping.center_crops(self.data.batch(table.flatten().clamp(min=0)), self.config.size)
        crops[table.flatten() < 0] = 1  # white where a cluster has no more images
        return {"clusters in rows": sheet(crops.unflatten(0, table.shape).unbind(1))}

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = cropping.center_crops(batch, self.config.size)
        return self.represent(image), image

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """On held-out images, per cent.

        accuracy: an image is assigned to its cluster by its central crop, and classified by a random one; chance: the
        share of the largest cluster, which is what saying always the same would get. Both are means over the method's
        clusterings. knn: leave-one-out among these images, where the data has labels.
        """
        assigned, said, features, labels = [], [], [], []
        for number, batch in enumerate(batches):
            image = cropping.center_crops(batch, self.config.size)
            assigned.append(self.assign(image))
            said.append(self.classify(self.view(batch, number)))
            features.append(self.represent(image))
            labels += [batch["label"]] if "label" in batch else []
        targets, answers = torch.cat(assigned, 1), torch.cat(said, 1)  # (H,n)
        largest = [torch.bincount(target).max() for target in targets]
        figures = {
            "accuracy": 100 * (targets == answers).double().mean().item(),
            "chance": 100 * torch.stack(largest).double().mean().item() / targets.shape[1],
        }
        figures["above_chance"] = figures["accuracy"] - figures["chance"]
        return figures | nearest_figures(torch.cat(features), labels)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Saying always the largest cluster; and, where the data has labels, the neighbors by fresh weights."""
        every = list(batches)
        rows = {"chance": {"accuracy": self.evaluate(every)["chance"], "above_chance": 0.0}}
        labels = [batch["label"] for batch in every if "label" in batch]
        if labels:
            random = fresh(self.encoder, self.config.seed)
            crops = [cropping.center_crops(batch, self.config.size) for batch in every]
            with torch.no_grad():
                features = torch.cat([random.vectors(image).float() for image in crops])
            rows["random init"] = nearest_figures(features, labels)
        return rows


def nearest_figures(features: Tensor, labels: list[Tensor]) -> dict[str, float]:
    """knn, per cent, of features (N,D) and their labels, in batches, -1 = unknown; none where there are no labels."""
    if not labels:
        return {}
    known = torch.cat(labels) >= 0
    return {"knn": 100 * neighbors.leave_one_out(features[known], torch.cat(labels)[known])}


def whitening(features: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """The mean (D,) of features (N,D), and the matrix (D,d) that brings what differs from it to d principal components
    of variance 1; d is ``components``, or less where there are not so many."""
    mean = features.mean(0)
    centered = (features - mean).double()
    variances, axes = torch.linalg.eigh(centered.T @ centered / len(features))  # ascending
    kept = min(components, len(features) - 1, len(mean))
    variances, axes = variances[-kept:].flip(0), axes[:, -kept:].flip(1)
    # A direction in which nothing varies stays at nothing, instead of being blown up.
    return mean, (axes / variances.clamp(min=1e-6 * variances[0]).sqrt()).to(features)


def whitened(features: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Features (N,D) -> unit vectors (N,d)."""
    return normalize((features - mean) @ matrix, dim=1)


def draw_anew(classifier: nn.Linear, optimizer: torch.optim.Optimizer, random: torch.Generator) -> None:
    """Fresh weights, normal with deviation .01, for a layer whose classes are others from now on; the optimizer forgets
    what it knew of it."""
    with torch.no_grad():
        classifier.weight.copy_(0.01 * torch.randn(classifier.weight.shape, generator=random))
        classifier.bias.zero_()
    for parameter in classifier.parameters():
        optimizer.state.pop(parameter, None)


def clustering_scalars(labels: Tensor, clusters: int, before: Tensor | None, truth: Tensor | None) -> dict[str, Tensor]:
    """What to log of labels (N,) in 0..clusters-1; ``before``: those of the last time, ``truth``: the data's, (N,).

    largest and smallest: parts of the images; empty: how many clusters are; nmi_before and nmi_truth:
    ``mutual_information``; reassigned: the part of images that did not go where most of their last cluster went, so
    that the clusters' numbers do not matter.
    """
    sizes = torch.bincount(labels, minlength=clusters)
    scalars = {
        "clusters/largest": sizes.amax() / len(labels),
        "clusters/smallest": sizes.amin() / len(labels),
        "clusters/empty": (sizes == 0).sum(),
    }
    if before is not None:
        scalars["clusters/nmi_before"] = mutual_information(labels, before)
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            together = calculate_contingency_matrix(labels, before)  # (clusters before, clusters now)
        scalars["clusters/reassigned"] = 1 - together.amax(1).sum() / len(labels)
    if truth is not None:
        known = truth >= 0
        scalars["clusters/nmi_truth"] = mutual_information(labels[known], truth[known])
    return scalars


def mutual_information(one: Tensor, other: Tensor) -> Tensor:
    """Of two clusterings (N,), normalized: I(A;B) / sqrt(H(A) H(B)) (Caron 2018, eq. 3), 0-d in [0,1]."""
    with torch.sparse.check_sparse_tensor_invariants(enable=False):  # torch warns where this is not said
        return normalized_mutual_info_score(one, other, "geometric")


def members(labels: Tensor, rows: int = 10, columns: int = 10) -> Tensor:
    """Images of some clusters, at random, -1 = none: (rows, columns) of labels (N,).

    The clusters come from the largest to the smallest that is not empty, evenly in between.
    """
    labels = labels.cpu()
    sizes = torch.bincount(labels)
    order = sizes.argsort(descending=True, stable=True)[: int((sizes > 0).sum())]
    picked = order[torch.linspace(0, len(order) - 1, min(rows, len(order))).round().long()]
    shuffled = torch.randperm(len(labels), generator=generator(0))
    table = torch.full((len(picked), columns), -1)
    for row, cluster in zip(table, picked, strict=True):
        found = shuffled[labels[shuffled] == cluster][:columns]
        row[: len(found)] = found
    return table
