"""SeLa: a net and labels that are used equally often, found in turn (Asano et al. 2020, arXiv:1911.05371).

To the net's predictions of all N images belong the labels, each used N/K times, that agree with them best: a problem of
optimal transport, solved by Sinkhorn and Knopp's scaling with lambda 25 (section 3). The equal use is what keeps the
net from saying the same of all images. Several heads, each with labels of its own, share the encoder.

Labels are found often at first, then more and more rarely, as in the authors' code: at steps S (i/n)^2 of a run of S.

Deviations: the predictions are those of the central crops, not of randomly augmented ones, so that a label does not
hang on one draw; a ResNet with one linear layer for each head also where the paper has AlexNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kintsugi.data.loader import Indexed
from kintsugi.pretext.clusters import ClustersConfig, ClustersMethod, clustering_scalars, members
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch


@dataclass(frozen=True, kw_only=True)
class SeLaConfig(ClustersConfig):
    strength: float = 1.0
    clusters: int = 3000
    """Labels of each head."""
    heads: int = 10
    sharpness: float = 25.0
    """The paper's lambda: the larger, the nearer the labels are to the best ones, and the longer they take."""
    labelings: int = 100
    """How often labels are found, over the whole run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, clusters=2, heads=1, labelings=1)
        if self.sharpness <= 0:
            raise ValueError(f"--sharpness must be positive, not {self.sharpness:g}")


def demo() -> SeLaConfig:
    """Minutes on two CPU cores, built-in scenes."""
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
    """The paper's ResNet-50 on ImageNet, 10 heads of 3,000 labels, 400 epochs of batch 256."""
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
    """The logarithms beta (K,) of the factors that make labels equally used, for log-probabilities (N,K).

    Q_ij = a_i p_ij^lambda b_j with row sums 1/N and column sums 1/K, scaled in turn until no row sum is off by more
    than ``tolerance`` of itself, or ``most`` times. Image i then gets the label argmax_j Q_ij, as in the authors' code:
    where images are much alike Q shares them out among labels and the argmax does not, so that the use is equal in Q
    and nearly so in the labels.
    """
    count, clusters = log_p.shape
    scaled = log_p.double() * sharpness
    # Each row's greatest becomes 1; what is below e^-600 of it counts as that, so that no column is all 0.
    kernel = scaled.sub_(scaled.amax(1, keepdim=True)).clamp_(min=-600).exp_()  # in place: this is what takes memory
    columns = torch.ones(clusters, dtype=torch.float64, device=log_p.device)
    rows = 1 / (count * (kernel @ columns))
    for number in range(most):
        columns = 1 / (clusters * (rows @ kernel))
        fresh = 1 / (count * (kernel @ columns))
        # Looked at now and then, because a GPU waits for it.
        if number % 10 == 9 and (rows / fresh - 1).abs().amax() < tolerance:
            break
        rows = fresh
    return columns.log()


def labeled(log_p: Tensor, sharpness: float, log_columns: Tensor) -> Tensor:
    """The labels (N,) that log-probabilities (N,K) get by the factors of ``sinkhorn``."""
    return (sharpness * log_p.double() + log_columns).argmax(1)


def labeling_steps(steps: int, count: int) -> frozenset[int]:
    """When labels are found: ``count`` times over a run of ``steps``, ever more rarely, the first before its start."""
    return frozenset(steps * i**2 // count**2 for i in range(count))


def falling(step: int, steps: int) -> float:
    """A factor on the learning rate: a tenth from 150 of 400 epochs on, a hundredth from 300 on (the authors' code)."""
    return 0.1 ** (step * 400 // (steps * 150))


# --- the method -----------------------------------------------------------------------------------------------


class SeLa(ClustersMethod[SeLaConfig]):
    name = "sela"

    def __init__(self, config: SeLaConfig, world: World) -> None:
        super().__init__(config, world)
        width = self.encoder.channels[max(self.encoder.channels)]
        self.heads = nn.Linear(width, config.heads * config.clusters)  # one layer holds all of them
        both = nn.ModuleList([self.encoder, self.heads])
        self.optimizers = {"both": optim.make_optimizer(config.optimizer, both, self.rate, config.weight_decay)}
        self.when = labeling_steps(config.steps, config.labelings)

    def on_train_data(self, data: Indexed) -> None:
        super().on_train_data(data)
        if len(data) < self.config.clusters:
            raise ValueError(
                f"--clusters {self.config.clusters}: there are only {len(data)} images, and each label wants one"
            )

    def split(self, logits: Tensor) -> Tensor:
        """Of all heads together, (n,H*K), to (H,n,K)."""
        return logits.unflatten(1, (self.config.heads, self.config.clusters)).transpose(0, 1)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        scalars = self.label(step) if step in self.when else {}
        labels = self.clusters["labels"][:, batch["index"]]  # (H,n)
        image = self.view(batch, step)
        self.encoder.train()
        with self.world.autocast():
            logits = self.split(self.heads(self.encoder.vectors(image)))
        loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer = self.optimizers["both"]
        optim.set_lr(optimizer, self.rate * falling(step, self.config.steps))
        scalars |= {"loss/labels": loss.detach(), "train/accuracy": (logits.argmax(2) == labels).float().mean()}
        return scalars | {"grad_norm/both": optim.take_step(optimizer, self.world)}

    @torch.no_grad()
    def label(self, step: int) -> dict[str, Tensor]:
        """Finds all images' labels anew, head by head; what to log of it, of the first head."""
        config = self.config
        self.remember()
        features, truth = self.whole(self.represent_formerly)  # (N,D)
        weight, bias = self.heads.weight.clone(), self.heads.bias.clone()
        labels, factors = [], []
        for head in range(config.heads):
            log_p = self._log_p(features, weight, bias, head)
            factors.append(self.agreed(sinkhorn(log_p, config.sharpness)))
            labels.append(self.agreed(labeled(log_p, config.sharpness, factors[-1])))
        before = self.clusters["labels"][0] if self.clusters else None
        self.clusters = {"labels": torch.stack(labels), "factors": torch.stack(factors), "weight": weight, "bias": bias}
        return clustering_scalars(labels[0], config.clusters, before, truth)

    def _log_p(self, features: Tensor, weight: Tensor, bias: Tensor, head: int) -> Tensor:
        """One head's log-probabilities (n,K) of features (n,D)."""
        rows = slice(head * self.config.clusters, (head + 1) * self.config.clusters)
        return (features @ weight[rows].T + bias[rows]).log_softmax(1)

    @torch.no_grad()
    def assign(self, image: Tensor) -> Tensor:
        """As the training images got their labels: by the net of then, and the factors found then."""
        found, features = self.clusters, self.represent_formerly(image)
        every = [self._log_p(features, found["weight"], found["bias"], h) for h in range(self.config.heads)]
        pairs = zip(every, found["factors"], strict=True)
        return torch.stack([labeled(log_p, self.config.sharpness, factors) for log_p, factors in pairs])

    @torch.no_grad()
    def classify(self, image: Tensor) -> Tensor:
        return self.split(self.heads(self.represent(image))).argmax(2)

    def rows(self) -> Tensor:
        return members(self.clusters["labels"][0])


def main(argv: Sequence[str] | None = None) -> None:
    run_method(SeLa, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
