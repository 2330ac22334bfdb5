"""Votes of nearest neighbors (Wu 2018, arXiv:1805.01978, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def vote(similarity: Tensor, labels: Tensor, classes: int, neighbors: int, temperature: float = 0.1) -> Tensor:
    """The class (M,) into which the ``neighbors`` most similar of N known images vote each of M.

    similarity (M,N): cosines s, which weigh exp(s / temperature); labels (N,): classes of the known ones.
    """
    near, index = similarity.topk(min(neighbors, len(labels)), dim=1)
    votes = torch.zeros(len(similarity), classes, device=similarity.device)
    votes.scatter_add_(1, labels[index], (near / temperature).exp())
    return votes.argmax(1)


def leave_one_out(features: Tensor, labels: Tensor, neighbors: int = 20) -> float:
    """Part of images, of features (N,D), whose label (N,) their nearest others vote for."""
    unit = normalize(features.float(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    said = vote(similarity, labels, int(labels.amax()) + 1, min(neighbors, len(unit) - 1))
    return (said == labels).float().mean().item()


CHUNK = 512  # test images compared at once: what bounds memory is a chunk's similarities


def classify(known: Tensor, labels: Tensor, asked: Tensor, classes: int, neighbors: int) -> Tensor:
    """The class (M,) that each of ``asked`` (M,C) is voted into by its ``neighbors`` nearest of ``known`` (N,C), whose
    classes are ``labels`` (N,)."""
    unit = normalize(known, dim=1)
    chunks = normalize(asked, dim=1).split(CHUNK)
    return torch.cat([vote(x @ unit.T, labels, classes, neighbors) for x in chunks])
