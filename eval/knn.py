"""Nearest neighbours: what features are worth without any training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from core import knn

CHUNK = 512  # test images compared at once: what bounds memory is a chunk's similarities


def vote(known: Tensor, labels: Tensor, asked: Tensor, classes: int, neighbours: int) -> Tensor:
    """The class (M,) that each of ``asked`` (M,C) is voted into by its ``neighbours`` nearest of ``known`` (N,C), whose
    classes are ``labels`` (N,), as ``core.knn`` has it."""
    unit = normalize(known, dim=1)
    chunks = normalize(asked, dim=1).split(CHUNK)
    return torch.cat([knn.vote(x @ unit.T, labels, classes, neighbours) for x in chunks])
