"""DeepCluster: a net learns the clusters of its own features (Caron et al. 2018, arXiv:1807.05520).

Every epoch the features of all images are clustered by k-means, and the clusters are the classes of the next epoch
(section 3.2). Features are reduced by PCA, whitened and L2-normalized before (section 4.1).

Trivial solutions are avoided as in section 3.3. An empty cluster takes over a part of another one. Small clusters count
as much as large ones: the paper samples images uniformly over clusters, which, as it says, is equivalent to weighing an
image's loss by the inverse of its cluster's size; that is what is done here, so that the images' order stays the
loader's. The classifier is drawn anew after each clustering, because the clusters' numbers mean nothing.

Deviations: a ResNet with its averaged features and one linear layer instead of AlexNet's three; RGB instead of Sobel's
gradients, unless ``--sees sobel``; k-means is a few lines of torch, for the GPU and the CPU alike (faiss, as the
authors have it, is not among the dependencies).
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
    draw_anew,
    members,
    whitened,
    whitening,
)
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch

_CENTROIDS, _CLASSIFIER = 3, 4


@dataclass(frozen=True, kw_only=True)
class DeepClusterConfig(ClustersConfig):
    clusters: int = 256
    """How many; the paper's are about ten for each true class."""
    components: int = 256
    """To how many dimensions PCA reduces the features, at most."""
    iterations: int = 20
    """Of k-means."""
    every: int = 0
    """Steps between clusterings; 0: an epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, clusters=2, components=1, iterations=1, every=0)


def demo() -> DeepClusterConfig:
    """Minutes on two CPU cores, built-in scenes."""
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
    """The paper's AlexNet on the gradients of ImageNet, 200 epochs of batch 256, 10,000 clusters."""
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
    """The nearest of k centroids (k,d) to each point (N,d), (N,)."""
    lengths = centroids.square().sum(1)
    # |p - c|^2 = |p|^2 - 2 p.c + |c|^2, of which the first is the same for all c; in parts, to spare memory.
    return torch.cat([(lengths - 2 * part @ centroids.T).argmin(1) for part in points.split(8192)])


def k_means(points: Tensor, clusters: int, iterations: int, random: torch.Generator) -> Tensor:
    """Lloyd's centroids (k,d) of points (N,d), N >= k, from k of the points on.

    A cluster that becomes empty takes over the centroid of another one with a small perturbation, and so a part of its
    points at the next assignment (section 3.3); which one, is drawn in proportion to its points beyond the first.
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
    name = "deepcluster"

    def __init__(self, config: DeepClusterConfig, world: World) -> None:
        super().__init__(config, world)
        self.classifier = nn.Linear(self.encoder.channels[max(self.encoder.channels)], config.clusters)
        both = nn.ModuleList([self.encoder, self.classifier])
        self.optimizers = {"both": optim.make_optimizer(config.optimizer, both, self.rate, config.weight_decay)}

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
        loss.backward()
        scalars |= {"loss/clusters": loss.detach(), "train/accuracy": (logits.argmax(1) == label).float().mean()}
        return scalars | {"grad_norm/both": optim.take_step(self.optimizers["both"], self.world)}

    @torch.no_grad()
    def cluster(self, step: int) -> dict[str, Tensor]:
        """Clusters all images anew, and draws a fresh classifier; what to log of it."""
        config = self.config
        self.remember()
        features, truth = self.whole(self.represent_formerly)  # (N,D)
        mean, matrix = whitening(features, config.components)
        points = whitened(features, mean, matrix)  # (N,d)
        random = generator(config.seed, step, _CENTROIDS)
        centroids = k_means(points, config.clusters, config.iterations, random)
        labels = self.agreed(nearest(points, centroids))
        scalars = clustering_scalars(labels, config.clusters, self.clusters.get("labels"), truth)
        sizes = torch.bincount(labels, minlength=config.clusters)
        self.clusters = {
            "labels": labels,
            # 1 in the mean over the images: each cluster's share of the loss is the same.
            "weights": len(labels) / ((sizes > 0).sum() * sizes.clamp(min=1)),
            "mean": mean,
            "matrix": matrix,
            "centroids": centroids,
        }
        draw_anew(self.classifier, self.optimizers["both"], generator(config.seed, step, _CLASSIFIER))
        return scalars

    def assign(self, image: Tensor) -> Tensor:
        points = whitened(self.represent_formerly(image), self.clusters["mean"], self.clusters["matrix"])
        return nearest(points, self.clusters["centroids"])[None]

    @torch.no_grad()
    def classify(self, image: Tensor) -> Tensor:
        return self.classifier(self.represent(image)).argmax(1)[None]

    def rows(self) -> Tensor:
        return members(self.clusters["labels"])


def main(argv: Sequence[str] | None = None) -> None:
    run_method(DeepCluster, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
