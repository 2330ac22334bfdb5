"""Linear probes: how well a linear classifier predicts the labels from frozen features.

One classifier for each learning rate, all trained at once (Zhang 2016, arXiv:1603.08511, section 3.2; Goyal 2019,
arXiv:1905.01235). The learning rate is chosen on held-out training images. The final classifier is
trained on all training images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics.functional.classification import multilabel_average_precision

from kintsugi.rng import generator
from kintsugi.train.optim import warmup_cosine

RATES = tuple(10 ** (-4 + i / 2) for i in range(8))  # 1e-4 to .3
HELD_OUT = 0.1  # fraction of the training images on which the learning rate is chosen


class Inputs:
    """Features of training images (N,D) and of test images (M,D) as inputs of linear classifiers, standardized to mean
    0 and deviation 1 over the training images.

    If there are fewer images than features, inner products with the N training images replace the D features. Gradients
    are sums of training features, so weights that start at 0 remain such sums: N coefficients instead of D weights give
    the same classifier, and cost less.

    dtype: of the inputs in training, which sets that of the large matrix products; in bfloat16 they take half the time.
    Weights, gradients' sums and scores are always float.
    """

    def __init__(self, train: Tensor, test: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        deviation, self._mean = torch.std_mean(train.float(), 0, correction=0)
        self._scale = 1 / deviation.clamp(min=1e-3 * deviation.mean().clamp(min=1e-6))
        self._train, self._test = train, test
        self.products = len(train) < train.shape[1]
        if self.products:
            known = self._standardized(train).to(dtype)
            self._train = known @ known.T  # (N,N)
            parts = [self._standardized(some).to(dtype) @ known.T for some in test.split(1024)]
            self._test = torch.cat(parts)  # (M,N)

    def __len__(self) -> int:
        return len(self._train)

    @property
    def width(self) -> int:
        """The number of inputs: D, or N if they are inner products."""
        return self._train.shape[1]

    def of_training(self, rows: Tensor) -> Tensor:
        """The inputs (n,width) of the training images ``rows``, int64 (n,)."""
        return self._train[rows] if self.products else self._standardized(self._train[rows]).to(self.dtype)

    def of_test(self) -> Iterator[Tensor]:
        """The inputs of the test images, float, in batches."""
        for some in self._test.split(1024):
            yield some.float() if self.products else self._standardized(some)

    def add_gradient(self, total: Tensor, rows: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Adds the gradient of the weights to ``total`` (width,C). gradient (n,C): that of the outputs for the training
        images ``rows``, whose inputs are ``inputs``."""
        if self.products:
            total.index_add_(0, rows, gradient)
        else:
            total.add_(inputs.T @ gradient.to(inputs.dtype))

    def _standardized(self, x: Tensor) -> Tensor:
        return (x.float() - self._mean) * self._scale


@dataclass(frozen=True)
class Classifiers:
    """R linear classifiers of K classes: weight (W,R*K), bias (R*K,)."""

    weight: Tensor
    bias: Tensor
    count: int

    def __call__(self, inputs: Tensor) -> Tensor:
        """Inputs (n,W), as of ``Inputs`` -> logits (n,R,K), all classifiers in one matrix product."""
        return ((inputs @ self.weight.to(inputs.dtype)).float() + self.bias).unflatten(1, (self.count, -1))


def probe(
    inputs: Inputs, labels: Tensor, test_labels: Tensor, seed: int, steps: int, batch: int
) -> tuple[float, float]:
    """The score on the test images of a classifier trained on the training images, and the held-out score by which its
    learning rate was chosen.

    Labels as in ``kintsugi.eval.features.Features``; scores in [0,1], as ``score``.
    """
    classes = class_count(labels, test_labels)
    held_out = some_of_each(labels, HELD_OUT, seed, least=1, keep=1)
    every = torch.arange(len(labels), device=labels.device)
    chosen, figure = 0, 0.0
    if held_out.any():
        candidates = fit(inputs, labels, every[~held_out], classes, RATES, seed, steps, batch)
        scores = score(candidates(inputs.of_training(every[held_out])), labels[held_out])
        chosen, figure = int(scores.argmax()), scores.max().item()
    final = fit(inputs, labels, every, classes, [RATES[chosen]], seed, steps, batch)
    return score(torch.cat([final(some) for some in inputs.of_test()]), test_labels).item(), figure


