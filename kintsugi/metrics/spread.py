"""The spread of embeddings, by which a collapse is detected."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

COLLAPSED = 0.01
"""A ``spread/deviation`` below this is a collapse. Untrained networks have 0.05 or more."""

COLLAPSED_RANK = 1.5
"""A ``spread/rank`` below this is a collapse too: almost all variance is in one direction.

Two embeddings alone always have a rank of 1.
"""


def spread(embeddings: Tensor) -> dict[str, Tensor]:
    """Two figures of how far embeddings (N,D) are spread, 0-d each.

    spread/deviation: the mean standard deviation of the coordinates of the normalized embeddings, times sqrt(D). It is
    1 if they are spread evenly over the sphere, and 0 if all are one point (Chen and He 2021, arXiv:2011.10566, figure
    2).

    spread/rank: the effective rank, which is exp of the entropy of the normalized singular values (Roy and Vetterli
    2007). RankMe (Garrido 2023, arXiv:2210.02885, eq. 1) is the same of the embeddings as they are. Here they are
    normalized and centered first: a mean that all share, such as that of ReLU's outputs, would else be the largest
    singular value and hide the others. It is at most the smaller of N - 1 and D.
    """
    unit = normalize(embeddings.detach().float(), dim=1)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"spread/deviation": unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5, "spread/rank": entropy.exp()}
