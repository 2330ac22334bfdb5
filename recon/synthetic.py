"""Synthetic to real: learning to see from rendered rooms, without learning to see rendering (Ren and Lee 2018,
arXiv:1711.09082).

An encoder sees synthetic images and predicts their depth, surface normals and instance contours, all known exactly. It
also sees real photos, which have no labels. A discriminator predicts from patches of the encoder's features whether an
image is real, and the encoder learns to make its features of synthetic images look real. Settings are those of the
paper and of the authors' released code.

Deviations, each with its reason:
- The discriminator sees the transferred feature maps, those after the ReLU, not before it. With a ResNet it sees the
  two coarsest maps, concatenated: the same as the heads.
- The heads take those maps directly and predict at half of the side. The paper's wide dilated layers fc6 and fc7 are
  left out: they are not transferred and would take most of the time.
- Real and synthetic images pass through the encoder in one batch: separate batch statistics would hide how they differ.
- The discriminator has group norm and 30 times the learning rate, and the adversarial loss has 4 times the weight:
  with batch norm it hardly learns to tell the domains apart within minutes. ``paper`` keeps the authors' settings.
- Besides the paper's training in turns (``--adversary alternate``) there is Ganin's gradient reversal (``reversal``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kintsugi.augment.domain_crops import center_domain_crops, first_center_crops, one_channel, random_domain_crops
from kintsugi.data import labeled
from kintsugi.data.labeled import Labels
from kintsugi.data.side_by_side import Domains, open_real, sample_photos
from kintsugi.losses.depth import contour_loss, depth_loss, normal_loss
from kintsugi.metrics.domain_gap import DomainGap
from kintsugi.metrics.surface_errors import SurfaceErrors
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.surface_net import PatchDiscriminator, SurfaceNet, SurfacePrediction, depth_picture, mean_surfaces
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import checkpoint
from kintsugi.train.command import run_method
from kintsugi.train.config import from_plain, within
from kintsugi.train.dist import World
from kintsugi.train.domain_adversary import FeaturePool, alternate_loss, reversal_loss
from kintsugi.train.encoder_options import EncoderConfig, start_encoder
from kintsugi.train.gan import collapse_warning, update_discriminator
from kintsugi.train.method import Batch, Method
from kintsugi.train.opening import store_of

_CROPS, _POOLS = 1, 2  # last number of a random generator's key: what it draws


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(EncoderConfig):
    data: str = "scenes"
    """The synthetic images: scenes, or a folder with rgb/, depth/, normal/ and instance/."""
    real: str = ""
    """The real images: a folder of photos, or a data set as for --data of other methods; the demo has sample photos."""

    encoder: str = "alexnet"
    """As of other methods, with maps of stride 16; alexnet is the paper's."""
    channels: Literal["one", "all"] = "one"
    """one: the encoder sees one color channel of each image, repeated three times: a random one in training, otherwise
    green; so did the authors, because colors are the least realistic part of synthetic images. all: all channels."""

    adversary: Literal["alternate", "reversal"] = "alternate"
    """alternate: discriminator and encoder are updated in turns; reversal: together (gradient reversal, Ganin 2015)."""
    adversarial: float = 0.2
    """Weight of the adversarial loss; with 0 the discriminator is trained but has no effect on the encoder."""
    discriminator_norm: Literal["batch", "group"] = "group"
    """The discriminator's normalization; batch, the paper's, removes what the images of a domain have in common."""
    pool: int = 128
    """Earlier images per domain whose features are half of the discriminator's batch (Shrivastava 2017); 0 = none."""

    depth_weight: float = 5.0
    """Weight of the depth loss."""
    normal_weight: float = 10.0
    """Weight of the loss of surface normals."""
    contour_weight: float = 1.0
    """Weight of the contour loss."""

    lr: float = 1e-3
    """Adam's learning rate for encoder and heads."""
    lr_discriminator: float = 3e-2
    """The discriminator's learning rate: SGD with momentum .9."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 32 or self.size < 64:
            raise ValueError(f"--size {self.size}: use a multiple of 32, at least 64")
        within(self, adversarial=0, pool=0)

    def fits(self, encoder: Encoder) -> None:
        if 16 not in encoder.channels:
            raise ValueError(f"--encoder {self.encoder} has no map of stride 16: choose another")


def demo() -> SyntheticConfig:
    """Minutes on two CPU cores: built-in scenes, and without --real scikit-image's few sample photos."""
    return SyntheticConfig(
        preset="demo", short_side=80, scenes=2048, steps=800, batch=32, show_every=100, eval_every=200, save_every=200
    )


def small() -> SyntheticConfig:
    """One GPU, tens of minutes; needs --real."""
    return SyntheticConfig(
        preset="small",
        size=128,
        short_side=160,
        scenes=30_000,
        steps=20_000,
        batch=64,
        cache_gb=16,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
    )


