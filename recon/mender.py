"""The mender: inpainting that people use on their photos, after LaMa (Suvorov 2021, arXiv:2109.07161).

A fully convolutional network (``kintsugi.nets.fourier_unet``) gets a photo and its hole and paints the photo. Losses:
L1 of pixels; the distance of VGG19's features; and those of a discriminator of patches, which is trained to find the
patches that touch the hole: non-saturating (eq. 3, 4) with a gradient penalty R1, and feature matching (eq. 6).

Deviations, each with its reason:
- Skips and fewer channels (``kintsugi.nets.fourier_unet``).
- The L1 loss also covers the hole, with most of its weight. LaMa leaves the hole to the other losses; but a first fill
  for patches (``kintsugi.fill.patches``) needs the right colors more than it needs detail.
- The features are VGG19's, as LaMa's network for segmentation is not in torchvision.
- The adversarial loss is weighted so that its gradient at the last layer is a fixed fraction of the other losses'
  gradient (Esser 2021, arXiv:2012.09841, eq. 7), which suits runs of any length without tuning.
- Half of the crops are taken at the photo's own resolution, and half from larger squares (``cropping.square_crops``).
- The generator's weights are averaged over steps (EMA .999), because a GAN's weights fluctuate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, softplus

from kintsugi.augment import cropping, masks
from kintsugi.fill.classical import CLASSICAL, Fill
from kintsugi.fill.membrane import mend
from kintsugi.losses import adversarial
from kintsugi.losses.perceptual import open_content, open_lpips, relative_l1
from kintsugi.metrics.reconstruction import HoleQuality
from kintsugi.nets.discriminators import PatchGan, PatchGanSpec
from kintsugi.nets.fourier_unet import FourierUNet, FourierUNetSpec
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import checkpoint, optim
from kintsugi.train.command import run_method
from kintsugi.train.config import from_plain, within
from kintsugi.train.dist import World
from kintsugi.train.ema import RunningAverage
from kintsugi.train.gan import Gan, GanConfig, gradient_ratio
from kintsugi.train.initial import initial_weights
from kintsugi.train.method import Batch

_CROPS, _HOLES = 1, 2  # last number of a random generator's key: what it draws
_EVERY = 16  # steps between gradient penalties, and between updates of the adversarial weight

# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MenderConfig(GanConfig):
    width: int = 32
    """Channels of the network at full resolution; twice as many at each coarser stride."""
    blocks: int = 6
    """Residual blocks at stride 8, each of two fast Fourier convolutions."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization; with group, results do not depend on how the batch is split over ranks."""
    mask: masks.Kind = "mixed"
    """The holes; mixed: strokes, scratches, boxes and regions."""
    init: str = ""
    """Start from the network of this mender's run, checkpoint or weights file, instead of from fresh weights."""
    scale_jitter: float = 0.25
    """Smallest factor by which photos are shrunk before half of the crops are taken, uniform in the logarithm."""
    pixels: float = 4.0
    """Weight of the mean L1 error in the hole; outside it, the weight is an eighth of this."""
    content: float = 3.0
    """Weight of the distance of VGG19's features."""
    content_weights: str = "auto"
    """VGG19: auto (if it is on this machine), download, off (there is no such loss), or a FILE of torchvision's."""
    matching: float = 0.5
    """Weight of the distance of the discriminator's features."""
    adversarial: float = 0.15
    """The adversarial gradient as a fraction of the other losses' gradient. 0 trains without a discriminator."""
    r1: float = 0.002
    """Weight of the gradient penalty on real images (LaMa's .001, with R1's factor of a half)."""

    lpips: str = "auto"
    """LPIPS of held-out images: auto (if its AlexNet is on this machine), download, off, or a FILE of AlexNet."""
    lr: float = 1e-3
    """AdamW's learning rate for the generator, at the end of the warm-up; from there it falls along a cosine."""
    lr_discriminator: float = 1e-4
    """Adam's learning rate for the discriminator."""
    warmup: int = 200
    """Steps over which the learning rate rises."""
    ema: float = 0.999
    """Decay of the generator's running average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 16 or self.size < 32:
            raise ValueError(f"--size {self.size}: use a multiple of 16, at least 32")
        within(self, width=4, blocks=0, adversarial=0, scale_jitter=(1 / 64, 1.0))

    @property
    def net(self) -> FourierUNetSpec:
        return FourierUNetSpec(self.width, self.blocks, self.norm)

    @property
    def has_adversary(self) -> bool:
        return self.adversarial > 0


def demo() -> MenderConfig:
    """Minutes on two CPU cores, built-in scenes: a smaller network."""
    return MenderConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=900,
        batch=16,
        width=16,
        blocks=3,
        adversarial_start=600,
        show_every=150,
        eval_every=300,
        save_every=300,
    )


def small() -> MenderConfig:
    """One GPU, tens of minutes: the network that ships."""
    return MenderConfig(
        preset="small",
        size=192,
        short_side=768,
        batch=48,
        steps=20_000,
        adversarial_start=2_000,
        scenes=20_000,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
    )


def paper() -> MenderConfig:
    """LaMa's crops, batch and number of steps; its data is Places."""
    return MenderConfig(
        preset="paper",
        data="imagenet:imagenet",
        size=256,
        short_side=512,
        batch=30,
        steps=1_000_000,
        adversarial_start=10_000,
        width=64,
        blocks=9,
        content_weights="download",
        cache_gb=400,
        show_every=10_000,
        eval_every=20_000,
        save_every=20_000,
    )


