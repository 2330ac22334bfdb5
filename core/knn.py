"""Votes of nearest neighbours (Wu 2018, arXiv:1805.01978, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def vote(
    similarity: Tensor, labels: Tensor, classes: int, neighbours: int, temperature: float = 0.1
) -> Tensor:
    """The class (M,) into which the ``neighbours`` most similar of N known images vote each of M.

    similarity (M,N): cosines s, which weigh exp(s / temperature); labels (N,): classes of the known ones.
    """
    near, index = similarity.topk(min(neighbours, len(labels)), dim=1)
    votes = torch.zeros(len(similarity), classes, device=similarity.device)
    votes.scatter_add_(1, labels[index], (near / temperature).exp())
    return votes.argmax(1)


def leave_one_out(features: Tensor, labels: Tensor, neighbours: int = 20) -> float:
    """Part of images, of features (N,D), whose label (N,) their nearest others vote for."""
    unit = normalize(features.float(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    said = vote(similarity, labels, int(labels.amax()) + 1, min(neighbours, len(unit) - 1))
    return (said == labels).float().mean().item()
