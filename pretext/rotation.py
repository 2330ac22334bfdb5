"""Rotation: predict by how many quarter turns an image was rotated (Gidaris et al. 2018, arXiv:1803.07728).

To predict which way up an object is, a network must recognize it (section 2). Each batch holds all four rotations of
its images, which the authors found to help (section 3.1). Rotations are exact, by transposing and mirroring: every
pixel keeps its value, and no trace of interpolation gives the rotation away. Crops are squares, so that both axes are
resampled alike.

Deviation: the classifier is one layer on the encoder's averaged last map, where the authors' AlexNet has two hidden
layers on the map itself. Fewer weights are trained and then discarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kintsugi.pictures import framed, right_wrong_colors, sheet
from kintsugi.pretext.puzzles import PuzzleConfig, PuzzleMethod, captioned, enlarged
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.dist import World
from kintsugi.train.method import Batch

TURNS = 4


@dataclass(frozen=True, kw_only=True)
class RotationConfig(PuzzleConfig):
    batch: int = 16
    """Images per step, over all ranks together; the network sees all four rotations of each."""


def demo() -> RotationConfig:
    """Minutes on two CPU cores, on the built-in scenes."""
    return RotationConfig(
        preset="demo", scenes=2048, short_side=80, steps=200, batch=16, show_every=100, eval_every=50, save_every=100
    )


def small() -> RotationConfig:
    """One GPU, tens of minutes."""
    return RotationConfig(
        preset="small",
        size=64,
        batch=64,
        steps=20_000,
        warmup=500,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> RotationConfig:
    """The paper's AlexNet with batch norm on ImageNet: 192 images and their rotations, 50 epochs, a step schedule."""
    return RotationConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="alexnet",
        size=224,
        short_side=256,
        batch=192,
        steps=333_600,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        cache_gb=400,
        show_every=5_000,
        eval_every=5_000,
        save_every=5_000,
    )


def turned(image: Tensor, turns: int) -> Tensor:
    """Squares (N,3,S,S) rotated counterclockwise by ``turns`` quarter turns; no pixel changes its value."""
    return torch.rot90(image, turns, (2, 3))


def step_schedule(step: int, steps: int) -> float:
    """The paper's factor on the learning rate: tenfold lower after 30, 60 and 90 % of the run (epochs 15, 30, 45 of
    50)."""
    return 10.0 ** -sum(10 * step >= tenths * steps for tenths in (3, 6, 9))


class Rotation(PuzzleMethod[RotationConfig]):
    """An encoder, and a linear classifier of the four rotations."""

    name = "rotation"
    classes = TURNS

    def __init__(self, config: RotationConfig, world: World) -> None:
        super().__init__(config, world)
        self.classifier = nn.Linear(self.width, TURNS)
        self.add_optimizer()

    def lr_factor(self, step: int) -> float:
        config = self.config
        if config.optimizer == "sgd":
            return step_schedule(step, config.steps)
        return optim.warmup_cosine(step, config.steps, config.warmup)

    def puzzle(self, image: Tensor, random: torch.Generator, count: int, mine: slice) -> tuple[Tensor, Tensor]:
        """All four rotations of each image, (4n,3,S,S), grouped by angle; and their numbers of quarter turns (4n,)."""
        turns = torch.arange(TURNS, device=image.device).repeat_interleave(len(image))  # (4n,)
        return torch.cat([turned(image, k) for k in range(TURNS)]), turns

    def logits(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.encoder.vectors(inputs))

    # --- pictures and held-out figures ------------------------------------------------------------------------

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """One rotation of each image, the same at every call. Columns: input, rotated back as predicted, upright."""
        image, _ = self.shown_images(batch)
        truth = torch.arange(len(image), device=image.device) * 3 % TURNS  # 0, 270, 180, 90 degrees, ...
        inputs = _turned_each(image, truth)
        predicted = self.predict(inputs).argmax(1)
        back = _turned_each(inputs, -predicted)
        captions = [f"predicted {90 * k}°" for k in predicted.tolist()]
        columns = [
            captioned(enlarged(inputs, 2), [f"turned by {90 * k}°" for k in truth.tolist()]),
            captioned(framed(enlarged(back, 2), right_wrong_colors(predicted == truth), 4), captions),
            captioned(enlarged(image, 2), ["upright"] * len(image)),
        ]
        return {"input | turned back as predicted (green: right, red: wrong) | upright": sheet(columns)}


def _turned_each(image: Tensor, turns: Tensor) -> Tensor:
    """Each image (n,3,S,S) rotated counterclockwise by its own number of quarter turns (n,)."""
    return torch.cat([turned(one[None], k) for one, k in zip(image, turns.tolist(), strict=True)])


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Rotation, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
