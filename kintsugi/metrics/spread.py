"""How far embeddings are from having collapsed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

COLLAPSED = 0.01
"""A ``spread/deviation`` below it is a collapse; fresh networks have .05 and more."""

COLLAPSED_RANK = 1.5
"""A ``spread/rank`` below it is a collapse too: one direction holds nearly all. Two images alone have a rank of 1."""


def spread(embeddings: Tensor) -> dict[str, Tensor]:
    """How far embeddings (N,D) are from having collapsed.

    deviation: the mean standard deviation of a normalized embedding's coordinates, times sqrt(D): 1 where they are
    spread evenly over the sphere, 0 where all are one point (Chen and He 2021, arXiv:2011.10566, figure 2).
    rank: effective rank, exp of the entropy of the normalized singular values (Roy and Vetterli 2007).
    """
    unit = normalize(embeddings.detach().float(), dim=1)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"spread/deviation": unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5, "spread/rank": entropy.exp()}
