from __future__ import annotations

import torch

from kintsugi.rng import derive_seed, generator


def test_draws_depend_on_the_key_alone():
    def draw(*key: int) -> torch.Tensor:
        return torch.rand(4, generator=generator(*key))

    assert torch.equal(draw(1, 2), draw(1, 2))
    keys = [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (2**32, 3), (0, 1, 3)]
    draws = torch.stack([draw(*key) for key in keys])
    assert len(draws.unique(dim=0)) == len(keys)


def test_seeds_are_63_bit_and_spread():
    seeds = [derive_seed(i) for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0.45 < sum(seed & 1 for seed in seeds) / 1000 < 0.55
