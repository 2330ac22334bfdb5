"""SeLa: alternate between training a network on labels and assigning the labels by its predictions (Asano et al. 2020,
arXiv:1911.05371).

Given the network's predictions for all N images, the best labels are sought under the constraint that each of K labels
is used N/K times. This optimal transport problem is solved by Sinkhorn-Knopp scaling with lambda 25 (section 3). The
constraint keeps the network from predicting the same label for all images. Several heads, each with its own labels,
share the encoder.

Labels are assigned often at first, then more and more rarely, as in the authors' code: n times in a run of S steps, at
steps S (i/n)^2.

Deviations: labels are assigned by predictions for central crops, not for random ones, so that a label does not depend
on a single draw; a ResNet with one linear layer per head, also where the paper has AlexNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kintsugi.data.loader import Indexed
from kintsugi.pretext.clusters import ClustersConfig, ClustersMethod, clustering_scalars, sample_members
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch


@dataclass(frozen=True, kw_only=True)
class SeLaConfig(ClustersConfig):
    strength: float = 1.0
    clusters: int = 3000
    """Number of labels of each head."""
    heads: int = 10
    """Number of heads, each with its own labels."""
    sharpness: float = 25.0
    """The paper's lambda. The larger it is, the better the labels, and the longer the assignment takes."""
    labelings: int = 100
    """How many times labels are assigned in the whole run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, clusters=2, heads=1, labelings=1)
        if self.sharpness <= 0:
            raise ValueError(f"--sharpness must be positive, not {self.sharpness:g}")


def demo() -> SeLaConfig:
    """Minutes on two CPU cores, on the built-in scenes."""
    return SeLaConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=480,
        batch=64,
        clusters=32,
        heads=4,
        labelings=8,
        optimizer="adam",
        lr=1e-3,
        show_every=120,
        eval_every=120,
        save_every=120,
    )


def small() -> SeLaConfig:
    """One GPU, tens of minutes."""
    return SeLaConfig(
        preset="small",
        size=64,
        batch=256,
        steps=20_000,
        clusters=500,
        labelings=60,
        optimizer="adam",
        lr=1e-3,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> SeLaConfig:
    """The paper's ResNet-50 on ImageNet: 10 heads of 3,000 labels, batch 256, 400 epochs."""
    return SeLaConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="resnet50",
        size=224,
        short_side=256,
        batch=256,
        steps=2_000_000,
        smallest_crop=0.08,
        cache_gb=400,
        show_every=10_000,
        eval_every=10_000,
        save_every=10_000,
    )


# --- labels ---------------------------------------------------------------------------------------------------


def sinkhorn(log_p: Tensor, sharpness: float, tolerance: float = 0.01, most: int = 1000) -> Tensor:
    """Logarithms (K,) of the column factors that make labels equally frequent, for log-probabilities (N,K).

    Q_ij = a_i p_ij^lambda b_j has row sums 1/N and column sums 1/K. Rows and columns are scaled in turn until no row
    sum has a relative error above ``tolerance``, at most ``most`` times. Image i then gets the label argmax_j Q_ij, as
    in the authors' code. Labels are exactly equally frequent in Q, and nearly so after the argmax, because Q may split
    similar images among several labels and the argmax cannot.
    """
    count, clusters = log_p.shape
    scaled = log_p.double() * sharpness
    # Each row's maximum becomes 1. Values below e^-600 are raised to it, so that no column is all 0.
    kernel = scaled.sub_(scaled.amax(1, keepdim=True)).clamp_(min=-600).exp_()  # in place, to save memory
    columns = torch.ones(clusters, dtype=torch.float64, device=log_p.device)
    rows = 1 / (count * (kernel @ columns))
    for number in range(most):
        columns = 1 / (clusters * (rows @ kernel))
        scaled_rows = 1 / (count * (kernel @ columns))
        # Checked only now and then, because the check makes a GPU wait.
        if number % 10 == 9 and (rows / scaled_rows - 1).abs().amax() < tolerance:
            break
        rows = scaled_rows
    return columns.log()


def assign_labels(log_p: Tensor, sharpness: float, log_columns: Tensor) -> Tensor:
    """Labels (N,), int64, for log-probabilities (N,K), given the factors of ``sinkhorn`` (K,)."""
    return (sharpness * log_p.double() + log_columns).argmax(1)


