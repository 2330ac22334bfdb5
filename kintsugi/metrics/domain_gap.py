"""Distances between the features of two kinds of images. Features are (N,C), with a row for each position."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kintsugi.losses.domain_adversarial import domain_accuracy

SIGNIFICANT = 1e-10  # least variance for the scaling of a channel, relative to the mean variance


def probe_accuracy(one: list[Tensor], other: list[Tensor], ridge: float = 1e-3) -> float:
    """Accuracy of a linear classifier that separates the two kinds of images: about 0.5 = it cannot, 1 = always right.

    The proxy A-distance is 2 (2 accuracy - 1) (Ben-David 2007; Ganin 2016, arXiv:1505.07818, section 5.1.5), here with
    ridge regression instead of a linear SVM. one, other: the features (P,C) of each image, at least two images of each
    kind. The classifier is fitted on every second image and tested on the rest, and the other way round. The result is
    the mean over the two kinds, so that their sizes do not matter.
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
    """The squared Frechet distance between two sets of features (N,C) and (M,C), as Gaussians, per channel; 0 = equal.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel 2017, arXiv:1706.08500, eq. 6), divided by C. The features are
    scaled to unit variance over the two sets, so that a network does not lower the distance by smaller features.
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
    """Mean and standard deviation of each channel, (C,), with equal weight for the two sets."""
    mean = (one.mean(0) + other.mean(0)) / 2
    variance = ((one - mean).square().mean(0) + (other - mean).square().mean(0)) / 2
    return mean, variance.clamp(min=max(SIGNIFICANT * variance.mean().item(), 1e-30)).sqrt()


class DomainGap:
    """How far apart the features of real and synthetic images are, over many batches."""

    def __init__(self) -> None:
        self.features: dict[str, list[Tensor]] = {"synthetic": [], "real": []}  # (P,C) of each image
        self.logits: dict[str, list[Tensor]] = {"synthetic": [], "real": []}

    def add(self, domain: str, features: Tensor, logits: Tensor) -> None:
        """Features (n,C,s,s) of images of a domain, and the discriminator's logits on them, (n,...)."""
        self.features[domain] += features.flatten(2).mT.cpu().unbind()
        self.logits[domain].append(logits.flatten(1))

    def means(self) -> dict[str, float]:
        """domain_accuracy of the discriminator, .5 where it cannot tell the domains apart; and two figures that do not
        depend on how well the discriminator has learned: domain_probe (``probe_accuracy``), and domain_frechet
        (``frechet_distance``). These need two images of each domain and are left out if there are fewer."""
        real, synthetic = self.features["real"], self.features["synthetic"]
        accuracy = domain_accuracy(torch.cat(self.logits["real"]), torch.cat(self.logits["synthetic"]))
        figures = {"domain_accuracy": accuracy.item()}
        if min(len(real), len(synthetic)) > 1:
            figures["domain_probe"] = probe_accuracy(real, synthetic)
            figures["domain_frechet"] = frechet_distance(torch.cat(real), torch.cat(synthetic))
        return figures