def fit(
    inputs: Inputs,
    labels: Tensor,
    rows: Tensor,
    classes: int,
    rates: Sequence[float],
    seed: int,
    steps: int,
    batch: int,
) -> Classifiers:
    """Trains a linear classifier for each of R learning rates on the training images ``rows``, int64 (n,).

    By SGD with momentum .9 along a cosine with warm-up, from zeros.
    """
    count = len(rates)
    weight = torch.zeros(inputs.width, count * classes, device=labels.device)
    bias = torch.zeros(count * classes, device=labels.device)
    moving, moving_bias = torch.zeros_like(weight), torch.zeros_like(bias)  # the momentum
    found = Classifiers(weight, bias, count)
    rate = torch.tensor(rates, device=labels.device)[:, None]
    random = generator(seed, 6)
    for step in range(steps):
        some = rows[torch.randint(len(rows), (min(batch, len(rows)),), generator=random).to(rows.device)]
        x = inputs.of_training(some)
        logits = found(x).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits, labels[some]), logits)
        gradient = (gradient * rate).flatten(1)  # (n,R*K)
        inputs.add_gradient(moving.mul_(0.9), some, x, gradient)
        moving_bias.mul_(0.9).add_(gradient.sum(0))
        lr = warmup_cosine(step, steps, steps // 10, cosine_from=0)
        weight.sub_(moving, alpha=lr)
        bias.sub_(moving_bias, alpha=lr)
    return found


def class_count(labels: Tensor, test_labels: Tensor) -> int:
    """K, the number of classes, from labels (N,) or (N,K)."""
    return labels.shape[1] if labels.ndim == 2 else int(max(labels.amax(), test_labels.amax())) + 1


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the losses of R classifiers, 0-d; logits (n,R,K), labels (n,) or (n,K).

    Cross entropy, mean over images; with several classes per image binary cross entropy, mean over the known labels.
    """
    count = logits.shape[1]
    if labels.ndim == 1:
        return count * cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(count))
    truth = labels[:, None].expand_as(logits)
    known = (truth >= 0).float()
    total = binary_cross_entropy_with_logits(logits, truth.clamp(min=0).float(), weight=known, reduction="sum")
    return count * total / known.sum().clamp(min=1)


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """The score of each of R classifiers, (R,) in [0,1]; logits (n,R,K), labels (n,) or (n,K).

    Accuracy; with several classes per image average precision, mean over the classes that are present in ``labels``.
    """
    if labels.ndim == 1:
        return (logits.argmax(2) == labels[:, None]).float().mean(0)
    present = (labels == 1).any(0)
    scores = [
        multilabel_average_precision(
            one[:, present], labels[:, present], int(present.sum()), average="macro", ignore_index=-1
        )
        for one in logits.unbind(1)
    ]
    return torch.stack(scores)


def some_of_each(labels: Tensor, fraction: float, seed: int, least: int, keep: int = 0) -> Tensor:
    """Chooses a random fraction of the images of each class, bool (N,).

    At least ``least`` images of a class are chosen, as long as ``keep`` of its images are left over. With several
    classes per image, labels (N,K), a random fraction of all images.
    """
    groups = labels if labels.ndim == 1 else torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
    order = torch.randperm(len(groups), generator=generator(seed, 7)).to(groups.device)
    chosen = torch.zeros(len(groups), dtype=torch.bool, device=groups.device)
    for group in groups.unique():
        members = order[groups[order] == group]
        count = max(least, round(fraction * len(members)))
        chosen[members[: max(0, min(count, len(members) - keep))]] = True
    return chosen
