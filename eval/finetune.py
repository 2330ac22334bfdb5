"""Fine-tuning for classification: all layers are trained, whether the weights are pre-trained or random."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kintsugi.augment import cropping
from kintsugi.data.image_set import Images
from kintsugi.eval.features import central_squares
from kintsugi.eval.linear import HELD_OUT, loss, score, some_of_each
from kintsugi.eval.minimize import all_layers, minimize
from kintsugi.nets.encoder import Encoder
from kintsugi.rng import derive_seed, generator
from kintsugi.train.compute import Compute


def finetune(
    make: Callable[[], Encoder],
    train: Images,
    test: Images,
    classes: int,
    size: int,
    seed: int,
    steps: int,
    batch: int,
    rates: Sequence[float],
    compute: Compute,
    layer_decay: float = 1.0,
) -> tuple[float, float]:
    """Trains encoder and linear head with each learning rate on nine tenths of the training images, and keeps the rate
    that is best on the last tenth. Returns the ``eval.linear.score`` on the test images, in [0,1], and the rate.

    Only one network, that of the best rate, predicts the test images. If there is one rate, it trains on all images.
    From random weights this is supervised training from scratch on the same labels and with the same budget.

    make: builds the encoder, always with the same weights. layer_decay: as of ``all_layers``.
    """
    assert train.labels is not None
    every = torch.arange(len(train))
    held_out = some_of_each(train.labels, HELD_OUT, seed, least=1, keep=1) if len(rates) > 1 else every < 0
    best, chosen, figure = None, rates[0], -1.0
    for lr in rates:
        net = _Classifier(make(), classes, seed, compute)
        _fit(net, train, every[~held_out], size, seed, steps, batch, lr, layer_decay)
        found = _score(net, train, every[held_out], size) if held_out.any() else 0.0
        if found > figure:
            best, chosen, figure = net, lr, found
    assert best is not None
    return _score(best, test, torch.arange(len(test)), size), chosen


class _Classifier(nn.Module):
    """An encoder and a linear head: RGB (n,3,H,W) in [0,1] -> logits (n,1,K), float."""

    def __init__(self, encoder: Encoder, classes: int, seed: int, compute: Compute) -> None:
        super().__init__()
        torch.manual_seed(derive_seed(seed, 2))
        self.encoder, self.compute = encoder, compute
        # Features are normalized first, because those of random networks have an unusual scale.
        width = encoder.vector_length
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes)).to(compute.device)

    def forward(self, image: Tensor) -> Tensor:
        with self.compute.autocast():
            return self.head(self.encoder.vectors(image).float()).float()[:, None]


def _fit(
    net: _Classifier,
    train: Images,
    rows: Tensor,
    size: int,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
    layer_decay: float,
) -> None:
    """Trains on random crops of ``size`` px of the images ``rows``, mirrored at random."""
    net.train()

    def loss_of(step: int) -> Tensor:
        random = generator(seed, step, 8)
        some = rows[torch.randint(len(rows), (batch,), generator=random)]
        found = {name: value.to(net.compute.device) for name, value in train.batch(some).items()}
        return loss(net(cropping.random_crops(found, size, batch, slice(batch), random)), found["label"])

    minimize(all_layers(net, net.encoder, layer_decay), loss_of, steps, lr, f"all layers, seed {seed}, rate {lr:g}")


@torch.no_grad()
def _score(net: _Classifier, images: Images, rows: Tensor, size: int) -> float:
    """The score on the central squares of the images ``rows``."""
    net.eval()
    pairs = [(net(image), label) for image, label in central_squares(images, size, net.compute, rows)]
    predicted, truth = (torch.cat(each) for each in zip(*pairs, strict=True))
    return score(predicted, truth).item()
