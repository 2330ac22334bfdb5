"""MoCo: a view finds its partner among a long queue of earlier keys (He et al. 2020, arXiv:1911.05722).

Algorithm 1: keys come from a slowly following copy of the query's network; they are compared with the queue as it is,
and enqueued after. ``--version 2`` (Chen 2020, arXiv:2003.04297): a deeper head, blur, a cosine, temperature .2;
``--version 1``: a linear head, no blur, two falls of the rate, temperature .07.

A batch norm would betray the partner: both pass in batches of the same make-up. The keys' images are shuffled over the
ranks, and on one device each part of the batch is normalized by itself (``--norm split``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.contrastive.views import ViewsConfig, ViewsMethod, logged_spread, mlp
from kintsugi.losses.infonce import info_nce, retrieval
from kintsugi.nets.encoder import Encoder
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.ema import ema_copy, ema_update
from kintsugi.train.method import Batch

_SHUFFLE = 3


@dataclass(frozen=True, kw_only=True)
class MoCoConfig(ViewsConfig):
    norm: Literal["batch", "group", "split"] = "split"
    version: Literal[1, 2] = 2
    """1 or 2, each with its paper's head, colors, schedule and temperature."""
    temperature: float = 0.0
    """0: the version's own, .07 or .2."""
    dim: int = 128
    """Width of the embedding."""
    head_norm: bool = False
    """Batch norms in the projector and at its end, as version 3 has them (Chen 2021, arXiv:2104.02057); none with
    ``--norm group``. Without them short runs tell keys by their age: all embeddings move the same way together, and
    the newest keys are nearest."""
    queue: int = 65_536
    """How many keys are remembered."""
    momentum: float = 0.999
    """Of the keys' network."""
    symmetric: bool = False
    """Each view is both query and key, at twice the cost; the two losses are added (the authors' demo on CIFAR-10)."""
    optimizer: optim.Rule = "sgd"
    """sgd, the paper's; adam for short runs; lars."""
    lr: float = 0.03
    """Learning rate: for lars and sgd per 256 images, for adam as it is."""
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, temperature=0, dim=1, lr=0, weight_decay=0, momentum=(0, 1))
        keys = self.batch * (2 if self.symmetric else 1)
        if self.queue < keys:
            raise ValueError(f"--queue {self.queue} is shorter than what one step adds, {keys}")


def demo() -> MoCoConfig:
    """Minutes on two CPU cores, built-in scenes. A short queue, and keys of a network that follows quickly, as there
    are few steps."""
    return MoCoConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=400,
        batch=64,
        queue=512,
        momentum=0.9,
        head_norm=True,
        optimizer="adam",
        lr=1e-3,
        smallest_crop=0.2,
        show_every=150,
        eval_every=100,
        save_every=100,
    )


def small() -> MoCoConfig:
    """One GPU, tens of minutes."""
    return MoCoConfig(
        preset="small",
        size=64,
        batch=256,
        steps=20_000,
        queue=4096,
        momentum=0.99,
        smallest_crop=0.2,
        lr=0.06,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> MoCoConfig:
    """Version 2, ResNet-50 on ImageNet, 200 epochs of batch 256."""
    return MoCoConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="resnet50",
        size=224,
        short_side=256,
        batch=256,
        steps=1_000_000,
        smallest_crop=0.2,
        cache_gb=400,
        show_every=10_000,
        eval_every=10_000,
        save_every=10_000,
    )


def schedule(version: Literal[1, 2], step: int, steps: int) -> float:
    """The factor on the learning rate: version 1 falls tenfold at .6 and .8 of the run (He 2020), 2 by a cosine."""
    if version == 1:
        return 0.1 ** ((step >= 0.6 * steps) + (step >= 0.8 * steps))
    return optim.warmup_cosine(step, steps, 0)


