"""Colorization: learning to see by giving gray images their colors (Zhang, Isola and Efros 2016, arXiv:1603.08511).

An encoder sees lightness, and a decoder predicts the chroma ab of every pixel: by regression (``--loss l2``, eq. 1), or
as one of 313 bins with rebalanced cross-entropy (``--loss classification``, eq. 2 to 4), decoded by the annealed mean
(eq. 5). ``--hints`` adds a user's color hints (Zhang 2017, arXiv:1705.02999), ``--classes`` a class loss (Iizuka 2016).

Deviations, each with its reason:
- The decoder is a feature pyramid over a standard encoder. Like the paper's, it predicts at a quarter of the side.
- The prior of the bins is counted during training, on its own data.
- The learning rate is higher: the paper's 3e-5 goes with 450k steps from a k-means start. Weight decay is decoupled.
- ``--undo-rebalance`` undoes a part of the rebalancing before decoding. After a short training the network is often not
  sure, and then the paper's rule gives colors that are too vivid.
- A hint gives each pixel of its patch its own color, not the patch's mean: the network averages them anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, huber_loss, interpolate

from kintsugi import color
from kintsugi.augment import cropping
from kintsugi.augment.hints import draw_hints
from kintsugi.color import lab_to_rgb, rgb_to_lab
from kintsugi.losses.bins import classification_loss
from kintsugi.metrics.chroma import AbErrors, mean_chroma
from kintsugi.nets.colorizer import Colorizer, ColorizerSpec
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import Network, chosen
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import checkpoint, optim
from kintsugi.train.command import run_method
from kintsugi.train.config import from_plain, within
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import EncoderConfig, start_encoder
from kintsugi.train.initial import initial_weights, is_run_of
from kintsugi.train.method import Batch, Method

_CROPS, _HINTS = 1, 2  # last number of a random generator's key: what it draws
TEMPERATURES = (1.0, 0.77, 0.58, 0.38, 0.29, 0.14)  # shown side by side, as in the paper's figure 12


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ColorizationConfig(EncoderConfig):
    width: float = 1.0
    """Factor on the encoder's numbers of channels, for resnet18, resnet50 and alexnet."""
    loss: Literal["classification", "l2"] = "classification"
    """classification: predict one of 313 bins of ab; l2: regress ab, which gives duller colors."""
    neighbors: int = 5
    """Nearest bins in the soft encoding: 5 in the paper, 10 in the authors' code."""
    rebalance: float = 0.5
    """The paper's lambda, in (0, 1]. The lower it is, the more weight rare colors get; 1 = equal weights."""
    temperature: float = 0.38
    """Temperature of the annealed mean, which turns bins into colors."""
    undo_rebalance: float = 0.0
    """How much of the rebalancing is undone before bins are turned into colors, in [0, 1]. 0, as in the paper, gives
    vivid colors; 1 gives the colors' true frequencies, and dull colors. It does not change training."""
    hints: bool = False
    """Also train with hints: a few patches whose color is given."""
    classes: int = 0
    """Number of class folders in the data, for joint classification (Iizuka 2016); 0 = no classification."""
    class_weight: float = 1 / 300
    """Weight of the classification loss (Iizuka 2016)."""
    lr: float = 3e-4
    """AdamW's learning rate after the warm-up."""
    weight_decay: float = 1e-3
    warmup: int = 50
    """Steps over which the learning rate rises; after them it falls along a cosine."""
    init: str = ""
    """Start from the whole network of a colorizer's run, checkpoint or weights file; or start the encoder from weights
    of another origin: a FILE (.safetensors, .pth, .pt), a run of another method, torchvision:NAME, timm:NAME or
    hf:OWNER/REPO."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 32:
            raise ValueError(f"--size {self.size}: use a multiple of 32")
        if not 0 < self.rebalance <= 1:
            raise ValueError(f"--rebalance must be in (0, 1], not {self.rebalance}")
        if self.temperature <= 0:
            raise ValueError(f"--temperature must be positive, not {self.temperature}")
        within(self, neighbors=(1, 313), classes=0, width=(1 / 8, 4.0), undo_rebalance=(0.0, 1.0))

    @property
    def net(self) -> ColorizerSpec:
        return ColorizerSpec(
            self.encoder,
            self.width,
            self.norm,
            self.loss,
            self.hints,
            self.classes,
            self.rebalance,
            self.undo_rebalance,
            self.temperature,
            self.size,
            self.encoder_patch,
        )

    @property
    def backbone(self) -> Network:
        return chosen(self.encoder, self.norm, width=self.width, size=self.encoder_side, patch=self.encoder_patch)


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
    """The paper's data, network and batch; crops of 160 px instead of 176, as the side must be a multiple of 32."""
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


# --- the method -----------------------------------------------------------------------------------------------


