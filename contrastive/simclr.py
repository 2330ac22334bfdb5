"""SimCLR: match the two views of an image among all views of the batch (Chen et al. 2020, arXiv:2002.05709).

Algorithm 1: two augmented views of each image pass an encoder and a projection head; NT-Xent is the loss of the
projections. After training the head is discarded. Settings are the paper's. Embeddings are gathered over the ranks, so
that the negatives come from the global batch.

With ``--local-crops``, which the paper does not have, each small crop is matched with both views as well, as in SwAV
(Caron 2020, arXiv:2006.09882, section 3.3). The loss is the mean over all these pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kintsugi.contrastive.crops import CropsConfig, CropsMethod, encode_crops
from kintsugi.contrastive.views import mlp
from kintsugi.losses.infonce import info_nce, nt_xent_logits, retrieval
from kintsugi.metrics.spread import spread
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(CropsConfig):
    temperature: float = 0.1
    """Temperature of the loss. The paper uses .1, and .5 at 32 px."""
    dim: int = 128
    """Width of the embedding."""
    lr: float = 0.3
    weight_decay: float = 1e-6
    warmup: int = 0
    """Steps over which the learning rate rises linearly; then it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, temperature=1e-3, dim=1, warmup=0)


def demo() -> SimCLRConfig:
    """Minutes on two CPU cores, on the built-in scenes."""
    return SimCLRConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=400,
        batch=64,
        optimizer="adam",
        lr=1e-3,
        warmup=30,
        temperature=0.2,
        smallest_crop=0.2,
        show_every=150,
        eval_every=100,
        save_every=100,
    )


def small() -> SimCLRConfig:
    """One GPU, tens of minutes."""
    return SimCLRConfig(
        preset="small",
        data="scenes",
        size=64,
        batch=256,
        steps=20_000,
        optimizer="adam",
        lr=1e-3,
        warmup=500,
        temperature=0.2,
        smallest_crop=0.2,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
        scenes=50_000,
    )


def paper() -> SimCLRConfig:
    """The paper's ResNet-50 on ImageNet: batch 4096, 100 epochs."""
    return SimCLRConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="resnet50",
        size=224,
        short_side=256,
        batch=4096,
        steps=31_300,
        warmup=3_130,
        cache_gb=400,
        show_every=1_000,
        eval_every=2_000,
        save_every=1_000,
    )


class SimCLR(CropsMethod[SimCLRConfig]):
    """An encoder and a projection head, trained with NT-Xent."""

    name = "simclr"

    def __init__(self, config: SimCLRConfig, world: World) -> None:
        super().__init__(config, world)
        norm = config.norm != "group"
        # As in the authors' code: a norm after the last layer too, and no bias before a norm.
        self.projector = mlp((self.width, self.width, config.dim), norm=norm, last_norm=norm, bias=not norm)
        self.add_optimizer("both", nn.ModuleList([self.encoder, self.projector]))

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        crops = list(inputs.values())
        self.encoder.train()
        with self.world.autocast():
            flat = self.projector(encode_crops(self.encoder, crops)).float()  # ((2+L)*n,D)
        one, other, *local = (self.world.gather(crop) for crop in flat.split(crops[0].shape[1]))  # (N,D) each
        logits, positive = nt_xent_logits(one, other, config.temperature)
        losses = [info_nce(logits, positive)]
        for view, crop in itertools.product((one, other), local):
            losses.append(info_nce(*nt_xent_logits(view, crop, config.temperature)))
        loss = torch.stack(losses).mean()
        optimizer = self.optimizers["both"]
        self.world.backward(loss, optimizer)
        optim.set_lr(optimizer, self.rate * optim.warmup_cosine(step, config.steps, config.warmup))
        scalars = {"loss/nt_xent": loss.detach(), **self.take_step("both", step)}
        if config.logs(step):
            scalars |= retrieval(logits, positive, config.temperature) | spread(one)
        return scalars


def main(argv: Sequence[str] | None = None) -> None:
    run_method(SimCLR, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
