"""Colorization: learning to see by giving gray images their colors (Zhang, Isola and Efros 2016, arXiv:1603.08511).

An encoder sees lightness, a decoder says the chroma ab of every pixel: by regression (``--loss l2``, eq. 1) or as one
of 313 bins with rebalanced cross-entropy (``--loss classification``, eq. 2 to 4), decoded by the annealed mean (eq. 5).
Options of the same net: a user's color hints (Zhang 2017, arXiv:1705.02999) and an image-wide vector that also learns
the image's class (Iizuka 2016).

Deviations, each for a reason:
- The decoder is a feature pyramid over any of our encoders instead of the paper's dilated net, so that the encoder is
  one that other tasks know; like the paper's it predicts at a quarter of the size.
- The bins' prior is counted while training goes on, from the data at hand, instead of from ImageNet beforehand.
- Adam's rate is higher: the paper's 3e-5 goes with 450k steps from a k-means initialization. Its weight decay is apart
  from the gradients (AdamW), whose size rebalancing changes.
- Of a hint's patch each pixel's own color is given, not their mean: the net averages it over its positions anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, huber_loss, interpolate

from kintsugi import color
from kintsugi.augment import cropping
from kintsugi.color import lab_to_rgb, rgb_to_lab
from kintsugi.metrics.chroma import AbErrors, mean_chroma
from kintsugi.nets.backbones import Backbone, Encoder
from kintsugi.nets.decoders import Pyramid
from kintsugi.nets.planes import Planes
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import checkpoint, optim
from kintsugi.train.command import run_method
from kintsugi.train.config import TrainConfig, from_plain, within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch, Method

_CROPS, _HINTS = 1, 2  # what random numbers are for, the last part of their key
TEMPERATURES = (1.0, 0.77, 0.58, 0.38, 0.29, 0.14)  # of the sweep, the paper's figure 12


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ColorizationConfig(TrainConfig):
    encoder: Literal["resnet18", "resnet50", "alexnet"] = "resnet18"
    norm: Literal["batch", "group"] = "batch"
    """Normalization; group does not depend on the batch, nor on how it is split over ranks."""
    loss: Literal["classification", "l2"] = "classification"
    """classification: 313 bins of ab; l2: regression, whose colors are duller."""
    neighbors: int = 5
    """Nearest bins in the soft encoding: 5 in the paper, 10 in its code."""
    rebalance: float = 0.5
    """Weight of the uniform distribution against the data's when rare colors are weighted up; 1 = no rebalancing."""
    temperature: float = 0.38
    """Of the annealed mean by which bins become colors."""
    hints: bool = False
    """Learn to use hints: a few patches whose color is given."""
    classes: int = 0
    """How many classes the images' folders have, for joint classification (Iizuka 2016); 0 = none."""
    class_weight: float = 1 / 300
    """Weight of the classification loss (Iizuka 2016)."""
    lr: float = 3e-4
    weight_decay: float = 1e-3
    warmup: int = 50
    """Steps over which the learning rate rises; then it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 32:
            raise ValueError(f"--size {self.size}: use a multiple of 32")
        if not 0 < self.rebalance <= 1:
            raise ValueError(f"--rebalance must be in (0, 1], not {self.rebalance}")
        if self.temperature <= 0:
            raise ValueError(f"--temperature must be positive, not {self.temperature}")
        within(self, neighbors=(1, 313), classes=0)


def demo() -> ColorizationConfig:
    """Minutes on two CPU cores, built-in scenes."""
    return ColorizationConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=900,
        batch=32,
        lr=1e-3,
        show_every=150,
        eval_every=300,
        save_every=300,
    )


def small() -> ColorizationConfig:
    """One GPU, tens of minutes."""
    return ColorizationConfig(
        preset="small",
        size=96,
        batch=64,
        steps=20_000,
        lr=5e-4,
        scenes=50_000,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
    )


def paper() -> ColorizationConfig:
    """The paper's data, net and batch, and its crop (of 176 px, here a multiple of 32)."""
    return ColorizationConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="alexnet",
        size=160,
        short_side=256,
        batch=40,
        neighbors=10,
        steps=450_000,
        lr=1e-4,
        cache_gb=400,
        show_every=5_000,
        eval_every=10_000,
        save_every=10_000,
    )


