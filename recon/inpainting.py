"""Context encoder: learning to see by painting what a hole hides (Pathak et al. 2016, arXiv:1604.07379).

An encoder looks at an image with a hole, a channel-wise fully connected layer spreads what it saw over the whole
field, and a decoder paints. The loss is L2 on the hole (eq. 1) and a discriminator's verdict (eq. 2), .999 to .001
(eq. 3). Settings are those of the paper and of the authors' released code.

Deviations, each for a reason:
- The decoder always paints the whole image, and the hole is cut out of it, so that one network serves holes of any
  shape; the paper has another decoder for each.
- The generator's weights are averaged over steps (EMA .999); the average is what is shown, measured and moved.
- The adversary joins after a pixel-only warm-up, when there is something to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kintsugi.augment import cropping, masks
from kintsugi.fill.classical import CLASSICAL, Fill
from kintsugi.fill.membrane import mend, seamless
from kintsugi.losses import adversarial
from kintsugi.losses.perceptual import open_lpips
from kintsugi.metrics.reconstruction import HoleQuality
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.decoders import ChannelwiseLinear, Decoder
from kintsugi.nets.discriminators import DiscriminatorSpec
from kintsugi.nets.layers import Norm, normalization
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import checkpoint, optim
from kintsugi.train.command import run_method
from kintsugi.train.config import from_plain
from kintsugi.train.dist import World
from kintsugi.train.ema import warmed_average
from kintsugi.train.gan import Gan, GanConfig, update_discriminator
from kintsugi.train.method import Batch

_CROPS, _HOLES = 1, 2  # what random numbers are for, the last part of their key
MEAN_COLOR = (123 / 255, 117 / 255, 104 / 255)  # the authors' fill, RGB


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InpaintingConfig(GanConfig):
    encoder: Literal["resnet18", "resnet50", "alexnet", "dcgan"] = "resnet18"
    """alexnet is the paper's for features, dcgan the authors' released one for pictures (128 px)."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization; group does not depend on the batch, nor on how it is split over ranks."""
    mask: Literal["center", "blocks", "regions", "none"] = "center"
    """The hole: the central square, random rectangles, random shapes (the paper's best for features); none trains
    the plain autoencoder, the paper's baseline."""
    overlap: int = -1
    """Width of the band of seen pixels around the hole that is painted too, px; -1 = size/32 (4 at 128 px)."""
    overlap_weight: float = 10.0
    """Weight of the L2 loss in that band."""

    adversarial: float = 0.001
    """Weight of the adversarial loss, the L2 loss having 1 minus it; 0 trains without a discriminator."""
    gan: Literal["bce", "hinge"] = "bce"
    """Adversarial loss."""
    discriminator_norm: Literal["batch", "group", "spectral"] = "batch"
    """spectral: spectral normalization of the weights instead of a layer."""
    r1: float = 0.0
    """Weight of the gradient penalty on real images (Mescheder 2018), every 16 steps; 0 = none."""

    lpips: str = "auto"
    """LPIPS of held-out images: auto (where its AlexNet is at hand), download, off, or a FILE of AlexNet's weights."""

    lr: float = 5e-4
    """Adam's rate for the generator; the authors' 2e-3 suits their net, a ResNet learns faster with less."""
    lr_discriminator: float = 1e-4
    """Adam's rate for the discriminator."""
    ema: float = 0.999
    """Decay of the generator's running average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 32 or self.size < 64:
            raise ValueError(f"--size {self.size}: the decoder doubles five times, so use a multiple of 32 from 64 on")
        if not 0 <= self.adversarial < 1:
            raise ValueError(f"--adversarial must be in [0, 1), not {self.adversarial}")

    @property
    def band(self) -> int:
        return self.size // 32 if self.overlap < 0 else self.overlap

    @property
    def has_adversary(self) -> bool:
        return self.adversarial > 0 and self.mask != "none"


def demo() -> InpaintingConfig:
    """Minutes on two CPU cores, built-in scenes."""
    return InpaintingConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=900,
        batch=32,
        adversarial_start=600,
        show_every=150,
        eval_every=300,
        save_every=300,
    )


def small() -> InpaintingConfig:
    """One GPU, tens of minutes; random shapes, which teach the encoder more than a square (paper, section 5.2)."""
    return InpaintingConfig(
        preset="small",
        size=96,
        batch=64,
        steps=20_000,
        mask="regions",
        adversarial_start=5_000,
        scenes=50_000,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
    )


def paper() -> InpaintingConfig:
    """The paper's feature learning: AlexNet on ImageNet, random regions, 100k steps (227 px there, 224 here)."""
    return InpaintingConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="alexnet",
        mask="regions",
        size=224,
        short_side=256,
        batch=64,
        steps=100_000,
        adversarial_start=10_000,
        lr=2e-3,
        lr_discriminator=2e-4,
        cache_gb=400,
        show_every=2_000,
        eval_every=5_000,
        save_every=5_000,
    )