def labeling_steps(steps: int, count: int) -> frozenset[int]:
    """The steps before which labels are assigned: ``count`` times in a run of ``steps``, more and more rarely."""
    return frozenset(steps * i**2 // count**2 for i in range(count))


def lr_factor(step: int, steps: int) -> float:
    """The factor on the learning rate: tenfold lower from 150 of 400 epochs on, and from 300 on (the authors' code)."""
    return 0.1 ** (step * 400 // (steps * 150))


# --- the method -----------------------------------------------------------------------------------------------


class SeLa(ClustersMethod[SeLaConfig]):
    """An encoder, and several linear classifiers, each with labels of its own."""

    name = "sela"

    def __init__(self, config: SeLaConfig, world: World) -> None:
        super().__init__(config, world)
        self.heads = nn.Linear(self.width, config.heads * config.clusters)  # one layer holds all heads
        self.add_optimizer(self.heads)
        self.label_steps = labeling_steps(config.steps, config.labelings)

    def on_train_data(self, data: Indexed) -> None:
        super().on_train_data(data)
        if len(data) < self.config.clusters:
            raise ValueError(
                f"--clusters {self.config.clusters}: there are only {len(data)} images, and each label needs one"
            )

    def split(self, logits: Tensor) -> Tensor:
        """Logits of all heads, (n,H*K) -> (H,n,K)."""
        return logits.unflatten(1, (self.config.heads, self.config.clusters)).transpose(0, 1)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        scalars = self.label(step) if step in self.label_steps else {}
        labels = self.clusters["labels"][:, batch["index"]]  # (H,n)
        image = self.view(batch, step)
        self.encoder.train()
        with self.world.autocast():
            logits = self.split(self.heads(self.encoder.vectors(image)))
        loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        optimizer = self.optimizers["both"]
        self.world.backward(loss, optimizer)
        optim.set_lr(optimizer, self.rate * lr_factor(step, self.config.steps))
        scalars |= {"loss/labels": loss.detach(), "train/accuracy": (logits.argmax(2) == labels).float().mean()}
        return scalars | self.take_step("both", step)

    @torch.no_grad()
    def label(self, step: int) -> dict[str, Tensor]:
        """Assigns labels to all training images, head by head; returns scalars to log about the first head's labels."""
        config = self.config
        self.take_snapshot()
        features, truth = self.features_of_all(self.snapshot_features)  # (N,D)
        weight, bias = self.heads.weight.clone(), self.heads.bias.clone()
        labels, factors = [], []
        for head in range(config.heads):
            log_p = self._log_p(features, weight, bias, head)
            factors.append(self.from_main(sinkhorn(log_p, config.sharpness)))
            labels.append(self.from_main(assign_labels(log_p, config.sharpness, factors[-1])))
        before = self.clusters["labels"][0] if self.clusters else None
        self.clusters = {"labels": torch.stack(labels), "factors": torch.stack(factors), "weight": weight, "bias": bias}
        return clustering_scalars(labels[0], config.clusters, before, truth)

    def _log_p(self, features: Tensor, weight: Tensor, bias: Tensor, head: int) -> Tensor:
        """One head's log-probabilities (n,K) of features (n,D)."""
        rows = slice(head * self.config.clusters, (head + 1) * self.config.clusters)
        return (features @ weight[rows].T + bias[rows]).log_softmax(1)

    @torch.no_grad()
    def assign(self, image: Tensor) -> Tensor:
        """Labels (H,n) by the network and the factors of the last assignment, as for the training images."""
        found, features = self.clusters, self.snapshot_features(image)
        heads = [self._log_p(features, found["weight"], found["bias"], h) for h in range(self.config.heads)]
        pairs = zip(heads, found["factors"], strict=True)
        return torch.stack([assign_labels(log_p, self.config.sharpness, factors) for log_p, factors in pairs])

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        return self.split(self.heads(self.features(image))).argmax(2)

    def images_to_show(self) -> Tensor:
        return sample_members(self.clusters["labels"][0])


def main(argv: Sequence[str] | None = None) -> None:
    run_method(SeLa, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