class Colorization(Method[ColorizationConfig]):
    """Trains a ``Colorizer``."""

    name = "colorization"
    score = "auc_rebalanced"
    next_program = "colorize"

    def __init__(self, config: ColorizationConfig, world: World) -> None:
        super().__init__(config, world)
        self.colorizer = config.net.build()
        if is_run_of(config.starts_from, self.name):  # a resumed run has its own weights
            # The counts start anew, because they are of the data.
            self.colorizer.load_state_dict(_initial(config) | {"counts": self.colorizer.counts})
        else:
            start_encoder(config, self.colorizer.encoder, world)
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
            bins, weights = self.colorizer.bins, self.colorizer.weights()
            loss, plain, nearest = classification_loss(out, target, bins, weights, config.neighbors)
            counts = color.count_bins(nearest, len(bins))
            self.colorizer.counts += self.world.size * self.world.mean(counts)
        else:  # with hints Huber's loss, as in Zhang 2017 (eq. 2)
            predicted, true = out / 110, target / 110
            loss = huber_loss(predicted, true, delta=1 / 110) if config.hints else (predicted - true).square().mean()
            plain = loss.detach()
        scalars = {"loss/color": plain, "loss/weighted": loss.detach()}
        if config.classes:
            label = self._labels(batch)
            class_loss = cross_entropy(classes.float(), label)
            loss = loss + config.class_weight * class_loss
            scalars |= {
                "loss/class": class_loss.detach(),
                "class/accuracy": (classes.argmax(1) == label).float().mean(),
            }
        self.world.backward(loss, self.optimizers["colorizer"])
        optim.set_lr(self.optimizers["colorizer"], config.lr * optim.warmup_cosine(step, config.steps, config.warmup))
        return scalars | self.take_step("colorizer", step)

    def _labels(self, batch: Batch) -> Tensor:
        if "label" not in batch:
            raise ValueError("--classes needs images in class folders, and this data has none: leave --classes out")
        highest = int(batch["label"].amax()) + 1
        if highest > self.config.classes:
            raise ValueError(f"--classes {self.config.classes}: the data has more classes, at least {highest}")
        return batch["label"]

    @classmethod
    def check(cls, config: ColorizationConfig) -> None:
        if is_run_of(config.starts_from, cls.name):
            _initial(config)
        else:
            super().check(config)

    def encoders(self) -> dict[str, Encoder]:
        return {"generator": self.colorizer.encoder}

    # --- pictures and figures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def colorize(self, image: Tensor, temperature: float | None = None) -> Tensor:
        """Predicts ab (N,2,S,S) from the lightness of RGB (N,3,S,S) in [0,1], without hints."""
        with self.world.autocast():
            out, _ = self.colorizer.eval()(image)
        return interpolate(self.colorizer.chroma(out, temperature), image.shape[-2:], mode="bilinear")

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: gray | colorized | truth. Also the same with hints, and a sweep of temperatures, dull to spotty."""
        truth = cropping.center_crops(batch, self.config.size)
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
        """Figures of two constants: gray, and the training images' mean ab (``--loss l2``: the held-out images')."""
        every = list(batches)
        mean = (self.colorizer.prior()[:, None] * self.colorizer.bins).sum(0).view(1, 2, 1, 1)
        if self.config.loss == "l2":
            crops = (cropping.center_crops(batch, self.config.size) for batch in every)
            mean = torch.cat([rgb_to_lab(image)[:, 1:].mean((2, 3)) for image in crops]).mean(0).view(1, 2, 1, 1)
        return {
            "gray": self._figures(every, lambda image: torch.zeros_like(image[:, 1:])),
            "mean ab": self._figures(every, lambda image: mean.expand(len(image), 2, *image.shape[-2:])),
        }

    @torch.no_grad()
    def _figures(self, batches: Iterable[Batch], colorize: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """``AbErrors`` of ab, PSNR of RGB in dB, and mean chroma: far below ``chroma_truth``, colors are dull."""
        errors, rows = AbErrors(), []
        for batch in batches:
            truth = cropping.center_crops(batch, self.config.size)
            lab, ab = rgb_to_lab(truth), colorize(truth)
            errors.add(ab, lab[:, 1:])
            difference = lab_to_rgb(torch.cat([lab[:, :1], ab], 1)) - truth
            psnr = -10 * difference.square().mean((1, 2, 3)).clamp(min=1e-10).log10()
            rows.append(torch.stack([psnr, mean_chroma(ab), mean_chroma(lab[:, 1:])]))  # (3,n)
        psnr, chroma, chroma_truth = torch.cat(rows, 1).mean(1).tolist()
        return errors.means() | {"psnr": psnr, "chroma": chroma, "chroma_truth": chroma_truth}


# --- using a trained network ----------------------------------------------------------------------------------


def _initial(config: ColorizationConfig) -> dict[str, Tensor]:
    """The weights of ``--init``."""
    return initial_weights(
        config.init, config, Colorization.name, "colorizer", "encoder", "width", "norm", "loss", "hints", "classes"
    )


def load_colorizer(path: Path, device: torch.device) -> Colorizer:
    """The network of a checkpoint (a file or a run's folder). Raises ValueError if it is of another method."""
    content = checkpoint.read(path, Colorization.name)[1]
    net = from_plain(ColorizationConfig, content["config"]).net.build()
    net.load_state_dict(checkpoint.weights_of(content, "colorizer"))
    return net.eval().to(device)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Colorization, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
