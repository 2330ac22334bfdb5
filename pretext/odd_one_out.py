"""Odd-one-out: which of six sub-clips is out of order? (Fernando, Bilen, Gavves, Gould 2017, arXiv:1611.06646)

Of one clip N + 1 = 6 sub-clips are drawn, each of a few frames in order; one's frames are shuffled. Each sub-clip is
encoded as one image of its differences in time; a shared tower sees the six; what it says of them is fused, by
concatenation or by the sum of the differences of all pairs, and classified: which is the odd one?

Deviations: a hidden layer after the fusion; the weights of the sum of differences are those of a dynamic image (Bilen
2016), for with equal ones the sum is the last frame less the first, whatever is between; frames are made alike in mean
and deviation, and then encodings too: a drifting exposure, or the weaker contrast of shuffled differences, would
answer by itself; a stack is of gray differences, one for each of the encoder's three planes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad

from kintsugi.data.frame_tuples import TupleSplit, equalize_exposure
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import judged
from kintsugi.pretext.video import Tower, VideoConfig, bordered, centered, opened, rows, view
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.dist import World
from kintsugi.train.method import Batch, Method

_ORDERS, _HELDOUT = 3, 4  # what random numbers are for, the last part of their key
YELLOW = torch.tensor([0.95, 0.8, 0.1])
_MOST_EVEN = 8.0  # how much encodings' contrasts are raised or lowered at most to make them alike


@dataclass(frozen=True, kw_only=True)
class OddOneOutConfig(VideoConfig):
    subclips: int = 6
    """Sub-clips of a question, one of them odd: the paper's N + 1."""
    length: int = 6
    """Frames of a sub-clip."""
    within: int = 36
    """A sub-clip's frames are drawn, in order, from so many neighboring ones; --length: they are consecutive."""
    window: int = 96
    """All sub-clips of a question come from so many neighboring frames, where much moves."""
    encoding: Literal["sum", "stack"] = "sum"
    """A sub-clip as an image: the weighted sum of the differences of its frames, or three differences as its planes."""
    fusion: Literal["concat", "differences"] = "concat"
    """differences: the sum of the differences of all pairs of activations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subclips < 3:
            raise ValueError(f"--subclips must be at least 3, not {self.subclips}: of two, either may be the odd one")
        if self.length < 3:
            raise ValueError(f"--length must be at least 3, not {self.length}: two frames in either order are in order")
        if not self.length <= self.within <= self.window:
            raise ValueError(
                f"--length {self.length}, --within {self.within} and --window {self.window} must not fall: a sub-clip "
                "is drawn within a part of the window"
            )
        if self.encoding == "stack" and self.length != 4:
            raise ValueError(f"--encoding stack wants three differences: use --length 4, not {self.length}")


def demo() -> OddOneOutConfig:
    """Minutes on two CPU cores: clips of built-in scenes, in which the camera walks and things roll."""
    return OddOneOutConfig(
        preset="demo",
        scenes=240,
        frames=9,
        short_side=72,
        length=4,
        within=6,
        window=9,
        encoder="alexnet",
        steps=300,
        batch=16,
        lr=1e-3,
        warmup=20,
        show_every=100,
        eval_every=100,
        save_every=100,
    )


def small() -> OddOneOutConfig:
    """One GPU, tens of minutes; clips of some tens of frames, as DAVIS' are."""
    return OddOneOutConfig(
        preset="small",
        scenes=2_000,
        frames=32,
        within=12,
        window=30,
        steps=20_000,
        batch=32,
        warmup=200,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> OddOneOutConfig:
    """The paper's frames of UCF101, whose folder --data must name."""
    return OddOneOutConfig(
        preset="paper",
        data="UCF-101",
        encoder="alexnet",
        size=224,
        short_side=256,
        batch=64,
        steps=200_000,
        fusion="differences",
        optimizer="sgd",
        lr=1e-2,
        weight_decay=5e-4,
        cache_gb=1000,
        show_every=1_000,
        eval_every=5_000,
        save_every=5_000,
    )


def draw_subclips(config: OddOneOutConfig, random: torch.Generator) -> Tensor:
    """Frames of a window of ``config.window``: of each sub-clip ``length`` different ones in order, anywhere in a part
    of ``within`` frames; (subclips*length,) int64."""
    starts = torch.randint(config.window - config.within + 1, (config.subclips, 1), generator=random)
    places = torch.rand(config.subclips, config.within, generator=random).argsort(1)[:, : config.length]
    return (starts + places.sort(1).values).flatten()


def draw_odd(count: int, subclips: int, length: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """In which order each sub-clip shows its frames, (count,subclips,length) int64, and which is the odd one, (count,).

    The odd one's is any order but the right one, all alike; the others' is 0, 1, 2, ...
    """
    odd = torch.randint(subclips, (count,), generator=random)
    shuffled = torch.rand(count, length, generator=random).argsort(1)
    line = torch.arange(length)
    while len(same := (shuffled == line).all(1).nonzero()[:, 0]):
        shuffled[same] = torch.rand(len(same), length, generator=random).argsort(1)
    orders = line.repeat(count, subclips, 1)
    orders[torch.arange(count), odd] = shuffled
    return orders, odd


def encode(frames: Tensor, encoding: Literal["sum", "stack"]) -> Tensor:
    """Sub-clips (...,W,3,S,S) in [0,1] as images (...,3,S,S) in [0,1], where .5 is what does not change.

    sum: half the sum over t = 1 .. W-1 of w_t (x_{t+1} - x_t), clipped, where w_t goes by t (W - t) and has mean 1: in
    proportion the dynamic image, the sum of (2t - W - 1) x_t. stack: half the difference of gray frames t and t+1 as
    plane t; W = 4.
    """
    if encoding == "stack":
        gray = rgb_to_grayscale(frames)[..., 0, :, :]  # (...,4,S,S)
        return 0.5 + gray.diff(dim=-3) / 2
    count = frames.shape[-4]
    t = torch.arange(1, count, device=frames.device, dtype=frames.dtype)
    weights = t * (count - t)
    weights = weights / weights.mean()
    return (0.5 + (weights.view(-1, 1, 1, 1) * frames.diff(dim=-4)).sum(-4) / 2).clamp(0, 1)


def pair_differences(said: Tensor) -> Tensor:
    """The sum over i < j of v_i - v_j: (n,K,D) -> (n,D)."""
    count = said.shape[1]
    weights = count - 1 - 2 * torch.arange(count, device=said.device, dtype=said.dtype)
    return (weights[:, None] * said).sum(1)


class OddOneOut(Method[OddOneOutConfig]):
    name = "odd-one-out"
    score = "accuracy"

    def __init__(self, config: OddOneOutConfig, world: World) -> None:
        super().__init__(config, world)
        self.tower = Tower(config)
        fused = config.dim * (config.subclips if config.fusion == "concat" else 1)
        self.head = nn.Sequential(
            nn.Linear(fused, config.dim), nn.ReLU(inplace=True), nn.Linear(config.dim, config.subclips)
        )
        self.optimizers = {"both": optim.make_optimizer(config.optimizer, self, config.lr, config.weight_decay)}

    def encoded(self, frames: Tensor) -> Tensor:
        """Questions' frames (n,K,W,3,S,S) in the order shown -> their sub-clips' images (n,K,3,S,S)."""
        images = encode(frames, self.config.encoding)
        return equalize_exposure(images, _MOST_EVEN) if self.config.even else images

    @classmethod
    def open_data(cls, config: OddOneOutConfig, quiet: bool = False) -> TupleSplit:
        return opened(
            config,
            quiet,
            config.window,
            lambda random: draw_subclips(config, random),
            "use a smaller --window" + (", or more --frames" if config.data == "scenes" else ""),
        )

    def logits(self, images: Tensor) -> Tensor:
        """Which sub-clip is the odd one: (n,K,3,S,S) -> (n,K)."""
        with self.world.autocast():
            said = self.tower(images.flatten(0, 1)).float().unflatten(0, images.shape[:2])  # (n,K,D)
            fused = said.flatten(1) if self.config.fusion == "concat" else pair_differences(said)
            return self.head(fused).float()

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config, count = self.config, len(batch["image"]) * self.world.size
        orders, odd = draw_odd(count, config.subclips, config.length, generator(config.seed, step, _ORDERS))
        orders, odd = (self.world.slice(drawn).to(self.world.device) for drawn in (orders, odd))
        frames = shown(view(batch, config, self.world, step), orders)
        self.tower.train()
        logits = self.logits(self.encoded(frames))
        loss = cross_entropy(logits, odd)
        loss.backward()
        optimizer = self.optimizers["both"]
        optim.set_lr(optimizer, config.lr * optim.warmup_cosine(step, config.steps, config.warmup))
        return {
            "loss/cross_entropy": loss.detach(),
            "accuracy/all": 100 * (logits.argmax(1) == odd).float().mean(),
            "grad_norm/both": optim.take_step(optimizer, self.world),
        }

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.tower.encoder}

    # --- looking and measuring ----------------------------------------------------------------------------

    @torch.no_grad()
    def answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Questions drawn for the tuples' numbers, the same at every call and for every seed: frames as shown
        (n,K,W,3,S,S), logits (n,K), and which is the odd one (n,)."""
        config = self.config
        drawn = [
            draw_odd(1, config.subclips, config.length, generator(0, number, _HELDOUT))
            for number in batch["index"].tolist()
        ]
        orders, odd = (torch.cat(parts).to(self.world.device) for parts in zip(*drawn, strict=True))
        frames = shown(centered(batch, config), orders)
        training = self.tower.training
        self.tower.eval()
        logits = self.logits(self.encoded(frames))
        self.tower.train(training)
        return frames, logits, odd

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """One row for each of four questions, one column for each sub-clip: its image, and below it the frames in the
        order shown, from left to right and down.

        The border of the net's choice is green where it is right, else red; then the odd one's is yellow.
        """
        frames, logits, odd = self.answers({name: value[:4] for name, value in batch.items()})
        images, choice = self.encoded(frames), logits.argmax(1)
        columns = []
        for number in range(self.config.subclips):
            small = frames[:, number]  # (n,W,3,S,S)
            if small.shape[1] % 2:
                small = torch.cat([small, torch.ones_like(small[:, :1])], 1)
            pairs = torch.cat([small[:, 0::2], small[:, 1::2]], 4)  # (n,W/2,3,S,2S)
            below = pairs.transpose(1, 2).flatten(2, 3)  # (n,3,S*W/2,2S)
            column = torch.cat([interpolate(images[:, number], scale_factor=2.0), below], 2)
            missed = torch.where((odd == number)[:, None], YELLOW.to(odd.device), 1.0)  # (n,3)
            color = torch.where((choice == number)[:, None], judged(odd == number), missed)
            columns.append(pad(bordered(column, color, 4), (2, 2, 2, 2), value=1.0))
        return {"sub-clips, and their frames in the order shown": rows(columns, zoom=1)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Per cent of questions answered right; chance: 100 / subclips."""
        hits, losses = [], []
        for batch in batches:
            _, logits, odd = self.answers(batch)
            hits.append(logits.argmax(1) == odd)
            losses.append(cross_entropy(logits, odd, reduction="none"))
        return {"accuracy": 100 * torch.cat(hits).float().mean().item(), "loss": torch.cat(losses).mean().item()}

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Chance; and how far one comes by taking for the odd one the sub-clip with most detours: whose frames, pixel
        by pixel, differ most from one to the next, measured by how much its ends differ."""
        hits = []
        for batch in batches:
            frames, _, odd = self.answers(batch)
            path = frames.diff(dim=2).abs().mean((2, 3, 4, 5))  # (n,K)
            ends = (frames[:, :, -1] - frames[:, :, 0]).abs().mean((2, 3, 4))
            hits.append((path / ends.clamp(min=1e-6)).argmax(1) == odd)
        chance = {"accuracy": 100 / self.config.subclips, "loss": math.log(self.config.subclips)}
        return {"chance": chance, "pixel distances": {"accuracy": 100 * torch.cat(hits).float().mean().item()}}


def shown(frames: Tensor, orders: Tensor) -> Tensor:
    """Frames (n,K*W,3,S,S) as sub-clips, each in its order (n,K,W): (n,K,W,3,S,S)."""
    subclips = frames.unflatten(1, orders.shape[1:])
    return subclips.gather(2, orders.view(*orders.shape, 1, 1, 1).expand(-1, -1, -1, *frames.shape[2:]))


def main(argv: Sequence[str] | None = None) -> None:
    run_method(OddOneOut, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
