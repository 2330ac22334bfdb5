"""MoCo: match a view with the other view of its image among a long queue of earlier keys (He et al. 2020,
arXiv:1911.05722).

Algorithm 1: the keys' network is a moving average of the queries' network. Queries are compared with their keys and
with the queue of earlier keys; the new keys join the queue after the loss. ``--version 2`` (Chen 2020,
arXiv:2003.04297): a two-layer head, blur, a cosine schedule, temperature .2. ``--version 1``: a linear head, no blur, a
step schedule, temperature .07.

Batch statistics would give the match away, because a query and its key would be normalized with the same images.
Therefore the keys' images are shuffled over the ranks (section 3.3), and on one device each quarter of the batch is
normalized separately (``--norm split``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.contrastive.views import ViewsConfig, ViewsMethod, mlp
from kintsugi.losses.infonce import info_nce, retrieval
from kintsugi.metrics.spread import spread
from kintsugi.nets.encoder import Encoder
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.ema import ema_copy, ema_update
from kintsugi.train.method import Batch
from kintsugi.upload import upload

_SHUFFLE = 3  # last element of the random generator's key


@dataclass(frozen=True, kw_only=True)
class MoCoConfig(ViewsConfig):
    norm: Literal["batch", "group", "split"] = "split"
    version: Literal[1, 2] = 2
    """1 or 2: the head, color changes, schedule and temperature of that paper."""
    temperature: float = 0.0
    """Temperature of the loss; 0: that of --version, .07 or .2."""
    dim: int = 128
    """Width of the embedding."""
    head_norm: bool = False
    """Batch norms in the projector and at its end, as in version 3 (Chen 2021, arXiv:2104.02057); none with --norm
    group. Without them short runs learn to recognize the age of keys: all embeddings drift together, so that the newest
    keys are the nearest."""
    queue: int = 65_536
    """Number of earlier keys that serve as negatives."""
    momentum: float = 0.999
    """Momentum of the moving average that gives the keys' network."""
    symmetric: bool = False
    """Use each view as query and as key, at twice the cost, and add both losses (the authors' demo on CIFAR-10)."""
    optimizer: optim.Rule = "sgd"
    lr: float = 0.03
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, temperature=0, dim=1, momentum=(0, 1))
        keys = self.batch * (2 if self.symmetric else 1)
        if self.queue < keys:
            raise ValueError(f"--queue {self.queue} is too short: one step adds {keys} keys")


def demo() -> MoCoConfig:
    """Minutes on two CPU cores, on the built-in scenes. A short queue and a low momentum, because there are few
    steps."""
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
    """Version 2's ResNet-50 on ImageNet: batch 256, 200 epochs."""
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
    """The factor on the learning rate at a step.

    Version 1: a tenth from 60 % of the run on, a hundredth from 80 % on (He 2020); version 2: a cosine.
    """
    if version == 1:
        return 0.1 ** ((step >= 0.6 * steps) + (step >= 0.8 * steps))
    return optim.warmup_cosine(step, steps, 0)


class Queue(nn.Module):
    """The last ``length`` keys, unit vectors (length,D), in a ring buffer that is saved with the checkpoint.

    Deviation: places without a key yet are never candidates. The authors fill them with random vectors. This invites a
    collapse at the start, because a single embedding for all images differs from noise well enough. Long runs recover.
    """

    keys: Tensor
    written: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(length, dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    def similarities(self, query: Tensor) -> Tensor:
        """Dot products of queries (N,D) with all keys, (N,length); -inf for empty places."""
        empty = torch.arange(len(self.keys), device=query.device) >= self.written
        return (query @ self.keys.T).masked_fill(empty, -torch.inf)

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replaces the oldest keys with these (N,D)."""
        places = (self.written + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[places] = keys.to(self.keys)
        self.written += len(keys)


class MoCo(ViewsMethod[MoCoConfig]):
    """A network for queries, trained by gradients, its moving average for keys, and the queue."""

    name = "moco"

    def __init__(self, config: MoCoConfig, world: World) -> None:
        super().__init__(config, world)
        widths = (self.width, config.dim) if config.version == 1 else (self.width, self.width, config.dim)
        norm = config.head_norm and config.norm != "group"
        self.projector = mlp(widths, norm=norm, last_norm=norm)
        self.key_net = ema_copy(self.query_net)
        self.queue = Queue(config.queue, config.dim)
        self.temperature = config.temperature or (0.07 if config.version == 1 else 0.2)
        self.add_optimizer("both", self.query_net)

    @property
    def query_net(self) -> nn.ModuleList:
        """Encoder and projector, whose moving average is ``key_net``."""
        return nn.ModuleList([self.encoder, self.projector])

    def recipes(self) -> tuple[ColorAugmentation, ColorAugmentation]:
        """The color changes of the version, the same for both views."""
        config = self.config
        if config.version == 1:  # as Wu 2018: no blur; a mild jitter of every view
            recipe = ColorAugmentation(0.4, 0.4, 0.4, 0.4, jitter=1.0, blur=0.0).with_strength(config.strength)
        else:
            recipe = ColorAugmentation(0.4, 0.4, 0.4, 0.1, blur=config.blur).with_strength(config.strength)
        return recipe, recipe

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        first, second = self.view(batch, 0, step), self.view(batch, 1, step)
        self.query_net.train()
        ema_update(self.key_net, self.query_net, config.momentum)
        pairs = [(first, second), (second, first)] if config.symmetric else [(first, second)]
        losses, pushed, scalars = [], [], {}
        for turn, (query_view, key_view) in enumerate(pairs):
            with self.world.autocast():
                query = self.projector(self.encoder.vectors(query_view))
            query = normalize(query.float(), dim=1)  # (n,D)
            key = self.encode_keys(key_view, 2 * step + turn)  # (n,D)
            positive = (query * key).sum(1, keepdim=True)  # (n,1)
            logits = torch.cat([positive, self.queue.similarities(query)], dim=1) / self.temperature
            zero = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
            losses.append(info_nce(logits, zero))
            pushed.append(self.world.gather(key))
            if config.logs(step):
                scalars = retrieval(logits, zero, self.temperature) | spread(query)
        loss = torch.stack(losses).sum()
        optimizer = self.optimizers["both"]
        self.world.backward(loss, optimizer)
        self.queue.push(torch.cat(pushed))  # after the loss, or a query would find its own key in the queue
        optim.set_lr(optimizer, self.rate * schedule(config.version, step, config.steps))
        scalars["loss/info_nce"] = loss.detach() / len(losses)
        return scalars | self.take_step("both", step)

    @torch.no_grad()
    def encode_keys(self, image: Tensor, number: int) -> Tensor:
        """This rank's keys, unit vectors (n,D), of its images (n,3,S,S) in [0,1].

        The images of all ranks are shuffled before they are encoded; ``number`` seeds the shuffle.
        """
        everywhere = self.world.gather(image)  # (N,3,S,S)
        order = torch.randperm(len(everywhere), generator=generator(self.config.seed, number, _SHUFFLE))
        mine, back = upload(image.device, self.world.slice(order), self.world.slice(order.argsort()))
        encoder, projector = self.key_net
        assert isinstance(encoder, Encoder)
        self.key_net.train()
        with self.world.autocast():
            shuffled = projector(encoder.vectors(everywhere[mine]))
        keys = self.world.gather(normalize(shuffled.float(), dim=1))  # (N,D), shuffled
        return keys[back]


def main(argv: Sequence[str] | None = None) -> None:
    run_method(MoCo, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
