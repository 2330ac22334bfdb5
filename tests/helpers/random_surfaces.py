"""Random depth and normals, for tests of losses and errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def random_surfaces(count: int = 2) -> tuple[Tensor, Tensor]:
    """Predictions and targets (N,4,5,6), depth and unit normals; some targets are missing, which is 0."""
    prediction, targets = torch.rand(2, count, 4, 5, 6) + 0.5
    for x in (prediction, targets):
        x[:, 1:] = normalize(torch.randn(count, 3, 5, 6) + torch.tensor([0, 0, -3])[:, None, None])
    targets[:, 0, :2] = 0
    targets[:, 1:, :, 3:5] = 0
    return prediction, targets
