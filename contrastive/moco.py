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
from kintsugi.nets.layers import SplitBatchNorm
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.ema import ema_copy, ema_update
from kintsugi.train.encoder_options import has_batch_norm
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
        self.together = not has_batch_norm(self.encoder)
        """Whether both views pass the encoder as one batch, which plain batch norms would mix."""
        for layer in self.encoder.modules():
            if isinstance(layer, SplitBatchNorm):
                layer.batches = 2 if config.symmetric else 1
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

    def inputs(self, batch: Batch, step: int) -> Batch:
        """Both views of a step, (n,3,S,S) each."""
        return {"first": self.view(batch, 0, step), "second": self.view(batch, 1, step)}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        views = torch.stack(list(inputs.values()))  # (2,n,3,S,S)
        turns = 2 if config.symmetric else 1  # each takes one view for its queries and the other for its keys
        self.query_net.train()
        ema_update(self.key_net, self.query_net, config.momentum)
        query = self.project(self.query_net, views[:turns])  # (V,n,D)
        keys = self.encode_keys(views.flip(0)[:turns], step)  # (V,N,D)
        key = keys[:, self.world.part(keys.shape[1])]
        positive, query = (query * key).sum(2).view(-1, 1), query.flatten(0, 1)  # (V*n,1), (V*n,D)
        logits = torch.cat([positive, self.queue.similarities(query)], dim=1) / self.temperature
        zero = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        loss = info_nce(logits, zero)
        optimizer = self.optimizers["both"]
        self.world.backward(turns * loss, optimizer)
        self.queue.push(keys.flatten(0, 1))  # after the loss, or a query would find its own key in the queue
        optim.set_lr(optimizer, self.rate * schedule(config.version, step, config.steps))
        scalars = {"loss/info_nce": loss.detach(), **self.take_step("both", step)}
        if config.logs(step):
            scalars |= retrieval(logits, zero, self.temperature) | spread(query)
        return scalars

    def project(self, net: nn.ModuleList, views: Tensor) -> Tensor:
        """Unit vectors (V,n,D) of V views (V,n,3,S,S) in [0,1]. Batch statistics are those of one view."""
        encoder, projector = net
        assert isinstance(encoder, Encoder)
        with self.world.autocast():
            if self.together:
                vectors = encoder.vectors(views.flatten(0, 1)).unflatten(0, views.shape[:2])
            else:
                vectors = torch.stack([encoder.vectors(view) for view in views])
            projected = torch.stack([projector(vector) for vector in vectors])
        return normalize(projected.float(), dim=2)

    @torch.no_grad()
    def encode_keys(self, views: Tensor, step: int) -> Tensor:
        """The keys of all ranks, unit vectors (V,N,D), given V views of this rank's images, (V,n,3,S,S) in [0,1].

        The images of all ranks are shuffled before they are encoded, each view by itself; ``step`` seeds the shuffle.
        """
        count = views.shape[1] * self.world.size
        numbers = range(2 * step, 2 * step + len(views))
        random = [generator(self.config.seed, number, _SHUFFLE) for number in numbers]
        order = torch.stack([torch.randperm(count, generator=each) for each in random])  # (V,N)
        mine, back = order[:, self.world.part(count)], order.argsort(1)
        mine, back, view = upload(views.device, mine, back, torch.arange(len(views))[:, None])
        self.key_net.train()
        everywhere = self.world.gather(views.transpose(0, 1))  # (N,V,3,S,S)
        keys = self.project(self.key_net, everywhere[mine, view])  # (V,n,D), shuffled
        return self.world.gather(keys.transpose(0, 1))[back, view]


def main(argv: Sequence[str] | None = None) -> None:
    run_method(MoCo, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
