"""Distances between the features of two kinds of images.

Features are (N,C): a row for each position of each image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kintsugi.losses.domain_adversarial import domain_accuracy

SIGNIFICANT = 1e-10  # the least variance by which a channel is scaled, relative to the mean over all channels


def probe_accuracy(one: list[Tensor], other: list[Tensor], ridge: float = 1e-3) -> float:
    """Accuracy of a linear classifier that separates two kinds of images: 0.5 is chance, 1 is always right.

    one, other: a list with the features (P,C) of each image, at least two images of each kind. The classifier is fitted
    on every second image and tested on the others, then the other way round. The result is the mean over both ways and
    over the two kinds, so that their numbers of images do not matter.

    The proxy A-distance is 2 (2 accuracy - 1) (Ben-David 2007; Ganin 2016, arXiv:1505.07818, section 5.1.5). Deviation:
    ridge regression instead of a linear SVM.
    """
    folds = [[torch.cat(kind[i::2]).double() for kind in (one, other)] for i in (0, 1)]
    accuracies = []
    for fitted, tested in (folds, folds[::-1]):
        classify = _ridge_classifier(fitted[0], fitted[1], ridge)
        accuracies += [(classify(tested[0]) > 0).double().mean(), (classify(tested[1]) < 0).double().mean()]
    return torch.stack(accuracies).mean().item()


def _ridge_classifier(one: Tensor, other: Tensor, ridge: float) -> Callable[[Tensor], Tensor]:
    """Ridge regression to +1 and -1, each kind with half of the weight. Returns a function (N,C) -> (N,)."""
    mean, scale = _scaling(one, other)
    a, b = (one - mean) / scale, (other - mean) / scale
    gram = (a.mT @ a / len(a) + b.mT @ b / len(b)) / 2  # (C,C)
    gram += ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram, (a.mean(0) - b.mean(0)) / 2)  # (C,)
    return lambda features: (features - mean) / scale @ weight


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """The squared Frechet distance between two sets of features, as Gaussians, per channel; 0 = equal.

    one, other: (N,C) and (M,C). |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel 2017, arXiv:1706.08500, eq. 6),
    divided by C. The features are first scaled to unit variance over both sets, so that a network cannot lower the
    distance by making its features smaller.
    """
    one, other = one.double(), other.double()
    mean, scale = _scaling(one, other)
    a, b = (one - mean) / scale, (other - mean) / scale
    covariances = [torch.cov(x.mT, correction=0) for x in (a, b)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    # The roots of the eigenvalues of S1 S2 are those of the symmetric S1^(1/2) S2 S1^(1/2).
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    total = (a.mean(0) - b.mean(0)).square().sum() + sum(c.trace() for c in covariances) - 2 * cross
    return total.clamp(min=0).item() / one.shape[1]


def _scaling(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (C,) each, over both sets with equal weight."""
    mean = (one.mean(0) + other.mean(0)) / 2
    variance = ((one - mean).square().mean(0) + (other - mean).square().mean(0)) / 2
    return mean, variance.clamp(min=max(SIGNIFICANT * variance.mean().item(), 1e-30)).sqrt()


class DomainGap:
    """Collects features and logits over many batches, and measures how far apart real and synthetic images are."""

    def __init__(self) -> None:
        self.features: dict[str, list[Tensor]] = {"synthetic": [], "real": []}  # (P,C) of each image
        self.logits: dict[str, list[Tensor]] = {"synthetic": [], "real": []}

    def add(self, domain: str, features: Tensor, logits: Tensor) -> None:
        """Adds a batch of images of one domain.

        domain: ``real`` or ``synthetic``. features: (n,C,s,s). logits: the discriminator's on them, (n,...).
        """
        self.features[domain] += features.flatten(2).mT.cpu().unbind()
        self.logits[domain].append(logits.flatten(1))

    def means(self) -> dict[str, float]:
        """The figures over all batches:

        - domain_accuracy of the discriminator; 0.5 if it cannot separate the domains.
        - domain_probe (``probe_accuracy``) and domain_frechet (``frechet_distance``), which do not depend on how well
          the discriminator has learned. They need two images of each domain and are left out if there are fewer.
        """
        real, synthetic = self.features["real"], self.features["synthetic"]
        accuracy = domain_accuracy(torch.cat(self.logits["real"]), torch.cat(self.logits["synthetic"]))
        figures = {"domain_accuracy": accuracy.item()}
        if min(len(real), len(synthetic)) > 1:
            figures["domain_probe"] = probe_accuracy(real, synthetic)
            figures["domain_frechet"] = frechet_distance(torch.cat(real), torch.cat(synthetic))
        return figures
