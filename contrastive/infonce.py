"""InfoNCE and what shows whether it learns or collapses: pure functions of embeddings and logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def info_nce(logits: Tensor, positive: Tensor) -> Tensor:
    """-log of the softmax of the positive among all candidates, mean, () (van den Oord 2018, arXiv:1807.03748, eq. 4).

    logits (N,K), similarities over temperature; positive (N,) the number of each row's positive; -inf is no candidate.
    """
    return cross_entropy(logits, positive)


def nt_xent_logits(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """SimCLR's candidates: of 2N views all but itself, its positive being the other view of its image.

    first, second (N,D): two views of the same images. Returns logits (2N,2N), -inf on the diagonal, and the positives'
    numbers (2N,) (Chen 2020, arXiv:2002.05709, eq. 1).
    """
    count = len(first)
    views = normalize(torch.cat([first, second]).float(), dim=1)  # (2N,D)
    logits = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    return logits, torch.arange(2 * count, device=logits.device).roll(count)


def retrieval(logits: Tensor, positive: Tensor, temperature: float) -> dict[str, Tensor]:
    """What to log of a contrast: how often the positive is the nearest candidate, and the mean similarities."""
    logits = logits.detach()
    chosen = logits.gather(1, positive[:, None])[:, 0]
    others = logits.scatter(1, positive[:, None], -torch.inf)
    candidates = others.isfinite()
    return {
        "contrast/accuracy": (logits.argmax(1) == positive).float().mean(),
        "similarity/positive": temperature * chosen.mean(),
        "similarity/negative": temperature
        * others.masked_fill(~candidates, 0).sum()
        / candidates.sum().clamp(min=1),
    }


COLLAPSED = 0.01
"""A ``spread/deviation`` below it is a collapse; fresh networks have .05 and more."""

COLLAPSED_RANK = 1.5
"""A ``spread/rank`` below it is a collapse too: one direction holds nearly all. Two images alone have a rank of 1."""


def spread(embeddings: Tensor) -> dict[str, Tensor]:
    """How far embeddings (N,D) are from having collapsed.

    deviation: the mean standard deviation of a normalised embedding's coordinates, times sqrt(D): 1 where they are
    spread evenly over the sphere, 0 where all are one point (Chen and He 2021, arXiv:2011.10566, figure 2).
    rank: effective rank, exp of the entropy of the normalised singular values (Roy and Vetterli 2007).
    """
    unit = normalize(embeddings.detach().float(), dim=1)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {
        "spread/deviation": unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5,
        "spread/rank": entropy.exp(),
    }
