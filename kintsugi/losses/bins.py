"""The colorizer's loss on bins of ab (Zhang, Isola and Efros 2016, arXiv:1603.08511, section 2.2)."""

from __future__ import annotations

from torch import Tensor

from kintsugi import color


def classification_loss(
    logits: Tensor, ab: Tensor, bins: Tensor, weights: Tensor, neighbors: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rebalanced cross-entropy (eq. 2): logits (N,Q,s,s), ab (N,2,s,s), weights of the bins (Q,).

    Each pixel has the weight of its nearest bin. Images that are almost gray (no |ab| above 5) have weight 0, as in the
    authors' code. Returns the weighted loss, the unweighted one to log (both 0-d), and nearest bins (N,s,s).
    """
    index, soft = color.soft_encode(ab, bins, neighbors)
    plain = color.soft_cross_entropy(logits, index, soft)  # (N,s,s)
    colored = (ab.abs().amax((1, 2, 3)) > 5).to(plain)[:, None, None]
    nearest = index[:, 0]
    return (plain * weights[nearest] * colored).mean(), plain.mean().detach(), nearest
