"""Shuffle and Learn: predict whether three frames of a clip are in order (Misra, Zitnick, Hebert 2016,
arXiv:1603.08561).

Section 3: five frames a < b < c < d < e are drawn from a window with much motion. (b,c,d) is in order; (b,a,d) and
(b,e,d) are not. All three share their first and last frame, which therefore reveal nothing. Each may be reversed: a
tuple that runs backwards also counts as in order. A shared tower encodes each frame; the three outputs are fused and
classified. A quarter of the training tuples is in order.

Deviations: the classifier has a hidden layer, because a linear one only adds up the frames' contributions, but whether
a frame lies between two others depends on all three. Short runs fuse by the distances of the tower's outputs, because
concatenated features do not rise above chance within minutes. Windows are chosen by frame differences, not by optical
flow. tau_min keeps c apart from a and e, instead of a threshold on their similarity. All frames get the same mean and
deviation of colors, because exposure drifts. ResNet-18 or AlexNet with batch norm replaces CaffeNet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kintsugi.data.frame_tuples import TupleSplit
from kintsugi.pictures import right_wrong_colors
from kintsugi.pretext.video import VideoConfig, VideoMethod, bordered, centered, opened, rows, view
from kintsugi.rng import generator
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch
from kintsugi.upload import upload

_ORDERS = 3  # last element of the random generator's key; ``kintsugi.pretext.video`` uses 1 and 2
A, B, C, D, E = range(5)  # places in a tuple of five frames


@dataclass(frozen=True, kw_only=True)
class FrameOrderConfig(VideoConfig):
    tau_max: int = 60
    """Largest distance between the first and last frame of a tuple, |b - d|; the smallest is half of it."""
    tau_min: int = 15
    """Distance from a to b and from d to e, in frames."""
    in_order: float = 0.25
    """Fraction of the training tuples that are in order (the paper's best, table 1)."""
    fusion: Literal["concat", "distances"] = "concat"
    """How the tower's outputs for three frames are fused. concat: concatenated; distances: the elementwise |b - c|,
    |c - d| and |b - d|."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_max < 2:
            raise ValueError(f"--tau-max must be at least 2, not {self.tau_max}: a frame must fit in between")
        within(self, tau_min=1)
        if not 0 < self.in_order < 1:
            raise ValueError(f"--in-order must be in (0, 1), not {self.in_order:g}")

    @property
    def span(self) -> int:
        """Number of frames in a window."""
        return self.tau_max + 2 * self.tau_min + 1


def demo() -> FrameOrderConfig:
    """Minutes on two CPU cores, on clips of built-in scenes with a walking camera and rolling objects."""
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
    """One GPU, tens of minutes; clips of some tens of frames, as in DAVIS."""
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
    """The paper's frames and batches of UCF101, whose folder --data must name; a cosine instead of its step
    schedule."""
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
    """Draws frames a < b < c < d < e from a window of ``config.span`` frames; their numbers, int64 (5,)."""

    def integer(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=random))

    apart = integer(max(2, (config.tau_max + 1) // 2), config.tau_max)
    middle = integer(1, apart - 1)
    first = integer(0, config.tau_max - apart)
    return torch.tensor([first, config.tau_min, middle, apart - middle, config.tau_min]).cumsum(0)


def draw_orders(count: int, in_order: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws which three of the five frames each tuple shows, int64 (count,3), and if they are in order, bool (count,).

    (b,c,d) with probability ``in_order``, else (b,a,d) or (b,e,d) with equal probability; half of all are reversed.
    """
    chance, side, direction = torch.rand(3, count, generator=random)
    ordered = chance < in_order
    middle = torch.where(ordered, C, torch.where(side < 0.5, A, E))
    order = torch.stack([torch.full_like(middle, B), middle, torch.full_like(middle, D)], 1)
    return torch.where((direction < 0.5)[:, None], order, order.flip(1)), ordered


class FrameOrder(VideoMethod[FrameOrderConfig]):
    """A tower that sees three frames one by one, and a classifier of their order."""

    name = "frame-order"

    def __init__(self, config: FrameOrderConfig, world: World) -> None:
        super().__init__(config, world, features=3 * config.dim, outputs=1)

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
        """Logits for three frames being in order: (n,3,3,S,S) in [0,1] -> (n,)."""
        with self.world.autocast():
            codes = self.tower(frames.flatten(0, 1)).float().unflatten(0, (-1, 3))  # (n,3,D)
            if self.config.fusion == "distances":
                codes = (codes - codes.roll(-1, 1)).abs()
            return self.head(codes.flatten(1))[:, 0].float()

    def predict(self, logits: Tensor) -> Tensor:
        """Whether frames are predicted to be in order, for logits of any shape: bool.

        The threshold corrects for ``in_order``, as if both classes had been equally frequent in training.
        """
        return logits > math.log(self.config.in_order / (1 - self.config.in_order))

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config, count = self.config, len(batch["image"]) * self.world.size
        orders, ordered = draw_orders(count, config.in_order, generator(config.seed, step, _ORDERS))
        orders, ordered = upload(self.world.device, *map(self.world.slice, (orders, ordered)))
        frames = view(chosen(batch, orders), config, self.world, step)
        self.tower.train()
        logits = self.logits(frames)
        loss = binary_cross_entropy_with_logits(logits, ordered.float())
        return {
            **self.learn(loss, step),
            "loss/cross_entropy": loss.detach(),
            "accuracy/all": 100 * (self.predict(logits) == ordered).float().mean(),
        }

    # --- pictures and held-out figures --------------------------------------------------------------------

    @torch.no_grad()
    def classified(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Classifies two triples of each tuple: (b,c,d), and one that is not in order, (b,a,d) or (b,e,d).

        Returns frames (n,2,3,3,S,S), logits (n,2), and whether they are in order, bool (n,2). Half of the triples are
        reversed. All choices follow from the tuple's number, so they are the same at every call.
        """
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
        """For each clip three frames in order, then three that are not; green borders where the prediction is right.

        A white bar below the frames means that they are predicted to be in order.
        """
        frames, logits, ordered = self.classified(batch)
        predicted = self.predict(logits)
        columns = []
        for which in (0, 1):
            for place in range(3):
                image = frames[:, which, place].clone()
                image[:, :, -3:] = predicted[:, which, None, None, None].to(image)  # white: in order; black: not
                columns.append(bordered(image, right_wrong_colors(predicted[:, which] == ordered[:, which])))
            columns += [torch.ones_like(columns[-1][..., :14])] * (which == 0)
        return {"in order | not in order (white bar: predicted in order)": rows(columns)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracy, per cent: on triples that are in order, on as many that are not, and on all (chance is 50)."""
        hits = []
        for batch in batches:
            _, logits, ordered = self.classified(batch)
            hits.append(self.predict(logits) == ordered)
        return balanced(torch.cat(hits))

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of chance, and of a rule on pixels: frames are in order if the first and the last differ most."""
        hits = []
        for batch in batches:
            frames, _, ordered = self.classified(batch)
            first, middle, last = frames.unbind(2)
            far, near, other = (
                (a - b).abs().mean((2, 3, 4)) for a, b in ((first, last), (first, middle), (middle, last))
            )
            hits.append(((far > near) & (far > other)) == ordered)
        return {"chance": {"accuracy": 50.0}, "pixel distances": balanced(torch.cat(hits))}


def balanced(hits: Tensor) -> dict[str, float]:
    """Accuracies, per cent, of hits (n,2) on tuples in order and on those that are not; ``accuracy``: their mean."""
    in_order, shuffled = (100 * hits.float().mean(0)).tolist()
    return {"accuracy": (in_order + shuffled) / 2, "in_order": in_order, "shuffled": shuffled}


def chosen(batch: Batch, orders: Tensor) -> dict[str, Tensor]:
    """The batch with only some frames of each tuple: those numbered ``orders``, int64 (n,k), in this order."""
    rows = torch.arange(len(orders), device=orders.device)[:, None]
    return {**batch, "image": batch["image"][rows, orders]}


def main(argv: Sequence[str] | None = None) -> None:
    run_method(FrameOrder, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
