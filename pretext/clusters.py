"""What the clustering methods share: settings, features of all training images, pictures and held-out figures.

Now and then such a method clusters all training images by the features of the current encoder. The clusters are the
training targets until the next clustering, and they are saved in the checkpoint.
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
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.planes import Planes
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import inference, optim
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import StemConfig, start_encoder
from kintsugi.train.method import Batch, Method

_CHUNK = 256  # images whose features are computed in one batch
COLLAPSED = 0.5
"""A warning is printed if one cluster holds at least this fraction of the images."""


@dataclass(frozen=True, kw_only=True)
class ClustersConfig(StemConfig):
    """Settings of every clustering method."""

    norm: Literal["batch", "group"] = "batch"
    """batch: batch normalization; group: group normalization, which uses no batch statistics."""
    sees: Literal["rgb", "sobel"] = "rgb"
    """Input of the encoder. rgb: colors, which other tasks need; sobel: only the gradients of lightness, so that images
    are not clustered by color (Caron 2018, section 4.1). The transferred encoder takes RGB either way."""
    smallest_crop: float = 0.2
    """Smallest fraction of an image's area that a crop shows."""
    strength: float = 0.0
    """Strength of the color jitter, as a factor on SeLa's jitter of .4; 0: only crops and mirroring."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd: the papers', with momentum .9; adam: for short runs."""
    lr: float = 0.05
    """Learning rate. sgd: per 256 images of the batch; adam: used as it is."""
    weight_decay: float = 1e-5
    """Weight decay of the optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, smallest_crop=cropping.SMALLEST_CROP, strength=0, lr=0, weight_decay=0)

    def build(self) -> Encoder:
        """The encoder, with fresh weights."""
        return self.backbone.build() if self.sees == "rgb" else Planes("sobel", self.backbone).build()


K = TypeVar("K", bound=ClustersConfig)


class ClustersMethod(Method[K]):
    """Base class of the clustering methods. A subclass defines its clusters, how images are assigned to them, and how
    the network predicts them."""

    score = "above_chance"

    def __init__(self, config: K, world: World) -> None:
        super().__init__(config, world)
        self.encoder = start_encoder(config, config.build(), world, rgb=config.sees == "rgb")
        self.width = self.encoder.vector_length
        """Length of a feature vector."""
        self.snapshot = copy.deepcopy(self.encoder).requires_grad_(False)
        """The encoder at the last clustering; it assigns held-out images to clusters."""
        self.rate = optim.scaled_lr(config.optimizer, config.lr, config.batch)
        self.clusters: dict[str, Tensor] = {}
        """Results of the last clustering, on the device; empty before the first."""

    def add_optimizer(self, classifier: nn.Module) -> None:
        """One optimizer for the encoder and the classifier."""
        config, both = self.config, nn.ModuleList([self.encoder, classifier])
        self.optimizers = {"both": optim.make_optimizer(config.optimizer, both, self.rate, config.weight_decay)}

    @abstractmethod
    def assign(self, image: Tensor) -> Tensor:
        """The clusters to which held-out images (n,3,S,S) belong, for each of H clusterings: int64 (H,n).

        Found in the same way as those of the training images.
        """

    @abstractmethod
    def predict(self, image: Tensor) -> Tensor:
        """The clusters that the network predicts, (n,3,S,S) -> int64 (H,n)."""

    @abstractmethod
    def images_to_show(self) -> Tensor:
        """Numbers of training images for the picture, one cluster per row, -1 = none: int64 (rows, columns)."""

    def on_train_data(self, data: Indexed) -> None:
        self.data = data

    def get_extra_state(self) -> dict[str, Tensor]:
        """The results of the last clustering."""
        return dict(self.clusters)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.clusters = {name: value.to(self.world.device) for name, value in state.items()}

    def view(self, batch: Batch, *key: int) -> Tensor:
        """This rank's random crops (n,3,S,S) in [0,1] of a batch; drawn for the global batch, a function of the seed
        and ``key``."""
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

    def features(self, image: Tensor) -> Tensor:
        """The current encoder's features, (N,3,S,S) in [0,1] -> (N,D)."""
        return inference.features(self.encoder, image, self.world)

    def snapshot_features(self, image: Tensor) -> Tensor:
        """Features of the encoder at the last clustering, (N,3,S,S) -> (N,D)."""
        return inference.features(self.snapshot, image, self.world)

    def take_snapshot(self) -> None:
        """Copies the encoder into ``snapshot``; each clustering begins with it."""
        self.snapshot.load_state_dict(self.encoder.state_dict())

    @torch.no_grad()
    def features_of_all(self, extract: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        """Features (N,D) of the central crops of all N training images, and their labels (N,) or None.

        ``extract`` maps images (n,3,S,S) to features (n,D). Each rank computes a share of the images.
        """
        count, world = len(self.data), self.world
        share = math.ceil(count / world.size)
        # The last share may wrap around to the first images; these copies are cut off after gathering.
        mine = torch.arange(world.rank * share, (world.rank + 1) * share) % count
        features, labels = [], []
        for indices in mine.split(_CHUNK):
            batch = {name: value.to(world.device) for name, value in self.data.batch(indices).items()}
            features.append(extract(cropping.center_crops(batch, self.config.size)))
            labels += [batch["label"]] if "label" in batch else []
        truth = world.gather(torch.cat(labels))[:count] if labels else None
        return world.gather(torch.cat(features))[:count], truth

    def from_main(self, mine: Tensor) -> Tensor:
        """The main rank's tensor, on every rank.

        On GPUs the ranks' results may differ in the last bit; then their labels would differ too.
        """
        return self.world.gather(mine)[: len(mine)]

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        largest = scalars.get("clusters/largest", 0.0)
        if largest < COLLAPSED:
            return []
        return [f"one cluster holds {largest:.0%} of the images: try a lower --lr, or fewer clusters"]

    # --- pictures and held-out figures --------------------------------------------------------------------

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Training images, one cluster per row; nothing before the first clustering."""
        if not self.clusters:
            return {}
        table = self.images_to_show()
        crops = cropping.center_crops(self.data.batch(table.flatten().clamp(min=0)), self.config.size)
        crops[table.flatten() < 0] = 1  # white: the cluster has no more images
        return {"clusters in rows": sheet(crops.unflatten(0, table.shape).unbind(1))}

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = cropping.center_crops(batch, self.config.size)
        return self.features(image), image

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures on held-out images, per cent.

        accuracy: how often the cluster of an image's central crop is predicted from a random crop. chance: the accuracy
        of always predicting the largest cluster. above_chance: the difference of the two. These are means over the
        method's clusterings. knn: accuracy of leave-one-out nearest neighbors, if the data has labels.
        """
        assigned, predicted, features, labels = [], [], [], []
        for number, batch in enumerate(batches):
            image = cropping.center_crops(batch, self.config.size)
            assigned.append(self.assign(image))
            predicted.append(self.predict(self.view(batch, number)))
            features.append(self.features(image))
            labels += [batch["label"]] if "label" in batch else []
        targets, predictions = torch.cat(assigned, 1), torch.cat(predicted, 1)  # (H,n)
        largest = [torch.bincount(target).max() for target in targets]
        figures = {
            "accuracy": 100 * (targets == predictions).double().mean().item(),
            "chance": 100 * torch.stack(largest).double().mean().item() / targets.shape[1],
        }
        figures["above_chance"] = figures["accuracy"] - figures["chance"]
        return figures | knn_figures(torch.cat(features), labels)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of always predicting the largest cluster; and, if the data has labels, knn with random weights."""
        kept = list(batches)
        rows = {"chance": {"accuracy": self.evaluate(kept)["chance"], "above_chance": 0.0}}
        labels = [batch["label"] for batch in kept if "label" in batch]
        if labels:
            crops = [cropping.center_crops(batch, self.config.size) for batch in kept]
            untrained = inference.untrained_features(self.encoder, self.config.seed, crops, self.world)
            rows["random init"] = knn_figures(torch.cat([*map(untrained["random init"], crops)]), labels)
        return rows


def knn_figures(features: Tensor, labels: list[Tensor]) -> dict[str, float]:
    """knn, the accuracy of leave-one-out nearest neighbors, per cent; nothing without labels.

    features (N,D); labels: one tensor (n,) per batch, -1 = unknown.
    """
    if not labels:
        return {}
    known = torch.cat(labels) >= 0
    return {"knn": 100 * neighbors.leave_one_out(features[known], torch.cat(labels)[known])}


def whitening(features: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """The mean (D,) of features (N,D), and the matrix (D,d) that maps centered features to d principal components of
    variance 1; d is at most ``components``."""
    mean = features.mean(0)
    centered = (features - mean).double()
    variances, axes = torch.linalg.eigh(centered.T @ centered / len(features))  # ascending
    kept = min(components, len(features) - 1, len(mean))
    variances, axes = variances[-kept:].flip(0), axes[:, -kept:].flip(1)
    # The limit keeps directions without variance at 0 instead of amplifying rounding errors.
    return mean, (axes / variances.clamp(min=1e-6 * variances[0]).sqrt()).to(features)


def whitened(features: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Features (N,D), whitened and normalized to unit vectors (N,d)."""
    return normalize((features - mean) @ matrix, dim=1)


def reset_classifier(classifier: nn.Linear, optimizer: torch.optim.Optimizer, random: torch.Generator) -> None:
    """Fresh weights, normal with deviation .01, for a layer whose classes have changed; the optimizer's state of the
    layer is cleared."""
    with torch.no_grad():
        classifier.weight.copy_(0.01 * torch.randn(classifier.weight.shape, generator=random))
        classifier.bias.zero_()
    for parameter in classifier.parameters():
        optimizer.state.pop(parameter, None)


def clustering_scalars(labels: Tensor, clusters: int, before: Tensor | None, truth: Tensor | None) -> dict[str, Tensor]:
    """Scalars to log about a clustering: labels (N,) in 0..clusters-1.

    before (N,): the previous labels. truth (N,): the data's labels, -1 = unknown. largest, smallest: fraction of the
    images in that cluster; empty: number of empty clusters; nmi_before, nmi_truth: ``mutual_information`` with the
    previous labels and with the data's; reassigned: fraction of images that are no longer with the majority of their
    previous cluster, so that renumbering clusters does not count.
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
    """Normalized mutual information of two clusterings (N,), I(A;B) / sqrt(H(A) H(B)) (Caron 2018, eq. 3), 0-d in
    [0,1]."""
    with torch.sparse.check_sparse_tensor_invariants(enable=False):  # else torch warns
        return normalized_mutual_info_score(one, other, "geometric")


def sample_members(labels: Tensor, rows: int = 10, columns: int = 10) -> Tensor:
    """Numbers of random images of some clusters, given the labels (N,) of all images: int64 (rows, columns).

    One cluster per row, -1 = the cluster has no more images. Clusters are ordered by size; those shown are evenly
    spaced from the largest to the smallest that is not empty.
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
