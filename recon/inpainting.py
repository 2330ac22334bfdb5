"""Context encoder: learning to see by painting what a hole hides (Pathak et al. 2016, arXiv:1604.07379).

An encoder sees an image with a hole, a channel-wise fully connected layer carries information across the whole feature
map, and a decoder paints the image. The loss is L2 in the hole (eq. 1) plus an adversarial loss (eq. 2), weighted .999
to .001 (eq. 3). Settings are those of the paper and of the authors' released code.

Deviations, each with its reason:
- The decoder always paints the whole image, and the hole is cut out of it, so that one network handles all shapes.
- The decoder enlarges by repeating positions before each convolution, which leaves no checkerboard (``Decoder``).
- The generator's weights are averaged over steps (EMA .999), because a GAN's weights fluctuate; the average is shown,
  measured and transferred.
- The first steps train on the L2 loss alone: a discriminator could not learn from such early paintings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kintsugi.augment import cropping, masks
from kintsugi.fill.classical import CLASSICAL, Fill
from kintsugi.fill.membrane import mend, seamless
from kintsugi.losses.perceptual import open_lpips
from kintsugi.metrics.reconstruction import HoleQuality
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.context_encoder import ContextEncoder
from kintsugi.nets.discriminators import DiscriminatorSpec
from kintsugi.nets.encoder_choice import Network
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import checkpoint
from kintsugi.train.command import run_method
from kintsugi.train.config import from_plain
from kintsugi.train.dist import World
from kintsugi.train.ema import RunningAverage
from kintsugi.train.encoder_options import EncoderConfig, start_encoder
from kintsugi.train.gan import Gan, GanConfig, adversarial_loss, update_discriminator
from kintsugi.train.method import Batch

_CROPS, _HOLES = 1, 2  # last number of a random generator's key: what it draws


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InpaintingConfig(GanConfig, EncoderConfig):
    exact = True
    encoder: str = "resnet18"
    """As of other methods, and dcgan, as in the authors' released inpainter (128 px); alexnet is the paper's."""
    mask: Literal["center", "blocks", "regions", "none"] = "center"
    """The hole: the central square, random rectangles, or random shapes (the paper's best for features); none trains
    a plain autoencoder, the paper's baseline."""
    overlap: int = -1
    """Width in px of the band of visible pixels around the hole that the L2 loss also covers; -1 = size/32."""
    overlap_weight: float = 10.0
    """Weight of the L2 loss in that band."""

    adversarial: float = 0.001
    """Weight of the adversarial loss; the L2 loss has 1 minus this weight. 0 trains without a discriminator."""
    gan: Literal["bce", "hinge"] = "bce"
    """The adversarial loss: binary cross-entropy or hinge."""
    discriminator_norm: Literal["batch", "group", "spectral"] = "batch"
    """The discriminator's normalization: batch or group normalization of its maps, or spectral of its weights."""
    r1: float = 0.0
    """Weight of the gradient penalty on real images (Mescheder 2018), computed every 16 steps; 0 = none."""

    lpips: str = "auto"
    """LPIPS of held-out images: auto (if its AlexNet is here), download, off, or a FILE with AlexNet's weights."""

    lr: float = 5e-4
    """Adam's learning rate for the generator; the authors' is 2e-3, but a ResNet learns faster with less."""
    lr_discriminator: float = 1e-4
    """Adam's learning rate for the discriminator."""
    ema: float = 0.999
    """Decay of the generator's running average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 32 or self.size < 64:
            raise ValueError(f"--size {self.size}: use a multiple of 32, at least 64")
        if not 0 <= self.adversarial < 1:
            raise ValueError(f"--adversarial must be in [0, 1), not {self.adversarial}")

    @property
    def backbone(self) -> Network:
        return Backbone("dcgan", self.norm) if self.encoder == "dcgan" else super().backbone

    @property
    def band(self) -> int:
        """Width of the band around the hole, px."""
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
    """One GPU, tens of minutes; random shapes, from which the encoder learns more than from a square (section 5.2)."""
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


# --- losses ---------------------------------------------------------------------------------------------------


def reconstruction_loss(painted: Tensor, truth: Tensor, mask: Tensor, band: int, band_weight: float) -> Tensor:
    """L2 in the hole, plus ``band_weight`` times L2 in the ``band`` px of visible pixels around it (eq. 1); 0-d.

    Images (N,3,S,S) in [0,1]; mask (N,1,S,S). Averaged over each image's hole and band, then over images, so that all
    images count equally, whatever the size of their holes. Differences are those of values in [-1,1], as in the
    authors' code. If an image has no hole (autoencoder), its whole area counts.
    """
    region = masks.dilate(mask, band) if band else mask
    weight = mask + band_weight * (region - mask)
    whole = (mask.amax((1, 2, 3), keepdim=True) == 0).to(mask)  # (N,1,1,1)
    weight, region = weight + whole, region + whole
    squared = (2 * (painted - truth)).square().mean(1, keepdim=True)  # (N,1,S,S)
    return ((weight * squared).sum((1, 2, 3)) / region.sum((1, 2, 3))).mean()


# --- the method -----------------------------------------------------------------------------------------------


class Inpainting(Gan[InpaintingConfig]):
    """The context encoder: a generator that paints holes, and a discriminator of mended images."""

    name = "inpainting"
    score = "psnr"
    next_program = "mend"

    def __init__(self, config: InpaintingConfig, world: World) -> None:
        super().__init__(config, world)
        self.generator = ContextEncoder(config.backbone, config.norm, config.size)
        start_encoder(config, self.generator.encoder, world)
        self.average = RunningAverage(self.generator, config.ema)
        betas = (0.5, 0.999)
        self.optimizers = {
            "generator": torch.optim.Adam(self.generator.parameters(), config.lr, betas=betas, fused=True)
        }
        if config.has_adversary:
            # It sees the central square if that is always the hole, else the whole mended image.
            side = config.size // 2 if config.mask == "center" else config.size
            self.discriminator = DiscriminatorSpec(size=side, norm=config.discriminator_norm).build()
            self.optimizers["discriminator"] = torch.optim.Adam(
                self.discriminator.parameters(), config.lr_discriminator, betas=betas, fused=True
            )

        lpips = open_lpips(config.lpips)[0]
        # A function, because LPIPS is not part of the method's weights.
        self.quality = partial(HoleQuality, lpips and lpips.to(world.device))

    def inputs(self, batch: Batch, step: int) -> Batch:
        """This rank's random crops (n,3,S,S) in [0,1], and their holes (n,1,S,S)."""
        config, mine = self.config, self.world.part(self.config.batch)
        image = cropping.random_crops(batch, config.size, config.batch, mine, generator(config.seed, step, _CROPS))
        return {"image": image, "mask": self.holes(config.batch, config.seed, step)[mine]}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config, truth, mask = self.config, inputs["image"], inputs["mask"]
        with self.world.autocast():
            painted = self.generator(truth, mask)
        painted = painted.float()

        reconstruction = reconstruction_loss(painted, truth, mask, config.band, config.overlap_weight)
        loss = (1 - config.adversarial) * reconstruction
        scalars = {"loss/reconstruction": reconstruction}
        if config.has_adversary and step >= config.adversarial_start:
            mended = mend(painted, truth, mask)
            scalars |= update_discriminator(
                self,
                self.discriminator,
                self._judged(truth),
                self._judged(mended.detach()),
                step,
                kind=config.gan,
                r1=config.r1,
            )
            # The generator's loss comes from the discriminator after its update.
            weighted, more = adversarial_loss(
                self.discriminator, self._judged(mended), self.world, config.adversarial, config.gan
            )
            loss = loss + weighted
            scalars |= more
        self.world.backward(loss, self.optimizers["generator"])
        scalars |= self.take_step("generator", step)
        self.average.update_parameters(self.generator)
        return scalars | {"loss/generator": loss}

    def holes(self, count: int, *key: int) -> Tensor:
        """Random holes for ``key``, (count,1,S,S); all 0 for the autoencoder."""
        config = self.config
        if config.mask == "none":
            return torch.zeros(count, 1, config.size, config.size, device=self.world.device)
        return masks.draw(config.mask, count, config.size, generator(*key, _HOLES), self.world.device)

    def _judged(self, image: Tensor) -> Tensor:
        """The region of an image that the discriminator sees: the central square, or the whole image."""
        quarter = self.config.size // 4
        return image[..., quarter:-quarter, quarter:-quarter] if self.config.mask == "center" else image

    # --- pictures and figures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(self, image: Tensor, mask: Tensor) -> Tensor:
        """The whole image as the averaged generator paints it, (N,3,S,S) in [0,1]."""
        net = self.average.module.eval()
        with self.world.autocast():
            return net(image, mask).float()

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: input | hole (what is painted there) | mended | truth; for the autoencoder: truth | painted.

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
        """Mean figures (``HoleQuality``) of held-out images: in the holes; for the autoencoder, in whole images."""
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
        """Figures of the classical fills, mean color and biharmonic, in the same holes."""
        if self.config.mask == "none":
            return {}
        every = list(batches)
        return {name: self._figures(every, fill) for name, fill in CLASSICAL.items()}

    def centered(self, batch: Batch) -> Tensor:
        """The largest central squares of held-out images, resized to (n,3,S,S), in [0,1]."""
        return cropping.center_crops(batch, self.config.size)


# --- using a trained network ----------------------------------------------------------------------------------


class Mender(nn.Module):
    """A trained generator that mends square images of side ``size``."""

    def __init__(self, net: ContextEncoder, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    @torch.no_grad()
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Mends without seams: (N,3,S,S) in [0,1] and holes (N,1,S,S) -> (N,3,S,S), unchanged outside the holes."""
        return seamless(self.net(image, mask), image, mask)

    @torch.no_grad()
    def plain(self, image: Tensor, mask: Tensor) -> Tensor:
        """Mends as in the paper: pastes the painting unchanged. Held-out figures during training measure this."""
        return mend(self.net(image, mask), image, mask)


def load_mender(path: Path, device: torch.device) -> Mender:
    """The averaged generator of a checkpoint (a file or a run's folder).

    Raises ValueError with one line if it is of another method, or of an autoencoder (--mask none).
    """
    content = checkpoint.read(path, Inpainting.name)[1]
    config = from_plain(InpaintingConfig, content["config"])
    if config.mask == "none":
        raise ValueError(f"{path} is an autoencoder (--mask none), which cannot mend: name one trained with holes")
    net = ContextEncoder(config.backbone, config.norm, config.size)
    net.load_state_dict(checkpoint.weights_of(content, "average.module"))
    return Mender(net, config.size).eval().to(device)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Inpainting, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
