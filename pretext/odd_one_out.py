"""Odd-one-out: predict which of six sub-clips has its frames shuffled (Fernando, Bilen, Gavves, Gould 2017,
arXiv:1611.06646).

N + 1 = 6 sub-clips of a few frames each are drawn from one clip. Five have their frames in order; the odd one's are
shuffled. Each sub-clip is encoded as one image of its frame differences. A shared tower sees the six images; its
outputs are fused, by concatenation or by the sum of the differences of all pairs, and the number of the odd one is
predicted.

Deviations: a hidden layer after the fusion. The sum of differences has the weights of a dynamic image (Bilen 2016),
because with equal weights it is the last frame minus the first, whatever is in between. Mean and deviation are
equalized over frames, and contrast over encodings: otherwise a drifting exposure, or the weaker contrast of shuffled
differences, would reveal the odd one. A stack has gray differences, one for each of the encoder's three input planes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad

from kintsugi.data.frame_tuples import TupleSplit, equalize_exposure
from kintsugi.pictures import right_wrong_colors
from kintsugi.pretext.video import VideoConfig, VideoMethod, bordered, centered, opened, rows, view
from kintsugi.rng import generator
from kintsugi.train.command import run_method
from kintsugi.train.dist import World
from kintsugi.train.method import Batch
from kintsugi.upload import upload

_ORDERS, _HELDOUT = 3, 4  # last element of the random generators' keys; ``kintsugi.pretext.video`` uses 1 and 2
YELLOW = torch.tensor([0.95, 0.8, 0.1])
_MOST_EVEN = 8.0  # largest factor by which an encoding's contrast is changed to equalize it


@dataclass(frozen=True, kw_only=True)
class OddOneOutConfig(VideoConfig):
    subclips: int = 6
    """Number of sub-clips, one of them odd; the paper's N + 1."""
    length: int = 6
    """Number of frames in a sub-clip."""
    within: int = 36
    """A sub-clip's frames are drawn from this many consecutive frames; equal to --length: all of them are taken."""
    window: int = 96
    """All sub-clips are drawn from this many consecutive frames with much motion."""
    encoding: Literal["sum", "stack"] = "sum"
    """A sub-clip as an image. sum: the weighted sum of frame differences; stack: three differences as its planes."""
    fusion: Literal["concat", "differences"] = "concat"
    """How the tower's outputs are fused. concat: concatenated; differences: the sum of the differences of all pairs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subclips < 3:
            raise ValueError(f"--subclips must be at least 3, not {self.subclips}: of two, either may be the odd one")
        if self.length < 3:
            raise ValueError(f"--length must be at least 3, not {self.length}: two frames in either order are in order")
        if not self.length <= self.within <= self.window:
            raise ValueError(
                f"--length {self.length}, --within {self.within} and --window {self.window} must not decrease: a "
                "sub-clip is drawn from --within frames of the window"
            )
        if self.encoding == "stack" and self.length != 4:
            raise ValueError(f"--encoding stack needs three differences: use --length 4, not {self.length}")


def demo() -> OddOneOutConfig:
    """Minutes on two CPU cores, on clips of built-in scenes with a walking camera and rolling objects."""
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
    """One GPU, tens of minutes; clips of some tens of frames, as in DAVIS."""
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
    """Draws the frames of all sub-clips: numbers in a window of ``config.window`` frames, int64 (subclips*length,).

    Each sub-clip has ``length`` different frames, in order, from a random range of ``within`` frames.
    """
    starts = torch.randint(config.window - config.within + 1, (config.subclips, 1), generator=random)
    places = torch.rand(config.subclips, config.within, generator=random).argsort(1)[:, : config.length]
    return (starts + places.sort(1).values).flatten()


def draw_odd(count: int, subclips: int, length: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws the order of each sub-clip's frames, int64 (count,subclips,length), and the odd one's number (count,).

    The odd one has any wrong order with equal probability; the others have 0, 1, 2, ...
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
    """Sub-clips (...,W,3,S,S) in [0,1] as images (...,3,S,S) in [0,1], in which .5 means no change.

    sum: half the sum over t = 1 .. W-1 of w_t (x_{t+1} - x_t), clipped; w_t is proportional to t (W - t), with mean 1.
    The sum is then proportional to the dynamic image, the sum of (2t - W - 1) x_t. stack: plane t is half the
    difference of the gray frames t and t+1; W = 4.
    """
    if encoding == "stack":
        gray = rgb_to_grayscale(frames)[..., 0, :, :]  # (...,4,S,S)
        return 0.5 + gray.diff(dim=-3) / 2
    count = frames.shape[-4]
    t = torch.arange(1, count, device=frames.device, dtype=frames.dtype)
    weights = t * (count - t)
    weights = weights / weights.mean()
    return (0.5 + (weights.view(-1, 1, 1, 1) * frames.diff(dim=-4)).sum(-4) / 2).clamp(0, 1)


def pair_differences(codes: Tensor) -> Tensor:
    """The sum over i < j of v_i - v_j for K vectors v: (n,K,D) -> (n,D)."""
    count = codes.shape[1]
    weights = count - 1 - 2 * torch.arange(count, device=codes.device, dtype=codes.dtype)
    return (weights[:, None] * codes).sum(1)


class OddOneOut(VideoMethod[OddOneOutConfig]):
    """A tower that sees an image of each sub-clip, and a classifier that names the odd one."""

    name = "odd-one-out"

    def __init__(self, config: OddOneOutConfig, world: World) -> None:
        fused = config.dim * (config.subclips if config.fusion == "concat" else 1)
        super().__init__(config, world, features=fused, outputs=config.subclips, rgb=False)

    def encoded(self, frames: Tensor) -> Tensor:
        """Sub-clips (n,K,W,3,S,S), in the order shown, as images (n,K,3,S,S)."""
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
        """Logits for each sub-clip being the odd one: images (n,K,3,S,S) -> (n,K)."""
        with self.world.autocast():
            codes = self.tower(images.flatten(0, 1)).float().unflatten(0, images.shape[:2])  # (n,K,D)
            fused = codes.flatten(1) if self.config.fusion == "concat" else pair_differences(codes)
            return self.head(fused).float()

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config, count = self.config, len(batch["image"]) * self.world.size
        orders, odd = draw_odd(count, config.subclips, config.length, generator(config.seed, step, _ORDERS))
        orders, odd = upload(self.world.device, *map(self.world.slice, (orders, odd)))
        frames = reordered(view(batch, config, self.world, step), orders)
        self.tower.train()
        logits = self.logits(self.encoded(frames))
        loss = cross_entropy(logits, odd)
        return {
            **self.learn(loss, step),
            "loss/cross_entropy": loss.detach(),
            "accuracy/all": 100 * (logits.argmax(1) == odd).float().mean(),
        }

    # --- pictures and held-out figures --------------------------------------------------------------------

    @torch.no_grad()
    def classified(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Classifies held-out sub-clips.

        Returns frames in the order shown (n,K,W,3,S,S), logits (n,K), and the number of the odd one (n,). Orders are
        drawn from the tuples' numbers, so they are the same at every call and for every seed.
        """
        config = self.config
        drawn = [
            draw_odd(1, config.subclips, config.length, generator(0, number, _HELDOUT))
            for number in batch["index"].tolist()
        ]
        orders, odd = (torch.cat(each).to(self.world.device) for each in zip(*drawn, strict=True))
        frames = reordered(centered(batch, config), orders)
        training = self.tower.training
        self.tower.eval()
        logits = self.logits(self.encoded(frames))
        self.tower.train(training)
        return frames, logits, odd

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Four clips, one per row. A column per sub-clip: its image, and below it its frames in the order shown, from
        left to right and down.

        The predicted sub-clip has a green border if it is the odd one, else a red one; an odd one that was not found
        has a yellow one.
        """
        frames, logits, odd = self.classified({name: value[:4] for name, value in batch.items()})
        images, predicted = self.encoded(frames), logits.argmax(1)
        columns = []
        for number in range(self.config.subclips):
            small = frames[:, number]  # (n,W,3,S,S)
            if small.shape[1] % 2:
                small = torch.cat([small, torch.ones_like(small[:, :1])], 1)
            pairs = torch.cat([small[:, 0::2], small[:, 1::2]], 4)  # (n,W/2,3,S,2S)
            below = pairs.transpose(1, 2).flatten(2, 3)  # (n,3,S*W/2,2S)
            column = torch.cat([interpolate(images[:, number], scale_factor=2.0), below], 2)
            missed = torch.where((odd == number)[:, None], YELLOW.to(odd.device), 1.0)  # (n,3)
            color = torch.where((predicted == number)[:, None], right_wrong_colors(odd == number), missed)
            columns.append(pad(bordered(column, color, 4), (2, 2, 2, 2), value=1.0))
        return {"image of each sub-clip, and its frames in the order shown": rows(columns, zoom=1)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracy, per cent (chance is 100 / subclips), and mean cross-entropy, nats."""
        hits, losses = [], []
        for batch in batches:
            _, logits, odd = self.classified(batch)
            hits.append(logits.argmax(1) == odd)
            losses.append(cross_entropy(logits, odd, reduction="none"))
        return {"accuracy": 100 * torch.cat(hits).float().mean().item(), "loss": torch.cat(losses).mean().item()}

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of chance, and of a rule on pixels.

        The rule: the odd sub-clip is the one whose frame-to-frame pixel differences are largest in sum, relative to the
        difference between its first and last frame.
        """
        hits = []
        for batch in batches:
            frames, _, odd = self.classified(batch)
            path = frames.diff(dim=2).abs().mean((2, 3, 4, 5))  # (n,K)
            ends = (frames[:, :, -1] - frames[:, :, 0]).abs().mean((2, 3, 4))
            hits.append((path / ends.clamp(min=1e-6)).argmax(1) == odd)
        chance = {"accuracy": 100 / self.config.subclips, "loss": math.log(self.config.subclips)}
        return {"chance": chance, "pixel distances": {"accuracy": 100 * torch.cat(hits).float().mean().item()}}


def reordered(frames: Tensor, orders: Tensor) -> Tensor:
    """Frames (n,K*W,3,S,S) as sub-clips (n,K,W,3,S,S), each in the order given by ``orders`` (n,K,W)."""
    subclips = frames.unflatten(1, orders.shape[1:])
    return subclips.gather(2, orders.view(*orders.shape, 1, 1, 1).expand(-1, -1, -1, *frames.shape[2:]))


def main(argv: Sequence[str] | None = None) -> None:
    run_method(OddOneOut, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
