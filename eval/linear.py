"""Linear probes: how much of what is asked can be read off features by a linear classifier.

One classifier for each learning rate, all trained at once (Zhang 2016, arXiv:1603.08511, section 3.2; Goyal 2019,
arXiv:1905.01235). The rate is chosen on a part of the training images; then the classifier is trained on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics.functional.classification import multilabel_average_precision

from kintsugi.eval.cells import warmed
from kintsugi.rng import generator

RATES = tuple(10 ** (-4 + i / 2) for i in range(8))  # 1e-4 to .3
HELD = 0.1  # part of the training images on which the rate is chosen


def probe(
    x: Tensor, labels: Tensor, tried: Tensor, truth: Tensor, seed: int, steps: int, batch: int
) -> tuple[float, float]:
    """The score on ``tried`` (M,D), ``truth`` (M,...), of a classifier of x (N,D), and that by which its rate was
    chosen. Labels as in ``kintsugi.eval.features``; the score is ``score``'s."""
    held = some_of_each(labels, HELD, seed, least=1, keep=1)
    chosen, figure = 0, 0.0
    if held.any():
        scores = fit(x[~held], labels[~held], x[held], labels[held], RATES, seed, steps, batch)
        chosen, figure = int(scores.argmax()), scores.max().item()
    return fit(x, labels, tried, truth, [RATES[chosen]], seed, steps, batch).item(), figure


def fit(
    x: Tensor, labels: Tensor, tried: Tensor, truth: Tensor, rates: Sequence[float], seed: int, steps: int, batch: int
) -> Tensor:
    """The score on ``tried`` of a linear classifier for each learning rate, (R,).

    SGD with momentum .9 along a cosine, on features of mean 0 and deviation 1.
    """
    count, classes = len(rates), class_count(labels, truth)
    spread, mean = torch.std_mean(x.float(), 0, correction=0)
    scale = 1 / spread.clamp(min=1e-3 * spread.mean().clamp(min=1e-6))
    weight = torch.zeros(x.shape[1], count, classes, device=x.device, requires_grad=True)
    bias = torch.zeros(count, classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], 1.0, momentum=0.9)
    rate = torch.tensor(rates, device=x.device)[:, None]
    random = generator(seed, 6)

    def logits(part: Tensor) -> Tensor:
        """(n,D) -> (n,R,K), all classifiers in one matrix product."""
        return ((part.float() - mean) * scale @ weight.flatten(1)).unflatten(1, (count, classes)) + bias

    for step in range(steps):
        rows = torch.randint(len(x), (min(batch, len(x)),), generator=random).to(x.device)
        loss(logits(x[rows]), labels[rows]).backward()
        for parameter in (weight, bias):
            assert parameter.grad is not None
            parameter.grad *= rate
        optimizer.param_groups[0]["lr"] = warmed(step, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        return score(torch.cat([logits(part) for part in tried.split(1024)]), truth)


def class_count(labels: Tensor, truth: Tensor) -> int:
    return labels.shape[1] if labels.ndim == 2 else int(max(labels.amax(), truth.amax())) + 1


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (n,R,K) of R classifiers: cross entropy, or binary cross entropy where classes are present together, mean
    over images and known labels, added over the classifiers, ()."""
    count = logits.shape[1]
    if labels.ndim == 1:
        return count * cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(count))
    truth = labels[:, None].expand_as(logits)
    known = (truth >= 0).float()
    each = binary_cross_entropy_with_logits(logits, truth.clamp(min=0).float(), weight=known, reduction="sum")
    return count * each / known.sum().clamp(min=1)


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each classifier's logits (n,R,K), (R,): the part of images in whose class it is right; or, where classes are
    present together, average precision, mean over the classes that ``labels`` has."""
    if labels.ndim == 1:
        return (logits.argmax(2) == labels[:, None]).float().mean(0)
    there = (labels == 1).any(0)
    each = [
        multilabel_average_precision(
            one[:, there], labels[:, there], int(there.sum()), average="macro", ignore_index=-1
        )
        for one in logits.unbind(1)
    ]
    return torch.stack(each)


def some_of_each(labels: Tensor, part: float, seed: int, least: int, keep: int = 0) -> Tensor:
    """A random part of the images of each class, bool (N,): at least ``least``, if ``keep`` others are left of it.

    Where classes are present together, a random part of all images.
    """
    groups = labels if labels.ndim == 1 else torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
    order = torch.randperm(len(groups), generator=generator(seed, 7)).to(groups.device)
    chosen = torch.zeros(len(groups), dtype=torch.bool, device=groups.device)
    for number in groups.unique():
        of_group = order[groups[order] == number]
        count = max(least, round(part * len(of_group)))
        chosen[of_group[: max(0, min(count, len(of_group) - keep))]] = True
    return chosen
