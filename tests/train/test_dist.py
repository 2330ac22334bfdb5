from __future__ import annotations

import pytest
import torch

from kintsugi.train.dist import World, open_world


def test_a_rank_takes_its_slice_and_the_slices_make_the_whole():
    whole = torch.arange(12).view(6, 2)
    parts = [World(torch.device("cpu"), rank, 3).slice(whole) for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole)


def test_one_process_needs_no_group():
    with open_world("cpu", "auto", 7) as world:
        assert (world.rank, world.size, world.bf16, world.is_main) == (0, 1, False, True)
        assert world.any(True)
        assert not world.any(False)
        assert world.from_main("x") == "x"
    with open_world("cpu", "bf16", 7) as world, world.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_batch_that_does_not_split_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="--batch 8 does not split over 3 ranks"), open_world("cpu", "auto", 8):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match="--device cuda: no GPU"), open_world("cuda", "auto", 8):
        pass


def test_a_weighted_mean_of_one_known_pixel_on_two_ranks(monkeypatch: pytest.MonkeyPatch):
    """Fewer known pixels than ranks: each rank divides by half a pixel, and the mean of both is the pixel's value."""
    monkeypatch.setattr(World, "mean", lambda self, total: torch.tensor(0.5))  # of 1 and 0
    ranks = [World(torch.device("cpu"), rank, 2) for rank in (0, 1)]
    values, weights = torch.tensor([[3.0, 5.0], [7.0, 7.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    means = [world.weighted_mean(v, w) for world, v, w in zip(ranks, values, weights, strict=True)]
    assert torch.stack(means).mean() == 3