# --- networks -------------------------------------------------------------------------------------------------


class Colorizer(nn.Module):
    """RGB (N,3,S,S) in [0,1], of which it sees the lightness alone -> what the loss wants at a quarter of the side.

    Returns (N,313,S/4,S/4) logits or (N,2,S/4,S/4) ab, and class logits (N,classes) or None. With hints it is also
    given ab where it is known, (N,2,S,S), and where that is, (N,1,S,S), 1 = known.
    """

    bins: Tensor
    counts: Tensor

    def __init__(self, config: ColorizationConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Planes("L", Backbone(name=config.encoder, norm=config.norm)).build()
        self.register_buffer("bins", color.ab_bins(), persistent=False)
        # How often each bin was seen; a little of the uniform distribution until there is something to count.
        self.register_buffer("counts", torch.ones(len(self.bins)))
        width, channels = 128, self.encoder.channels
        self.decoder = Pyramid(channels, len(self.bins) if config.loss == "classification" else 2, width, config.norm)
        self.hints = nn.ModuleDict({str(s): nn.Conv2d(3, width, 3, padding=1) for s in channels if config.hints})
        if config.classes:
            coarsest = max(channels)
            self.globe = nn.Sequential(nn.Linear(channels[coarsest], 256), nn.ReLU(), nn.Linear(256, width))
            self.classifier = nn.Linear(width, config.classes)

    def forward(self, image: Tensor, known: Tensor | None = None, where: Tensor | None = None):  # type: ignore[no-untyped-def]
        features = self.encoder(image)
        added: dict[int, Tensor] = {}
        if known is not None and where is not None:
            given = torch.cat([known * where / 110, where], 1)  # (N,3,S,S)
            for stride, layer in self.hints.items():
                side = features[int(stride)].shape[-2:]
                # The mean over a position's pixels, scaled up where few are known, so that one pixel counts.
                share = adaptive_avg_pool2d(given, side)
                added[int(stride)] = layer(share / share[:, 2:].clamp(min=1e-4).sqrt())
        classes = None
        if self.config.classes:
            coarsest = max(features)
            vector = self.globe(features[coarsest].mean((2, 3)))  # (N,width)
            classes = self.classifier(vector.relu())
            added[coarsest] = added.get(coarsest, 0) + vector[:, :, None, None]  # Iizuka's fusion: at every position
        out = self.decoder(features, added).float()
        return (out if self.config.loss == "classification" else 110 * out), classes

    def chroma(self, out: Tensor, temperature: float | None = None) -> Tensor:
        """ab (N,2,s,s) from what ``forward`` returns."""
        if self.config.loss == "l2":
            return out
        return color.annealed_mean(out, self.bins, temperature or self.config.temperature)

    def prior(self) -> Tensor:
        return self.counts / self.counts.sum()


# --- losses ---------------------------------------------------------------------------------------------------


def classification_loss(
    logits: Tensor, ab: Tensor, bins: Tensor, weights: Tensor, neighbors: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rebalanced cross-entropy (eq. 2), logits (N,Q,s,s), ab (N,2,s,s), weights of the bins (Q,).

    Each pixel counts with the weight of its nearest bin; an image without any |ab| > 5, which is as good as gray, with
    0 (as in the authors' code). Returns the weighted loss, to be minimized, the plain one, to be read, and the pixels'
    nearest bins (N,s,s).
    """
    index, soft = color.soft_encode(ab, bins, neighbors)
    plain = color.soft_cross_entropy(logits, index, soft)  # (N,s,s)
    colored = (ab.abs().amax((1, 2, 3)) > 5).to(plain)[:, None, None]
    nearest = index[:, 0]
    return (plain * weights[nearest] * colored).mean(), plain.mean().detach(), nearest


def draw_hints(ab: Tensor, count: int, random: torch.Generator, part: slice) -> Tensor:
    """Where hints are given, (n,1,S,S), 1 = known, for this rank's part of ``count`` images (Zhang 2017, section 3.2).

    Their number is geometric (p = 1/8), their patches 1 to 9 px wide, their places normal around the middle; 1 image
    in 100 is given all.
    """
    side = ab.shape[-1]
    numbers = torch.log1p(-torch.rand(count, generator=random)).div(math.log(1 - 1 / 8)).floor().clamp(max=64).int()
    where = torch.zeros(count, 1, side, side)
    for i, number in enumerate(numbers.tolist()):
        place = (side / 2 + side / 4 * torch.randn(64, 2, generator=random)).clamp(0, side - 1).int().tolist()
        width = torch.randint(1, 10, (64,), generator=random).tolist()
        for (y, x), w in zip(place[:number], width[:number], strict=True):
            where[i, 0, max(0, y - w // 2) : y + (w + 1) // 2, max(0, x - w // 2) : x + (w + 1) // 2] = 1
    where[torch.rand(count, generator=random) < 0.01] = 1
    return where[part].to(ab.device)


# --- the method -----------------------------------------------------------------------------------------------


class Colorization(Method[ColorizationConfig]):
    name = "colorization"
    score = "auc_rebalanced"
    next_step = "colorize a photo: make colorize IN= OUT= CKPT={folder}"

    def __init__(self, config: ColorizationConfig, world: World) -> None:
        super().__init__(config, world)
        self.colorizer = Colorizer(config)
        self.optimizers = {
            "colorizer": torch.optim.AdamW(
                self.colorizer.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
            )
        }

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config, count = self.config, self.config.batch
        random, mine = generator(config.seed, step, _CROPS), self.world.part(count)
        image = cropping.random_crops(batch, config.size, count, mine, random)
        ab = rgb_to_lab(image)[:, 1:]  # (n,2,S,S)
        where = draw_hints(ab, count, generator(config.seed, step, _HINTS), mine) if config.hints else None

        self.colorizer.train()
        with self.world.autocast():
            out, classes = self.colorizer(image, ab if config.hints else None, where)
        target = interpolate(ab, out.shape[-2:], mode="area")  # (n,2,S/4,S/4)
        if config.loss == "classification":
            weights = color.rebalancing(self.colorizer.prior(), config.rebalance)
            loss, plain, nearest = classification_loss(out, target, self.colorizer.bins, weights, config.neighbors)
            seen = color.count_bins(nearest, len(self.colorizer.bins))
            self.colorizer.counts += self.world.size * self.world.mean(seen)
        elif config.hints:  # Huber, as in Zhang 2017 (eq. 2)
            loss = huber_loss(out / 110, target / 110, delta=1 / 110)
            plain = loss.detach()
        else:
            loss = (out / 110 - target / 110).square().mean()
            plain = loss.detach()
        scalars = {"loss/color": plain, "loss/weighted": loss.detach()}
        if config.classes:
            label = self._labels(batch)
            named = cross_entropy(classes.float(), label)
            loss = loss + config.class_weight * named
            scalars |= {"loss/class": named.detach(), "class/accuracy": (classes.argmax(1) == label).float().mean()}
        loss.backward()
        optimizer = self.optimizers["colorizer"]
        optim.set_lr(optimizer, config.lr * optim.warmup_cosine(step, config.steps, config.warmup))
        return scalars | {"grad_norm/colorizer": optim.take_step(optimizer, self.world)}

    def _labels(self, batch: Batch) -> Tensor:
        if "label" not in batch:
            raise ValueError("--classes needs images in class folders; these have no classes: leave it away")
        highest = int(batch["label"].amax()) + 1
        if highest > self.config.classes:
            raise ValueError(f"--classes {self.config.classes}: the data has more, at least {highest}")
        return batch["label"]

    def encoders(self) -> dict[str, Encoder]:
        return {"generator": self.colorizer.encoder}

    # --- looking and measuring --------------------------------------------------------------------------------

    def centered(self, batch: Batch) -> Tensor:
        """Held-out images are cropped to their largest central square."""
        return cropping.center_crops(batch, self.config.size)

    @torch.no_grad()
    def colorize(self, image: Tensor, temperature: float | None = None) -> Tensor:
        """ab (N,2,S,S) for RGB (N,3,S,S), of which the lightness is seen; without hints."""
        with self.world.autocast():
            out, _ = self.colorizer.eval()(image)
        return interpolate(self.colorizer.chroma(out, temperature), image.shape[-2:], mode="bilinear")

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """gray | colorized | truth, and the temperatures of the annealed mean from dull to spotty."""
        truth = self.centered(batch)
        lab = rgb_to_lab(truth)

        def colored(ab: Tensor) -> Tensor:
            return lab_to_rgb(torch.cat([lab[:, :1], ab], 1))

        gray = colored(torch.zeros_like(lab[:, 1:]))
        columns = {"gray | colorized | truth": [gray, colored(self.colorize(truth)), truth]}
        if self.config.hints:
            where = draw_hints(lab, len(lab), generator(0), slice(None))
            with torch.no_grad():
                out, _ = self.colorizer.eval()(truth, lab[:, 1:], where)
            hinted = interpolate(self.colorizer.chroma(out), truth.shape[-2:], mode="bilinear")
            columns["gray with hints | colorized | truth"] = [colored(lab[:, 1:] * where), colored(hinted), truth]
        if self.config.loss == "classification":
            sweep = [colored(self.colorize(truth, t)) for t in TEMPERATURES]
            columns["temperature " + " ".join(map(str, TEMPERATURES))] = sweep
        return {title: sheet(pictures, zoom=2) for title, pictures in columns.items()}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        return self._figures(batches, self.colorize)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Gray, and every pixel in the mean ab: of the training images, or of these where no bins are counted."""
        every = list(batches)
        mean = (self.colorizer.prior()[:, None] * self.colorizer.bins).sum(0).view(1, 2, 1, 1)
        if self.config.loss == "l2":
            images = [rgb_to_lab(self.centered(b))[:, 1:].mean((2, 3)) for b in every]  # (n,2) each
            mean = torch.cat(images).mean(0).view(1, 2, 1, 1)
        return {
            "gray": self._figures(every, lambda image: torch.zeros_like(image[:, 1:])),
            "mean ab": self._figures(every, lambda image: mean.expand(len(image), 2, *image.shape[-2:])),
        }

    @torch.no_grad()
    def _figures(self, batches: Iterable[Batch], colorize: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """``kintsugi.metrics.chroma.AbErrors`` of ab, PSNR of RGB; chroma beside the truth's shows who paints brown."""
        errors, rows = AbErrors(), []
        for batch in batches:
            truth = self.centered(batch)
            lab = rgb_to_lab(truth)
            ab = colorize(truth)
            errors.add(ab, lab[:, 1:])
            rgb = lab_to_rgb(torch.cat([lab[:, :1], ab], 1))
            psnr = -10 * (rgb - truth).square().mean((1, 2, 3)).clamp(min=1e-10).log10()
            rows.append(torch.stack([psnr, mean_chroma(ab), mean_chroma(lab[:, 1:])]))  # (3,n)
        psnr, painted, true = torch.cat(rows, 1).mean(1).tolist()
        return errors.means() | {"psnr": psnr, "chroma": painted, "chroma_truth": true}


# --- using it -------------------------------------------------------------------------------------------------


def load_colorizer(path: Path, device: torch.device) -> Colorizer:
    """The net of a checkpoint (a file or a run's folder). ValueError of one line if it is none."""
    content = checkpoint.read(path, Colorization.name)[1]
    net = Colorizer(from_plain(ColorizationConfig, content["config"]))
    net.load_state_dict(checkpoint.weights_of(content, "colorizer"))
    return net.eval().to(device)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Colorization, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