# --- networks -------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """Encoder, bottleneck, decoder: (N,3,S,S) RGB in [0,1] and its holes (N,1,S,S) -> the whole image painted."""

    mean_color: Tensor

    def __init__(self, config: InpaintingConfig) -> None:
        super().__init__()
        self.encoder = Backbone(name=config.encoder, norm=config.norm).build()
        stride, channels = max(self.encoder.channels.items())
        bottleneck = _dense_bottleneck if config.encoder == "dcgan" else _channelwise_bottleneck
        self.bottleneck = bottleneck(channels, config.size // stride, config.norm)
        self.decoder = Decoder(channels, (256, 128, 64, 64), norm=config.norm)
        self.register_buffer("mean_color", torch.tensor(MEAN_COLOR).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        seen = image * (1 - mask) + self.mean_color * mask
        features = self.encoder(seen)
        coarsest = features[max(features)]  # (N,C,s,s)
        return self.decoder(self.bottleneck(coarsest))  # (N,C,S/32,S/32) -> (N,3,S,S)


def _channelwise_bottleneck(channels: int, side: int, norm: Norm) -> nn.Module:
    """The paper's: every feature map is mixed over its own positions, then a 1x1 convolution mixes the maps."""
    return nn.Sequential(
        ChannelwiseLinear(channels, side**2, side**2),  # (N,C,side,side)
        nn.Conv2d(channels, channels, 1, bias=False),
        normalization(norm, channels),
        nn.ReLU(inplace=True),
    )


def _dense_bottleneck(channels: int, side: int, norm: Norm) -> nn.Module:
    """The released 128-px net's: everything through 4000 numbers."""
    return nn.Sequential(
        nn.Conv2d(channels, 4000, side, bias=False),  # (N,C,side,side) -> (N,4000,1,1)
        normalization(norm, 4000),
        nn.LeakyReLU(0.2, inplace=True),
        nn.ConvTranspose2d(4000, channels, side, bias=False),  # -> (N,C,side,side)
        normalization(norm, channels),
        nn.ReLU(inplace=True),
    )


# --- losses ---------------------------------------------------------------------------------------------------


def reconstruction_loss(painted: Tensor, truth: Tensor, mask: Tensor, band: int, band_weight: float) -> Tensor:
    """L2 over the hole and, ``band_weight`` times, over the ``band`` px of seen pixels around it (eq. 1).

    Images (N,3,S,S) in [0,1]; mask (N,1,S,S). Averaged over the painted region of each image, then over images, so
    that every image counts alike whatever the size of its hole. As in the authors' code the difference is taken on
    the scale of [-1,1], four times the square of [0,1]'s. A mask without a hole means the whole image (autoencoder).
    """
    region = masks.dilate(mask, band) if band else mask
    weight = mask + band_weight * (region - mask)
    whole = (mask.amax((1, 2, 3), keepdim=True) == 0).to(mask)  # (N,1,1,1)
    weight, region = weight + whole, region + whole
    squared = (2 * (painted - truth)).square().mean(1, keepdim=True)  # (N,1,S,S)
    return ((weight * squared).sum((1, 2, 3)) / region.sum((1, 2, 3))).mean()


# --- the method -----------------------------------------------------------------------------------------------


class Inpainting(Gan[InpaintingConfig]):
    name = "inpainting"
    score = "psnr"
    next_step = "mend a photo: make mend IN= MASK= OUT= CKPT={folder}"

    def __init__(self, config: InpaintingConfig, world: World) -> None:
        super().__init__(config, world)
        self.generator = Generator(config)
        self.average = AveragedModel(self.generator, multi_avg_fn=warmed_average(config.ema), use_buffers=True)
        betas = (0.5, 0.999)
        self.optimizers = {
            "generator": torch.optim.Adam(self.generator.parameters(), config.lr, betas=betas, fused=True)
        }
        if config.has_adversary:
            # It sees the painted square where all holes are one square, else the whole mended image.
            seen = config.size // 2 if config.mask == "center" else config.size
            self.discriminator = DiscriminatorSpec(size=seen, norm=config.discriminator_norm).build()
            self.optimizers["discriminator"] = torch.optim.Adam(
                self.discriminator.parameters(), config.lr_discriminator, betas=betas, fused=True
            )

        lpips = open_lpips(config.lpips)[0]
        # Held by a plain object, because it is not part of the method's weights.
        self.quality = partial(HoleQuality, lpips and lpips.to(world.device))

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        truth, mask = self.crops(batch, step), self.world.slice(self.holes(config.batch, config.seed, step))
        with self.world.autocast():
            painted = self.generator(truth, mask)
        painted = painted.float()

        reconstruction = reconstruction_loss(painted, truth, mask, config.band, config.overlap_weight)
        loss = (1 - config.adversarial) * reconstruction
        scalars = {"loss/reconstruction": reconstruction}
        if config.has_adversary and step >= config.adversarial_start:
            mended = mend(painted, truth, mask)
            scalars |= update_discriminator(
                self.discriminator,
                self.optimizers["discriminator"],
                self._judged(truth),
                self._judged(mended.detach()),
                self.world,
                kind=config.gan,
                r1=config.r1,
                step=step,
            )
            # The generator is judged by the discriminator that has just learned.
            with adversarial.frozen(self.discriminator), self.world.autocast():
                verdict = self.discriminator(self._judged(mended))
            fooling = adversarial.generator_loss(verdict.float(), config.gan)
            loss = loss + config.adversarial * fooling
            scalars |= {"loss/adversarial": fooling, "loss/adversarial_weighted": config.adversarial * fooling}
        loss.backward()
        scalars["grad_norm/generator"] = optim.take_step(self.optimizers["generator"], self.world)
        self.average.update_parameters(self.generator)
        return scalars | {"loss/generator": loss}

    def crops(self, batch: Batch, step: int) -> Tensor:
        """This rank's random crops of a step, (n,3,S,S) in [0,1]."""
        config, random = self.config, generator(self.config.seed, step, _CROPS)
        return cropping.random_crops(batch, config.size, config.batch, self.world.part(config.batch), random)

    def holes(self, count: int, *key: int) -> Tensor:
        """Holes drawn for ``key``, (count,1,S,S); all 0 for the autoencoder."""
        config = self.config
        if config.mask == "none":
            return torch.zeros(count, 1, config.size, config.size, device=self.world.device)
        return masks.draw(config.mask, count, config.size, generator(*key, _HOLES), self.world.device)

    def _judged(self, image: Tensor) -> Tensor:
        """What the discriminator sees of an image: the central square, or all of it."""
        quarter = self.config.size // 4
        return image[..., quarter:-quarter, quarter:-quarter] if self.config.mask == "center" else image

    # --- looking and measuring --------------------------------------------------------------------------------

    @property
    def averaged(self) -> Generator:
        net = self.average.module
        assert isinstance(net, Generator)
        return net

    @torch.no_grad()
    def paint(self, image: Tensor, mask: Tensor) -> Tensor:
        """What the averaged generator paints, (N,3,S,S) in [0,1]."""
        net = self.averaged.eval()
        with self.world.autocast():
            return net(image, mask).float()

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: input | hole (what is painted into it) | mended | truth; of the autoencoder truth | painted.

        The same images and holes at every call.
        """
        truth = self.centered(batch)
        mask = self.holes(len(truth), self.config.seed)
        painted = self.paint(truth, mask)
        if self.config.mask == "none":
            return {"truth | painted": sheet([truth, painted], zoom=2)}
        gray = torch.full_like(truth, 0.5)
        columns = [
            mend(self.generator.mean_color.expand_as(truth), truth, mask),
            mend(painted, gray, mask),
            mend(painted, truth, mask),
            truth,
        ]
        return {"input | hole | mended | truth": sheet(columns, zoom=2)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Means over held-out images, inside the holes, which are drawn as in ``show``; of the autoencoder, which has
        no holes, over whole images."""
        return self._figures(batches, self.paint)

    def _figures(self, batches: Iterable[Batch], fill: Fill) -> dict[str, float]:
        figures = self.quality()
        for number, batch in enumerate(batches):
            truth = self.centered(batch)
            mask = self.holes(len(truth), self.config.seed, number)
            where = torch.ones_like(mask) if self.config.mask == "none" else mask
            figures.add(mend(fill(truth, mask), truth, where), truth, where)
        return figures.means()

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Classical fills of the same holes."""
        if self.config.mask == "none":
            return {}
        every = list(batches)
        return {name: self._figures(every, fill) for name, fill in CLASSICAL.items()}

    def centered(self, batch: Batch) -> Tensor:
        """Held-out images are cropped to their largest central square."""
        return cropping.center_crops(batch, self.config.size)


# --- using it -------------------------------------------------------------------------------------------------


class Mender(nn.Module):
    """A trained generator for whoever has images to mend: squares of side ``size``."""

    def __init__(self, net: Generator, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    @torch.no_grad()
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """(N,3,S,S) in [0,1] and holes (N,1,S,S) -> (N,3,S,S), unchanged outside the holes, without seams."""
        return seamless(self.net(image, mask), image, mask)

    @torch.no_grad()
    def plain(self, image: Tensor, mask: Tensor) -> Tensor:
        """As the paper has it, the painting as it is: its figures are measured on this."""
        return mend(self.net(image, mask), image, mask)


def load_mender(path: Path, device: torch.device) -> Mender:
    """The averaged generator of a checkpoint (a file or a run's folder). ValueError of one line if it is none."""
    content = checkpoint.read(path, Inpainting.name)[1]
    config = from_plain(InpaintingConfig, content["config"])
    if config.mask == "none":
        raise ValueError(f"{path} is an autoencoder's checkpoint (--mask none), which cannot mend: name an inpainter's")
    net = Generator(config)
    net.load_state_dict(checkpoint.weights_of(content, "average.module"))
    return Mender(net, config.size).eval().to(device)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Inpainting, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
