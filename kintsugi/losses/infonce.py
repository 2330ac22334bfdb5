"""InfoNCE, and figures that show the progress of training: pure functions of embeddings and logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def info_nce(logits: Tensor, positive: Tensor) -> Tensor:
    """The mean of -log softmax(logits)[positive] over rows, () (van den Oord 2018, arXiv:1807.03748, eq. 4).

    logits (N,K): similarities divided by the temperature; -inf for entries that are not candidates. positive (N,): the
    index of each row's positive.
    """
    return cross_entropy(logits, positive)


def nt_xent_logits(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """SimCLR's logits: each of 2N views against all others; its positive is the other view of its image.

    first, second: embeddings (N,D) of two views of the same images. Returns logits (2N,2N), which are cosines divided
    by the temperature, with -inf on the diagonal; and the positives' indices (2N,) (Chen 2020, arXiv:2002.05709, eq.
    1).

    >>> logits, positive = nt_xent_logits(torch.eye(3), torch.eye(3), temperature=0.1)
    >>> logits.shape, positive.tolist()
    (torch.Size([6, 6]), [3, 4, 5, 0, 1, 2])
    >>> (logits.argmax(1) == positive).all().item()
    True
    """
    count = len(first)
    views = normalize(torch.cat([first, second]).float(), dim=1)  # (2N,D)
    logits = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    return logits, torch.arange(2 * count, device=logits.device).roll(count)


def retrieval(logits: Tensor, positive: Tensor, temperature: float) -> dict[str, Tensor]:
    """Figures to log: how often the positive is the nearest candidate, and mean similarities, as 0-d tensors.

    logits (N,K) and positive (N,) as in ``info_nce``. ``similarity/positive`` and ``similarity/negative`` are the means
    over the positives and over all other candidates.
    """
    logits = logits.detach()
    chosen = logits.gather(1, positive[:, None])[:, 0]
    others = logits.scatter(1, positive[:, None], -torch.inf)
    candidates = others.isfinite()
    return {
        "contrast/accuracy": (logits.argmax(1) == positive).float().mean(),
        "similarity/positive": temperature * chosen.mean(),
        "similarity/negative": temperature * others.masked_fill(~candidates, 0).sum() / candidates.sum().clamp(min=1),
    }
