"""Nearest neighbours: what features are worth without any training (Wu 2018, arXiv:1805.01978, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

CHUNK = 512  # test images compared at once: what bounds memory is a chunk's similarities


def vote(
    known: Tensor, labels: Tensor, asked: Tensor, classes: int, neighbours: int, temperature: float = 0.1
) -> Tensor:
    """The class (M,) that each of ``asked`` (M,C) is voted into by its ``neighbours`` nearest of ``known`` (N,C), whose
    classes are ``labels`` (N,): cosine similarity s, weights exp(s / temperature)."""
    unit = normalize(known, dim=1)
    said = []
    for x in normalize(asked, dim=1).split(CHUNK):
        near, index = (x @ unit.T).topk(min(neighbours, len(unit)), dim=1)
        votes = torch.zeros(len(x), classes, device=x.device)
        votes.scatter_add_(1, labels[index], (near / temperature).exp())
        said.append(votes.argmax(1))
    return torch.cat(said)
