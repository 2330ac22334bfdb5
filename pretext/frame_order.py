"""Shuffle and Learn: are three frames of a clip in order? (Misra, Zitnick, Hebert 2016, arXiv:1603.08561)

Section 3: of five frames a < b < c < d < e of a window where much moves, (b,c,d) is in order; (b,a,d) and (b,e,d) are
not, and share their first and last frame with it, so that the two alone say nothing. Each may be shown backwards, for
order has no direction here. A shared tower sees the frames one by one; what it says of the three is put together and
told apart. A quarter of the training tuples is in order.

Deviations: a hidden layer in the classifier, since a linear one of concatenated features can only add what each frame
says, but whether a frame lies between two others is a matter of all three; in short trainings it is given the distances
of what the tower says, for concatenated features do not leave chance in minutes; windows by differences of frames, not
by optical flow; instead of a threshold on how alike c is to a and e, tau_min keeps them apart; all frames get the same
mean and deviation of colors, because exposure drifts; ResNet-18 or AlexNet with batch norm instead of CaffeNet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from kintsugi.data.frame_tuples import TupleSplit
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import judged
from kintsugi.pretext.video import Tower, VideoConfig, bordered, centered, opened, rows, view
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch, Method

_ORDERS = 3  # what random numbers are for, the last part of their key (``kintsugi.pretext.video`` has the others)
A, B, C, D, E = range(5)


@dataclass(frozen=True, kw_only=True)
class FrameOrderConfig(VideoConfig):
    tau_max: int = 60
    """The most frames between the first and the last of a tuple, |b - d|; the least is half of it."""
    tau_min: int = 15
    """Frames from a to b and from d to e."""
    in_order: float = 0.25
    """Part of the training tuples that are in order (the paper's best, table 1)."""
    fusion: Literal["concat", "distances"] = "concat"
    """How what the tower says of three frames is put together: distances, |b - c|, |c - d| and |b - d| in each of its
    numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_max < 2:
            raise ValueError(f"--tau-max must be at least 2, not {self.tau_max}: a frame must fit between")
        within(self, tau_min=1)
        if not 0 < self.in_order < 1:
            raise ValueError(f"--in-order must be in (0, 1), not {self.in_order:g}")

    @property
    def span(self) -> int:
        """Frames that a window must have."""
        return self.tau_max + 2 * self.tau_min + 1


def demo() -> FrameOrderConfig:
    """Minutes on two CPU cores: clips of built-in scenes, in which the camera walks and things roll."""
    return FrameOrderConfig(
        preset="demo",
        scenes=240,
        frames=9,
        short_side=72,
        tau_max=4,
        tau_min=2,
        fusion="distances",
        encoder="alexnet",
        steps=400,
        batch=32,
        lr=1e-3,
        warmup=20,
        show_every=100,
        eval_every=100,
        save_every=100,
    )


def small() -> FrameOrderConfig:
    """One GPU, tens of minutes; clips of some tens of frames, as DAVIS' are."""
    return FrameOrderConfig(
        preset="small",
        scenes=2_000,
        frames=32,
        tau_max=12,
        tau_min=4,
        fusion="distances",
        steps=20_000,
        batch=64,
        warmup=200,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> FrameOrderConfig:
    """The paper's frames and batches of UCF101, whose folder --data must name; its rate falls in steps, not so here."""
    return FrameOrderConfig(
        preset="paper",
        data="UCF-101",
        encoder="alexnet",
        size=224,
        short_side=256,
        batch=128,
        steps=100_000,
        optimizer="sgd",
        lr=1e-3,
        weight_decay=5e-4,
        cache_gb=1000,
        show_every=1_000,
        eval_every=5_000,
        save_every=5_000,
    )


def draw_five(config: FrameOrderConfig, random: torch.Generator) -> Tensor:
    """Frames a < b < c < d < e of a window of ``config.span``, (5,) int64, wherever they fit in it."""

    def whole(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=random))

    apart = whole(max(2, (config.tau_max + 1) // 2), config.tau_max)
    middle = whole(1, apart - 1)
    first = whole(0, config.tau_max - apart)
    return torch.tensor([first, config.tau_min, middle, apart - middle, config.tau_min]).cumsum(0)


def draw_orders(count: int, in_order: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which three of the five each of ``count`` tuples shows, (count,3) int64, and whether they are in order, bool.

    (b,c,d) with probability ``in_order``, else (b,a,d) or (b,e,d) evenly; and half of all backwards.
    """
    chance, side, way = torch.rand(3, count, generator=random)
    right = chance < in_order
    middle = torch.where(right, C, torch.where(side < 0.5, A, E))
    order = torch.stack([torch.full_like(middle, B), middle, torch.full_like(middle, D)], 1)
    return torch.where((way < 0.5)[:, None], order, order.flip(1)), right


class FrameOrder(Method[FrameOrderConfig]):
    name = "frame-order"
    score = "accuracy"

    def __init__(self, config: FrameOrderConfig, world: World) -> None:
        super().__init__(config, world)
        self.tower = Tower(config)
        self.head = nn.Sequential(
            nn.Linear(3 * config.dim, config.dim), nn.ReLU(inplace=True), nn.Linear(config.dim, 1)
        )
        self.optimizers = {"both": optim.make_optimizer(config.optimizer, self, config.lr, config.weight_decay)}

    @classmethod
    def open_data(cls, config: FrameOrderConfig, quiet: bool = False) -> TupleSplit:
        return opened(
            config,
            quiet,
            config.span,
            lambda random: draw_five(config, random),
            "use a smaller --tau-max or --tau-min" + (", or more --frames" if config.data == "scenes" else ""),
        )

    def logits(self, frames: Tensor) -> Tensor:
        """Whether three frames are in order, as logits: (n,3,3,S,S) in [0,1] -> (n,)."""
        with self.world.autocast():
            said = self.tower(frames.flatten(0, 1)).float().unflatten(0, (-1, 3))  # (n,3,D)
            if self.config.fusion == "distances":
                said = (said - said.roll(-1, 1)).abs()
            return self.head(said.flatten(1))[:, 0].float()

    def says_right(self, logits: Tensor) -> Tensor:
        """The verdict, bool: above the share that training shows in order, as if both were equally frequent."""
        return logits > math.log(self.config.in_order / (1 - self.config.in_order))

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config, count = self.config, len(batch["image"]) * self.world.size
        orders, right = draw_orders(count, config.in_order, generator(config.seed, step, _ORDERS))
        orders, right = (self.world.slice(drawn).to(self.world.device) for drawn in (orders, right))
        frames = view(chosen(batch, orders), config, self.world, step)
        self.tower.train()
        logits = self.logits(frames)
        loss = binary_cross_entropy_with_logits(logits, right.float())
        loss.backward()
        optimizer = self.optimizers["both"]
        optim.set_lr(optimizer, config.lr * optim.warmup_cosine(step, config.steps, config.warmup))
        return {
            "loss/cross_entropy": loss.detach(),
            "accuracy/all": 100 * (self.says_right(logits) == right).float().mean(),
            "grad_norm/both": optim.take_step(optimizer, self.world),
        }

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.tower.encoder}

    # --- looking and measuring ----------------------------------------------------------------------------

    @torch.no_grad()
    def verdicts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each tuple (b,c,d), and (b,a,d) or (b,e,d), half of them backwards, all by its number, so the same at
        every call: frames (n,2,3,3,S,S), logits (n,2), and whether in order, bool (n,2)."""
        number = batch["index"]
        middle = torch.stack([torch.full_like(number, C), torch.where(number % 2 == 0, A, E)], 1)  # (n,2)
        orders = torch.stack([torch.full_like(middle, B), middle, torch.full_like(middle, D)], 2)  # (n,2,3)
        orders = torch.where((number // 2 % 2 == 0)[:, None, None], orders, orders.flip(2))
        frames = torch.stack([centered(chosen(batch, order), self.config) for order in orders.unbind(1)], 1)
        training = self.tower.training
        self.tower.eval()
        logits = self.logits(frames.flatten(0, 1)).unflatten(0, (-1, 2))
        self.tower.train(training)
        return frames, logits, middle == C

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """For each clip three frames in order, then three that are not. Their border is green where the net is right.

        A white bar below the frames: the net takes them to be in order.
        """
        frames, logits, right = self.verdicts(batch)
        says = self.says_right(logits)
        columns = []
        for which in (0, 1):
            for place in range(3):
                image = frames[:, which, place].clone()
                image[:, :, -3:] = says[:, which, None, None, None].to(image)  # white: in order; black: not
                columns.append(bordered(image, judged(says[:, which] == right[:, which])))
            columns += [torch.ones_like(columns[-1][..., :14])] * (which == 0)
        return {"in order | not in order (white bar: taken to be in order)": rows(columns)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Per cent of right answers to as many tuples in order as not, chance 50; and of each of both."""
        hits = []
        for batch in batches:
            _, logits, right = self.verdicts(batch)
            hits.append(self.says_right(logits) == right)
        return balanced(torch.cat(hits))

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Chance; and how far one comes by taking three frames to be in order where the first and the last differ most,
        pixel by pixel."""
        hits = []
        for batch in batches:
            frames, _, right = self.verdicts(batch)
            first, middle, last = frames.unbind(2)
            far, near, other = (
                (a - b).abs().mean((2, 3, 4)) for a, b in ((first, last), (first, middle), (middle, last))
            )
            hits.append(((far > near) & (far > other)) == right)
        return {"chance": {"accuracy": 50.0}, "pixel distances": balanced(torch.cat(hits))}


def balanced(hits: Tensor) -> dict[str, float]:
    """Per cent of right answers (n,2), to tuples in order and to those that are not; ``accuracy``: of both alike."""
    in_order, shuffled = (100 * hits.float().mean(0)).tolist()
    return {"accuracy": (in_order + shuffled) / 2, "in_order": in_order, "shuffled": shuffled}


def chosen(batch: Batch, orders: Tensor) -> dict[str, Tensor]:
    """The batch with those of its frames that ``orders`` (n,k) names."""
    rows = torch.arange(len(orders), device=orders.device)[:, None]
    return {**batch, "image": batch["image"][rows, orders]}


def main(argv: Sequence[str] | None = None) -> None:
    run_method(FrameOrder, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
