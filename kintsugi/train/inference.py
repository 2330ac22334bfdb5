"""Features of an encoder that is still being trained."""

from __future__ import annotations

import torch
from torch import Tensor

from kintsugi.nets.encoder import Encoder
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
