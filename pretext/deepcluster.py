"""DeepCluster: predict the clusters of the network's own features (Caron et al. 2018, arXiv:1807.05520).

Every epoch, k-means clusters the features of all images, and the clusters are the classes of the next epoch (section
3.2). Features are first reduced by PCA, whitened and L2-normalized (section 4.1). The classifier is reset after each
clustering, because clusters are numbered arbitrarily.

Trivial solutions are avoided as in section 3.3. An empty cluster takes over some points of another one. Small clusters
count as much as large ones: the paper samples images uniformly over clusters, which it calls equivalent to weighting an
image's loss by the inverse of its cluster's size. We weight, so that the loader's order of images is kept.

Deviations: a ResNet with averaged features and one linear layer instead of AlexNet's three; RGB instead of Sobel
gradients, unless ``--sees sobel`` is given; k-means is a few lines of torch for GPU and CPU, because faiss, which the
authors use, is not a dependency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kintsugi.data.loader import Indexed
from kintsugi.pretext.clusters import (
    ClustersConfig,
    ClustersMethod,
    clustering_scalars,
    reset_classifier,
    sample_members,
    whitened,
    whitening,
)
from kintsugi.rng import generator
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch

_CENTROIDS, _CLASSIFIER = 3, 4  # last element of the random generators' keys


@dataclass(frozen=True, kw_only=True)
class DeepClusterConfig(ClustersConfig):
    clusters: int = 256
    """Number of clusters; the paper has about ten for each true class."""
    components: int = 256
    """Dimensions that PCA keeps of the features, at most."""
    iterations: int = 20
    """Iterations of k-means."""
    every: int = 0
    """Steps between clusterings; 0: one epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, clusters=2, components=1, iterations=1, every=0)


def demo() -> DeepClusterConfig:
    """Minutes on two CPU cores, on the built-in scenes."""
    return DeepClusterConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=480,
        batch=64,
        clusters=32,
        components=64,
        strength=1.0,
        every=60,
        optimizer="adam",
        lr=1e-3,
        show_every=120,
        eval_every=120,
        save_every=120,
    )


def small() -> DeepClusterConfig:
    """One GPU, tens of minutes."""
    return DeepClusterConfig(
        preset="small",
        size=64,
        batch=256,
        steps=20_000,
        clusters=1000,
        strength=1.0,
        scenes=50_000,
        optimizer="adam",
        lr=1e-3,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> DeepClusterConfig:
    """The paper's AlexNet on Sobel gradients of ImageNet: batch 256, 200 epochs, 10,000 clusters."""
    return DeepClusterConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="alexnet",
        sees="sobel",
        size=224,
        short_side=256,
        batch=256,
        steps=1_000_000,
        clusters=10_000,
        smallest_crop=0.08,
        cache_gb=400,
        show_every=5_000,
        eval_every=5_000,
        save_every=5_000,
    )


# --- clustering -----------------------------------------------------------------------------------------------


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The number of the nearest of k centroids (k,d) for each point (N,d), int64 (N,)."""
    lengths = centroids.square().sum(1)
    # |p - c|^2 = |p|^2 - 2 p.c + |c|^2, where |p|^2 is the same for all c; in chunks, to save memory.
    return torch.cat([(lengths - 2 * chunk @ centroids.T).argmin(1) for chunk in points.split(8192)])


def k_means(points: Tensor, clusters: int, iterations: int, random: torch.Generator) -> Tensor:
    """Centroids (k,d) of points (N,d), N >= k, by Lloyd's algorithm, starting at k random points.

    An empty cluster gets the centroid of another one with a small perturbation, and so takes over some of its points at
    the next assignment (section 3.3). The other one is drawn with a probability proportional to its size minus 1.
    """
    centroids = points[torch.randperm(len(points), generator=random)[:clusters].to(points.device)]
    for _ in range(iterations):
        labels = nearest(points, centroids)
        sizes = torch.bincount(labels, minlength=clusters)
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        centroids = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero()[:, 0]
        if len(empty):
            spare = (sizes - 1).clamp(min=0).float().cpu()
            donors = spare.multinomial(len(empty), replacement=True, generator=random).to(points.device)
            noise = torch.randn(len(empty), points.shape[1], generator=random).to(points)
            centroids[empty] = centroids[donors] + 1e-3 * noise * points.std()
    return centroids


# --- the method -----------------------------------------------------------------------------------------------


class DeepCluster(ClustersMethod[DeepClusterConfig]):
    """An encoder and a linear classifier of the clusters."""

    name = "deepcluster"

    def __init__(self, config: DeepClusterConfig, world: World) -> None:
        super().__init__(config, world)
        self.classifier = nn.Linear(self.width, config.clusters)
        self.add_optimizer(self.classifier)

    def on_train_data(self, data: Indexed) -> None:
        super().on_train_data(data)
        config = self.config
        if len(data) < config.clusters:
            raise ValueError(
                f"--clusters {config.clusters}: there are only {len(data)} images, and a cluster needs at least one"
            )
        self.every = config.every or math.ceil(len(data) / config.batch)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        scalars = self.cluster(step) if step % self.every == 0 else {}
        label = self.clusters["labels"][batch["index"]]  # (n,)
        image = self.view(batch, step)
        self.encoder.train()
        with self.world.autocast():
            logits = self.classifier(self.encoder.vectors(image))  # (n,k)
        each = cross_entropy(logits.float(), label, reduction="none")
        loss = (self.clusters["weights"][label] * each).mean()
        self.world.backward(loss, self.optimizers["both"])
        scalars |= {"loss/clusters": loss.detach(), "train/accuracy": (logits.argmax(1) == label).float().mean()}
        return scalars | self.take_step("both", step)

    @torch.no_grad()
    def cluster(self, step: int) -> dict[str, Tensor]:
        """Clusters all training images, and resets the classifier; returns scalars to log."""
        config = self.config
        self.take_snapshot()
        features, truth = self.features_of_all(self.snapshot_features)  # (N,D)
        mean, matrix = whitening(features, config.components)
        points = whitened(features, mean, matrix)  # (N,d)
        random = generator(config.seed, step, _CENTROIDS)
        centroids = k_means(points, config.clusters, config.iterations, random)
        labels = self.from_main(nearest(points, centroids))
        scalars = clustering_scalars(labels, config.clusters, self.clusters.get("labels"), truth)
        sizes = torch.bincount(labels, minlength=config.clusters)
        self.clusters = {
            "labels": labels,
            # Their mean over all images is 1, and each cluster contributes equally to the loss.
            "weights": len(labels) / ((sizes > 0).sum() * sizes.clamp(min=1)),
            "mean": mean,
            "matrix": matrix,
            "centroids": centroids,
        }
        reset_classifier(self.classifier, self.optimizers["both"], generator(config.seed, step, _CLASSIFIER))
        return scalars

    def assign(self, image: Tensor) -> Tensor:
        points = whitened(self.snapshot_features(image), self.clusters["mean"], self.clusters["matrix"])
        return nearest(points, self.clusters["centroids"])[None]

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image)).argmax(1)[None]

    def images_to_show(self) -> Tensor:
        return sample_members(self.clusters["labels"])


def main(argv: Sequence[str] | None = None) -> None:
    run_method(DeepCluster, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
