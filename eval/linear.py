"""Linear probes: how well a linear classifier predicts the labels from frozen features.

One classifier for each learning rate, all trained at once (Zhang 2016, arXiv:1603.08511, section 3.2; Goyal 2019,
arXiv:1905.01235). The learning rate is chosen on held-out training images. The final classifier is
trained on all training images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics.functional.classification import multilabel_average_precision

from kintsugi.rng import generator
from kintsugi.train.optim import warmup_cosine

RATES = tuple(10 ** (-4 + i / 2) for i in range(8))  # 1e-4 to .3
HELD_OUT = 0.1  # fraction of the training images on which the learning rate is chosen


def probe(
    x: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, seed: int, steps: int, batch: int
) -> tuple[float, float]:
    """The score on the test features (M,D) of a classifier trained on the features x (N,D), and the held-out score by
    which its learning rate was chosen.

    Labels as in ``kintsugi.eval.features.Features``; scores in [0,1], as ``score``.
    """
    held_out = some_of_each(labels, HELD_OUT, seed, least=1, keep=1)
    chosen, figure = 0, 0.0
    if held_out.any():
        scores = fit(x[~held_out], labels[~held_out], x[held_out], labels[held_out], RATES, seed, steps, batch)
        chosen, figure = int(scores.argmax()), scores.max().item()
    return fit(x, labels, test, test_labels, [RATES[chosen]], seed, steps, batch).item(), figure


def fit(
    x: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    rates: Sequence[float],
    seed: int,
    steps: int,
    batch: int,
) -> Tensor:
    """Trains a linear classifier for each of R learning rates; their scores on the test features (M,D), (R,).

    Trained on x (N,D), standardized to mean 0 and deviation 1, by SGD with momentum .9 along a cosine with warm-up.
    """
    count, classes = len(rates), class_count(labels, test_labels)
    deviation, mean = torch.std_mean(x.float(), 0, correction=0)
    scale = 1 / deviation.clamp(min=1e-3 * deviation.mean().clamp(min=1e-6))
    weight = torch.zeros(x.shape[1], count, classes, device=x.device, requires_grad=True)
    bias = torch.zeros(count, classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], 1.0, momentum=0.9)
    rate = torch.tensor(rates, device=x.device)[:, None]
    random = generator(seed, 6)

    def logits(features: Tensor) -> Tensor:
        """(n,D) -> (n,R,K), all classifiers in one matrix product."""
        return ((features.float() - mean) * scale @ weight.flatten(1)).unflatten(1, (count, classes)) + bias

    for step in range(steps):
        rows = torch.randint(len(x), (min(batch, len(x)),), generator=random).to(x.device)
        loss(logits(x[rows]), labels[rows]).backward()
        for parameter in (weight, bias):
            assert parameter.grad is not None
            parameter.grad *= rate
        optimizer.param_groups[0]["lr"] = warmup_cosine(step, steps, steps // 10, cosine_from=0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        return score(torch.cat([logits(some) for some in test.split(1024)]), test_labels)


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
