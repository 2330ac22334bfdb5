"""Votes of nearest neighbours (Wu 2018, arXiv:1805.01978, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor


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