def paper() -> SyntheticConfig:
    """The paper's crops, batch and length (30 epochs of a million images); needs --real, in the paper Places365."""
    return SyntheticConfig(
        preset="paper",
        size=224,
        short_side=256,
        scenes=200_000,
        steps=130_000,
        batch=224,
        cache_gb=400,
        adversarial=0.05,
        discriminator_norm="batch",
        lr_discriminator=1e-3,
        show_every=2_000,
        eval_every=5_000,
        save_every=5_000,
    )


# --- the method -----------------------------------------------------------------------------------------------


class Synthetic(Method[SyntheticConfig]):
    """Learns depth, normals and contours from synthetic images, with features that look real to a discriminator."""

    name = "synthetic"
    score = "normal_within_30"
    next_program = "surfaces"

    def __init__(self, config: SyntheticConfig, world: World) -> None:
        super().__init__(config, world)
        self.net = SurfaceNet(config.backbone, config.norm)
        start_encoder(config, self.net.encoder, world)
        self.discriminator = PatchDiscriminator(self.net.channels, config.discriminator_norm)
        self.optimizers = {
            "net": torch.optim.Adam(self.net.parameters(), config.lr, betas=(0.5, 0.999), fused=True),
            "discriminator": torch.optim.SGD(
                self.discriminator.parameters(), config.lr_discriminator, momentum=0.9, weight_decay=5e-4, fused=True
            ),
        }
        self.pools = {"synthetic": FeaturePool(config.pool), "real": FeaturePool(config.pool)}

    @classmethod
    def check(cls, config: SyntheticConfig) -> None:
        if not config.real and config.preset != "demo":
            raise ValueError("--real is missing: name a folder of photos, voc2012, stl10 or imagenet:PATH")
        super().check(config)

    @classmethod
    def open_data(cls, config: SyntheticConfig, quiet: bool = False) -> Domains:
        """The synthetic and the real images, both split into training and held-out images."""
        store = store_of(config, quiet)
        rendered = labeled.open_synthetic(config.data, config.size, store, scenes=config.scenes)
        if config.real:
            real = open_real(config.real, config.size, store)
        else:
            real = sample_photos(config.size)
            if not quiet:
                print("no --real given: the demo uses scikit-image's few sample photos; name a folder of photos")
        return Domains.of(rendered, real)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        random = generator(config.seed, step, _CROPS)
        image, labels = self._labeled(batch, random)
        photo = self._photos(batch, random)
        self.net.train()
        self.discriminator.train()
        with self.world.autocast():
            features, predicted = self.net(torch.cat([image, photo]), labeled=len(image))
        fake, real = features.split(len(image))

        # The authors' code takes the logarithm of missing depth too, and adds the square of the mean difference.
        depth = depth_loss(predicted.log_depth, labels.depth, torch.square, self.world.weighted_mean)
        normal = normal_loss(predicted.normal, labels.normal, self.world.weighted_mean)
        contour = contour_loss(predicted.contour, labeled.contours(labels.instance))
        task = config.depth_weight * depth + config.normal_weight * normal + config.contour_weight * contour
        scalars = {"loss/depth": depth, "loss/normal": normal, "loss/contour": contour, "loss/task": task}
        adversary = self._alternate if config.adversary == "alternate" else self._reverse
        loss, more = adversary(fake, real, step)
        trained = ["net"] if config.adversary == "alternate" else ["net", "discriminator"]
        self.world.backward(task + loss, *(self.optimizers[name] for name in trained))
        for name in trained:
            more |= self.take_step(name, step)
        return scalars | more

    def _alternate(self, fake: Tensor, real: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Updates the discriminator on batches mixed with the pools; returns the encoder's loss, 0-d, and scalars."""
        random = generator(self.config.seed, step, _POOLS)
        pooled = {
            name: self.world.slice(self.pools[name].exchange(self.world.gather(mine.detach()), random))
            for name, mine in (("synthetic", fake), ("real", real))
        }
        scalars = update_discriminator(self, self.discriminator, pooled["real"], pooled["synthetic"], step)
        loss, more = alternate_loss(self.discriminator, fake, real, self.world, self.config.adversarial)
        return loss, scalars | more

    def _reverse(self, fake: Tensor, real: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss for gradient reversal, whose weight rises from 0 in training (Ganin 2015, eq. 14); and scalars."""
        ramp = 2 / (1 + math.exp(-10 * step / self.config.steps)) - 1
        return reversal_loss(self.discriminator, fake, real, self.world, ramp * self.config.adversarial)

    # --- inputs -----------------------------------------------------------------------------------------------

    def _labeled(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Labels]:
        """This rank's random crops of synthetic images, (n,3,S,S) in [0,1], and their labels."""
        planes, flip, channel = self._crops(batch, "synthetic", random)
        image, labels = labeled.unpack(planes)
        return self._seen(image, channel), labeled.mirrored(labels, flip)

    def _photos(self, batch: Batch, random: torch.Generator) -> Tensor:
        """This rank's random crops of real images, (n,3,S,S) in [0,1]."""
        planes, _, channel = self._crops(batch, "real", random)
        return self._seen(planes.float() / 255, channel)

    def _crops(self, batch: Batch, domain: str, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's random crops of a domain: planes uint8 (n,C,S,S), flip bool (n,), color channel (n,)."""
        mine = self.world.part(self.config.batch)
        return random_domain_crops(batch, domain, self.config.size, self.config.batch, mine, random)

    def _seen(self, image: Tensor, channel: Tensor) -> Tensor:
        """Images (n,3,S,S) as the encoder sees them: one ``channel`` (n,) of each, or unchanged."""
        return image if self.config.channels == "all" else one_channel(image, channel)

    @torch.no_grad()
    def predict(self, image: Tensor) -> tuple[Tensor, SurfacePrediction]:
        """Features and predictions for held-out images (n,3,S,S) in [0,1]; with ``channels`` one, from green alone."""
        green = torch.ones(len(image), dtype=torch.long)
        with self.world.autocast():
            return self.net.eval()(self._seen(image, green))

    # --- state ------------------------------------------------------------------------------------------------

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        return collapse_warning(scalars, "a lower --lr-discriminator") if self.config.adversarial else []

    def encoders(self) -> dict[str, Encoder]:
        return {"generator": self.net.encoder}

    def get_extra_state(self) -> dict[str, Tensor]:
        """The pools of earlier features."""
        return {name: pool.kept for name, pool in self.pools.items() if pool.kept is not None}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        for name, kept in state.items():
            self.pools[name].kept = kept.to(self.world.device)

    # --- pictures and figures ---------------------------------------------------------------------------------

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Predictions for synthetic images next to the truth, and predictions for real images."""
        image, labels = labeled.unpack(center_domain_crops(batch, "synthetic", self.config.size))
        photo = center_domain_crops(batch, "real", self.config.size).float() / 255
        predicted, on_photo = self.predict(image)[1], self.predict(photo)[1]
        columns = [
            image,
            depth_picture(predicted.log_depth),
            depth_picture(labels.depth.clamp(min=1e-3).log()),
            predicted.normal / 2 + 0.5,
            labels.normal / 2 + 0.5,
            predicted.contour.sigmoid().expand_as(image),
            labeled.contours(labels.instance).expand_as(image),
        ]
        return {
            "synthetic: image | depth, truth | normals, truth | contours, truth": sheet(columns),
            "real: image | depth | normals | contours": sheet([photo, *on_photo.pictures()]),
        }

    def rgb_images(self, batch: Batch) -> Batch:  # the real ones, each once
        return {name: batch[f"real/{name}"][batch["real/first"]] for name in ("image", "extent")}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """``SurfaceErrors`` of held-out synthetic images, and the ``DomainGap`` between synthetic and real images."""
        errors, gap = SurfaceErrors(), DomainGap()
        self.discriminator.eval()
        for batch in batches:
            for domain in ("synthetic", "real"):
                planes = first_center_crops(batch, domain, self.config.size)
                if not len(planes):
                    continue
                image = planes[:, :3].float() / 255
                features, predicted = self.predict(image)
                with torch.no_grad(), self.world.autocast():
                    gap.add(domain, features, self.discriminator(features).float())
                if domain == "synthetic":
                    add_errors(errors, predicted, labeled.unpack(planes)[1])
        return errors.means() | gap.means()

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of predicting, at each pixel, the mean label of the held-out images: an average room."""
        labels = [labeled.unpack(first_center_crops(batch, "synthetic", self.config.size))[1] for batch in batches]
        contour = torch.cat([labeled.contours(x.instance) for x in labels])
        mean = mean_surfaces(torch.cat([x.depth for x in labels]), torch.cat([x.normal for x in labels]), contour)
        errors = SurfaceErrors()
        for x in labels:
            add_errors(errors, mean.expand(len(x.depth)), x)
        return {"the scenes' mean": errors.means()}


def add_errors(errors: SurfaceErrors, predicted: SurfacePrediction, labels: Labels) -> None:
    """Adds the errors of predictions for images with these labels."""
    errors.add_depth(predicted.log_depth, labels.depth)
    errors.add_normals(predicted.normal, labels.normal)
    errors.add_contours(predicted.contour, labeled.contours(labels.instance))


# --- using a trained network ----------------------------------------------------------------------------------


def load_net(path: Path, device: torch.device) -> tuple[SurfaceNet, SyntheticConfig]:
    """Network and config of a checkpoint (a file or a run's folder). Raises ValueError if it is of another method."""
    content = checkpoint.read(path, Synthetic.name)[1]
    config = from_plain(SyntheticConfig, content["config"])
    net = SurfaceNet(config.backbone, config.norm)
    net.load_state_dict(checkpoint.weights_of(content, "net"))
    return net.eval().to(device), config


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Synthetic, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