class Queue(nn.Module):
    """The last ``length`` keys, unit vectors (length,D): a ring written in place; a checkpoint holds it whole.

    Places that no key was written to are no candidates. (The authors fill them with random vectors, to which the
    quickest answer is a collapse: one and the same embedding tells all images from noise. Long runs recover from it.)
    """

    keys: Tensor
    written: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(length, dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    def similarities(self, query: Tensor) -> Tensor:
        """Of queries (N,D) with all keys, (N,length); -inf where there is none yet."""
        empty = torch.arange(len(self.keys), device=query.device) >= self.written
        return (query @ self.keys.T).masked_fill(empty, -torch.inf)

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replaces the oldest keys by these (N,D)."""
        places = (self.written + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[places] = keys.to(self.keys)
        self.written += len(keys)


class MoCo(ViewsMethod[MoCoConfig]):
    name = "moco"

    def __init__(self, config: MoCoConfig, world: World) -> None:
        super().__init__(config, world)
        width = max(self.encoder.channels.items())[1]
        widths = (width, config.dim) if config.version == 1 else (width, width, config.dim)
        norm = config.head_norm and config.norm != "group"
        self.projector = mlp(widths, norm=norm, last_norm=norm)
        self.keys = ema_copy(self.query)
        self.queue = Queue(config.queue, config.dim)
        self.temperature = config.temperature or (0.07 if config.version == 1 else 0.2)
        self.rate = optim.scaled_lr(config.optimizer, config.lr, config.batch)
        self.optimizers = {"both": optim.make_optimizer(config.optimizer, self.query, self.rate, config.weight_decay)}

    @property
    def query(self) -> nn.ModuleList:
        """Encoder and projector, which ``keys`` follows."""
        return nn.ModuleList([self.encoder, self.projector])

    def recipes(self) -> tuple[ColorAugmentation, ColorAugmentation]:
        config = self.config
        if config.version == 1:  # Wu 2018's: no blur, gray .2, a mild jitter that is always there
            recipe = ColorAugmentation(0.4, 0.4, 0.4, 0.4, jitter=1.0, blur=0.0).with_strength(config.strength)
        else:
            recipe = ColorAugmentation(0.4, 0.4, 0.4, 0.1, blur=config.blur).with_strength(config.strength)
        return recipe, recipe

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        first, second = self.view(batch, 0, step), self.view(batch, 1, step)
        self.query.train()
        ema_update(self.keys, self.query, config.momentum)
        pairs = [(first, second), (second, first)] if config.symmetric else [(first, second)]
        losses, pushed, scalars = [], [], {}
        for number, (query_view, key_view) in enumerate(pairs):
            with self.world.autocast():
                query = self.projector(self.encoder.vectors(query_view))
            query = normalize(query.float(), dim=1)  # (n,D)
            key = self.key(key_view, 2 * step + number)  # (n,D)
            positive = (query * key).sum(1, keepdim=True)  # (n,1)
            logits = torch.cat([positive, self.queue.similarities(query)], dim=1) / self.temperature
            zero = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
            losses.append(info_nce(logits, zero))
            pushed.append(self.world.gather(key))
            scalars = retrieval(logits, zero, self.temperature) | logged_spread(query, config, step)
        loss = torch.stack(losses).sum()
        loss.backward()
        self.queue.push(torch.cat(pushed))  # after the logits, in which a key would meet itself
        optimizer = self.optimizers["both"]
        optim.set_lr(optimizer, self.rate * schedule(config.version, step, config.steps))
        scalars["loss/info_nce"] = loss.detach() / len(losses)
        return scalars | {"grad_norm/both": optim.take_step(optimizer, self.world)}

    @torch.no_grad()
    def key(self, image: Tensor, draw: int) -> Tensor:
        """This rank's keys (n,D), computed in an order drawn over all ranks."""
        everywhere = self.world.gather(image)  # (N,3,S,S)
        order = torch.randperm(len(everywhere), generator=generator(self.config.seed, draw, _SHUFFLE))
        encoder, projector = self.keys
        assert isinstance(encoder, Encoder)
        self.keys.train()
        with self.world.autocast():
            shuffled = projector(encoder.vectors(everywhere[self.world.slice(order)]))
        keys = self.world.gather(normalize(shuffled.float(), dim=1))  # (N,D), in that order
        return keys[self.world.slice(order.argsort())]


def main(argv: Sequence[str] | None = None) -> None:
    run_method(MoCo, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