# --- the method -----------------------------------------------------------------------------------------------


class PhotoMending(Gan[MenderConfig]):
    """A generator that paints holes, and a discriminator of patches that looks for them."""

    name = "mender"
    score = "psnr"
    next_program = "mend"
    discriminator: PatchGan
    balance: Tensor
    """Weight of the adversarial loss, ()."""

    def __init__(self, config: MenderConfig, world: World) -> None:
        super().__init__(config, world)
        self.generator = config.net.build()
        if config.init and not config.resume:  # a resumed run has its own weights
            self.generator.load_state_dict(_initial(config))
        self.average = RunningAverage(self.generator, config.ema)
        self.register_buffer("balance", torch.zeros((), device=world.device))
        self.optimizers = {
            "generator": torch.optim.AdamW(
                self.generator.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
            )
        }
        if config.has_adversary:
            self.discriminator = PatchGanSpec(width=min(64, 2 * config.width)).build()
            self.optimizers["discriminator"] = torch.optim.Adam(
                self.discriminator.parameters(), config.lr_discriminator, betas=(0.5, 0.99), fused=True
            )
        # Functions, because VGG and LPIPS are not part of the method's weights.
        content, report = open_content("conv1_2-conv3_4", config.content_weights)
        self.content_distance = content and content.to(world.device).distance
        if world.is_main:
            print(f"{'no ' if content is None else ''}loss on features: {report}")
        lpips = open_lpips(config.lpips)[0]
        self.quality = partial(HoleQuality, lpips and lpips.to(world.device))

    def inputs(self, batch: Batch, step: int) -> Batch:
        """This rank's random crops (n,3,S,S) in [0,1], and their holes (n,1,S,S)."""
        holes = self.holes(self.config.batch, self.config.seed, step)
        return {"image": self.crops(batch, step), "mask": self.world.slice(holes)}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config, truth, mask = self.config, inputs["image"], inputs["mask"]
        with self.world.autocast():
            painted = self.generator(truth, mask)
        mended = mend(painted, truth, mask)

        off = (painted - truth).abs().mean(1, keepdim=True)  # (n,1,S,S)
        in_hole, outside = self.world.weighted_mean(off, mask), self.world.weighted_mean(off, 1 - mask)
        loss = config.pixels * (in_hole + outside / 8)
        scalars = {"loss/pixels": in_hole.detach(), "loss/pixels_outside": outside.detach()}
        if self.content_distance is not None:
            with self.world.autocast():
                content = self.content_distance(mended, truth)
            loss = loss + config.content * content
            scalars["loss/content"] = content.detach()
        if config.has_adversary and step >= config.adversarial_start:
            scalars |= self._train_discriminator(truth, mended.detach(), mask, step)
            matching, fooling, more = self._judge(truth, mended, mask)
            loss = loss + config.matching * matching
            if step % _EVERY == 0:  # a tenth of the way to the weight with the wanted gradient
                ratio = gradient_ratio(loss, fooling, self.generator.last.weight, self.world)
                self.balance.lerp_((config.adversarial * ratio).clamp(max=1.0), 0.1)
            loss = loss + self.balance * fooling
            scalars |= more
        self.world.backward(loss, self.optimizers["generator"])
        optim.set_lr(self.optimizers["generator"], config.lr * optim.warmup_cosine(step, config.steps, config.warmup))
        scalars |= self.take_step("generator", step)
        self.average.update_parameters(self.generator)
        return scalars | {"loss/generator": loss.detach()}

    def _train_discriminator(self, truth: Tensor, mended: Tensor, mask: Tensor, step: int) -> dict[str, Tensor]:
        """One step of the discriminator (eq. 4). Of a mended photo, only the patches that touch the hole are fake."""
        with self.world.autocast():
            on_real, on_mended = self.discriminator(truth).float(), self.discriminator(mended).float()
        fake = adaptive_max_pool2d(mask, on_mended.shape[-2:])  # (n,1,S/8,S/8)
        loss = softplus(-on_real).mean() + self.world.weighted_mean(softplus(on_mended), fake)
        loss.backward()
        scalars = {
            "discriminator/real": on_real.detach().sigmoid().mean(),
            "discriminator/fake": self.world.weighted_mean(on_mended.detach().sigmoid(), fake),
            "loss/discriminator": loss.detach(),
        }
        if self.config.r1 and step % _EVERY == 0:
            penalty = adversarial.r1_penalty(self.discriminator.forward, truth)
            (_EVERY * self.config.r1 * penalty).backward()
            scalars["loss/r1"] = penalty.detach()
        self.world.mean_gradients(self.optimizers["discriminator"])
        return scalars | self.take_step("discriminator", step)

    def _judge(self, truth: Tensor, mended: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The losses of feature matching and of fooling the discriminator after its update, 0-d; scalars to log."""
        with adversarial.frozen(self.discriminator), self.world.autocast():
            logits, maps = self.discriminator.judge(mended)
            with torch.no_grad():
                wanted = self.discriminator.encoder(truth)
        matching = torch.stack([relative_l1(maps[stride], wanted[stride]) for stride in maps]).mean()
        fake = adaptive_max_pool2d(mask, logits.shape[-2:])
        fooling = self.world.weighted_mean(softplus(-logits.float()), fake)
        scalars = {"loss/matching": matching.detach(), "loss/adversarial": fooling.detach()}
        return matching, fooling, scalars | {"loss/adversarial_weight": self.balance.clone()}

    def crops(self, batch: Batch, step: int) -> Tensor:
        """This rank's random crops for a step, (n,3,S,S) in [0,1], half of them at the photos' own resolution."""
        config, mine = self.config, self.world.part(self.config.batch)
        random = generator(config.seed, step, _CROPS)
        return cropping.square_crops(batch, config.size, config.batch, mine, random, smallest=config.scale_jitter)

    def holes(self, count: int, *key: int) -> Tensor:
        """Random holes for ``key``, (count,1,S,S)."""
        return masks.draw(self.config.mask, count, self.config.size, generator(*key, _HOLES), self.world.device)

    @classmethod
    def check(cls, config: MenderConfig) -> None:
        if config.init and not config.resume:
            _initial(config)

    # --- pictures and figures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def mended(self, image: Tensor, mask: Tensor) -> Tensor:
        """Images (N,3,S,S) in [0,1] with their holes (N,1,S,S) mended by the averaged generator."""
        net = self.average.module.eval()
        with self.world.autocast():
            return mend(net(image, mask), image, mask)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: input | mended | truth. The same images and holes at every call."""
        truth = self.centered(batch)
        mask = self.holes(len(truth), self.config.seed)
        columns = [mend(torch.full_like(truth, 0.5), truth, mask), self.mended(truth, mask), truth]
        return {"input | mended | truth": sheet(columns, zoom=2)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean figures (``HoleQuality``) in the holes of held-out images."""
        return self._figures(batches, self.mended)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of the classical fills, mean color and biharmonic, in the same holes."""
        every = list(batches)
        return {name: self._figures(every, fill) for name, fill in CLASSICAL.items()}

    def _figures(self, batches: Iterable[Batch], fill: Fill) -> dict[str, float]:
        figures = self.quality()
        for number, batch in enumerate(batches):
            truth = self.centered(batch)
            mask = self.holes(len(truth), self.config.seed, number)
            figures.add(mend(fill(truth, mask), truth, mask), truth, mask)
        return figures.means()

    def centered(self, batch: Batch) -> Tensor:
        """The central squares of held-out images at their own resolution, (n,3,S,S) in [0,1]."""
        return cropping.crop(batch["image"], batch["extent"], self.config.size) / 255


# --- using a trained network ----------------------------------------------------------------------------------


def _initial(config: MenderConfig) -> dict[str, Tensor]:
    """The weights of ``--init``."""
    return initial_weights(config.init, config, PhotoMending.name, "average.module", "width", "blocks", "norm")


def load_unet(path: Path, device: torch.device) -> FourierUNet:
    """The averaged generator of a checkpoint (a file or a run's folder).

    Raises ValueError with one line if it is not a checkpoint of the mender.
    """
    content = checkpoint.read(path, PhotoMending.name)[1]
    net = from_plain(MenderConfig, content["config"]).net.build()
    net.load_state_dict(checkpoint.weights_of(content, "average.module"))
    return net.eval().to(device)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(PhotoMending, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
