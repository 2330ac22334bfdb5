from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kintsugi.metrics.neighbors import same_image


def test_same_image_is_that_of_nested_loops():
    random = torch.Generator().manual_seed(0)
    image = torch.randn(3, 7, 5, generator=random)
    first, second = (image + 0.7 * torch.randn(3, 7, 5, generator=random) for _ in range(2))

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    hits = 0
    for draw in range(3):
        for one, other in ((first, second), (second, first)):
            for i in range(7):
                similar = [cosine(one[draw, i], other[draw, j]) for j in range(7)]
                hits += max(range(7), key=similar.__getitem__) == i
    assert 0 < hits < 42
    assert same_image(first, second) == pytest.approx(hits / 42)


def test_same_image_of_equal_and_of_swapped_views():
    views = torch.eye(4)[None]
    assert same_image(views, 3 * views) == 1  # lengths do not matter
    assert same_image(views, views.flip(1)) == 0
