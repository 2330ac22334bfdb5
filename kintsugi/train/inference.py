"""Features of an encoder that is still being trained, and of two baselines that learn nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.pixels import Pixels
from kintsugi.nets.specs import fresh
from kintsugi.train.dist import World


@torch.no_grad()
def features(encoder: Encoder, image: Tensor, world: World) -> Tensor:
    """Features of images (N,3,S,S) in [0,1]: float (N,D), computed in evaluation mode.

    The encoder's mode is restored afterwards.
    """
    training = encoder.training
    with world.autocast():
        vectors = encoder.eval().vectors(image).float()
    encoder.train(training)
    return vectors


def untrained_features(encoder: Encoder, seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """The features of two baselines: pixels, and a network like ``encoder`` with random weights.

    Returns name -> function from images (N,3,S,S) in [0,1] to features (N,D).
    """
    nets = {"pixels": Pixels().build(), "random init": fresh(encoder, seed)}
    return {name: torch.no_grad()(lambda image, net=net: net.vectors(image).float()) for name, net in nets.items()}
