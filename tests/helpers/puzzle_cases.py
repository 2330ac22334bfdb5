"""Checks that several puzzle methods share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kintsugi.pretext.puzzles import PuzzleMethod
from kintsugi.rng import generator
from kintsugi.train.dist import World


def linear_accuracy(features: Tensor, truth: Tensor, classes: int) -> float:
    """Accuracy of a least-squares classifier, fitted to the first half and tested on the second; features (n,D)."""
    features = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    half = len(features) // 2
    weights = torch.linalg.lstsq(features[:half], one_hot(truth[:half], classes).double()).solution
    return ((features[half:] @ weights).argmax(1) == truth[half:]).float().mean().item()


def check_shares_of_two_ranks(method: PuzzleMethod, image: Tensor) -> None:
    """Each of two ranks makes its half of the puzzles that one process would make of four images."""
    inputs, truth = method.puzzle(image, generator(2), 4, slice(None))
    for rank in (0, 1):
        mine = World(torch.device("cpu"), rank, 2).part(4)
        found = method.puzzle(image[mine], generator(2), 4, mine)
        assert torch.equal(found[0], inputs[mine])
        assert torch.equal(found[1], truth[mine])
