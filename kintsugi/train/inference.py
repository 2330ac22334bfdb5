"""Features of an encoder that is still being trained, and of two baselines that learn nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.layers import SplitBatchNorm
from kintsugi.nets.pixels import Pixels
from kintsugi.nets.specs import fresh
from kintsugi.train.compute import Compute
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


def untrained_features(
    encoder: Encoder, seed: int, batches: Iterable[Tensor], world: World
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The features of two baselines: pixels, and a network like ``encoder`` with random weights.

    batches: the images (n,3,S,S) in [0,1] to which the batch norms of the random weights are fitted, as in a transfer.
    Returns name -> function from images (N,3,S,S) in [0,1] to features (N,D).
    """
    random = fresh(encoder, seed)
    several = (images for images in batches if len(images) > 1)  # a single image may have maps of a single pixel
    fit_batch_norms(random, several, Compute(world.device))
    nets = {"pixels": Pixels().build(), "random init": random}
    return {name: torch.no_grad()(lambda image, net=net: net.vectors(image).float()) for name, net in nets.items()}


@torch.no_grad()
def fit_batch_norms(encoder: Encoder, batches: Iterable[Tensor], compute: Compute) -> None:
    """Sets the batch norms' running statistics to those of some images, and leaves the encoder in evaluation mode.

    Random weights have no statistics of their own: their batch norms would do nothing. Those of pre-training come from
    other images. batches: (n,3,H,W) in [0,1]; the statistics are the plain mean over batches.
    """
    kinds = (nn.BatchNorm2d, SplitBatchNorm)
    norms = [layer for layer in encoder.modules() if isinstance(layer, kinds)]
    if norms:
        before = [norm.momentum for norm in norms]
        encoder.eval()  # no dropout
        for norm in norms:
            norm.train()
        for number, images in enumerate(batches, 1):
            for norm in norms:
                norm.momentum = 1 / number  # the first batch replaces the old statistics
            with compute.autocast():
                encoder(images.to(compute.device))
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
    encoder.eval()
