"""Synthetic to real: learning to see from rendered rooms, without learning to see rendering (Ren and Lee 2018,
arXiv:1711.09082).

An encoder sees synthetic images and says their depth, their surface normals and the contours of their instances, all
known exactly. It also sees real photos, of which nothing is known but that they are real: a discriminator judges, from
the encoder's features at each place, whether an image is real, and the encoder learns to make its features of synthetic
images look real. Settings are those of the paper and of the authors' released code.

Deviations, each for a reason:
- The discriminator sees the maps that the encoder offers to other tasks, so after the ReLU, not before it; of a ResNet
  the two coarsest, joined, so that nothing the heads see is hidden from it.
- The heads read those maps and speak at half of the size; the paper's fc6 and fc7 between them, wide dilated
  convolutions, are not moved to other tasks and would take most of the time.
- Real and synthetic images pass the encoder in one batch: batch norm by domains would hide what differs.
- The discriminator's norm is over groups of channels, its rate 30 times higher and its weight 4 times (``paper`` keeps
  the authors'): with batch norm and in minutes it hardly learns to tell the domains apart.
- Of the two orders of learning, the paper's (``--adversary alternate``) is the default; ``reversal`` is Ganin's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, normalize

from kintsugi.augment import cropping
from kintsugi.data import labeled
from kintsugi.data.labeled import Domains, Labels
from kintsugi.losses import adversarial
from kintsugi.losses.depth import depth_loss, normal_loss
from kintsugi.metrics.domain_gap import frechet_distance, probe_accuracy
from kintsugi.metrics.surface_errors import SurfaceErrors
from kintsugi.nets.backbones import Backbone, Encoder
from kintsugi.nets.layers import Norm, normalization
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import checkpoint, optim
from kintsugi.train.command import run_method
from kintsugi.train.config import TrainConfig, from_plain, within
from kintsugi.train.dist import World
from kintsugi.train.gan import collapse_warning, update_discriminator
from kintsugi.train.method import Batch, Method
from kintsugi.train.opening import storage

_CROPS, _POOLS = 1, 2  # what random numbers are for, the last part of their key
JUDGED = {"alexnet": (16,), "resnet18": (16, 32), "resnet50": (16, 32)}  # strides; alexnet's 16 is conv5, the paper's
NEAR, FAR = 1.0, 8.0  # meters, white and black in the pictures of depth


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(TrainConfig):
    data: str = "scenes"
    """The synthetic side: scenes, or a folder with rgb/, depth/, normal/ and instance/."""
    real: str = ""
    """The real side: a folder of photos, or a set as --data of the other methods. The demo does with a few samples."""

    encoder: Literal["alexnet", "resnet18", "resnet50"] = "alexnet"
    """alexnet is the paper's."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization; group does not depend on the batch, nor on how it is split over ranks."""
    channels: Literal["one", "all"] = "one"
    """one: in training each image is seen as a random one of its color channels, three times, as in the authors' code;
    colors are what synthetic images most easily get wrong."""

    adversary: Literal["alternate", "reversal"] = "alternate"
    """alternate: discriminator and encoder learn in turns; reversal: at once, the gradient changing its sign between
    them (Ganin 2015)."""
    adversarial: float = 0.2
    """Weight of the adversarial loss; at 0 the encoder does not hear the discriminator, which still learns to judge."""
    discriminator_norm: Literal["batch", "group"] = "group"
    """batch, the paper's, hides from it in what the images of a domain are alike; group lets it see that."""
    pool: int = 128
    """Features of so many earlier images are kept of each domain; half of each batch that the discriminator learns from
    is taken from them (Shrivastava 2017). 0 = none."""

    depth_weight: float = 5.0
    normal_weight: float = 10.0
    contour_weight: float = 1.0

    lr: float = 1e-3
    """Adam's rate for encoder and heads."""
    lr_discriminator: float = 3e-2
    """SGD's rate for the discriminator, momentum .9."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 32 or self.size < 64:
            raise ValueError(f"--size {self.size}: use a multiple of 32 from 64 on")
        within(self, adversarial=0, pool=0)


def demo() -> SyntheticConfig:
    """Minutes on two CPU cores: built-in scenes, and scikit-image's few photos where no others are named."""
    return SyntheticConfig(
        preset="demo",
        size=64,
        short_side=80,
        scenes=2048,
        steps=800,
        batch=32,
        show_every=100,
        eval_every=200,
        save_every=200,
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
    """The paper's crop, batch and length (30 epochs of a million); needs --real, in the paper Places365."""
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


# --- networks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guess:
    """What the heads say: log_depth (n,1,S,S), of meters; normal (n,3,S,S) unit; contour (n,1,S,S) logits."""

    log_depth: Tensor
    normal: Tensor
    contour: Tensor


class Net(nn.Module):
    """Encoder and heads."""

    def __init__(self, config: SyntheticConfig) -> None:
        super().__init__()
        self.encoder = Backbone(name=config.encoder, norm=config.norm).build()
        self.judged = JUDGED[config.encoder]
        self.channels = sum(self.encoder.channels[stride] for stride in self.judged)
        self.depth, self.normal, self.contour = (_head(self.channels, n, config.norm) for n in (1, 3, 1))

    def forward(self, image: Tensor, labeled: int | None = None) -> tuple[Tensor, Guess]:
        """RGB (N,3,S,S) in [0,1] -> features (N,C,S/16,S/16), and a guess for the first ``labeled`` images."""
        maps = self.encoder(image)
        finest = maps[self.judged[0]]
        features = torch.cat(
            [finest] + [interpolate(maps[s], finest.shape[-2:], mode="nearest") for s in self.judged[1:]], 1
        )
        x = features[:labeled]
        guess = Guess(self.depth(x).float(), normalize(self.normal(x).float(), dim=1), self.contour(x).float())
        return features.float(), guess


def _head(channels: int, out: int, norm: Norm) -> nn.Sequential:
    """Up-convolutions to half of the size, then bilinear: (N,C,s,s) -> (N,out,16s,16s)."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise((channels, 64, 64, 32)):
        layers += [
            nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False),
            normalization(norm, narrow),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(32, out, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"))


class PatchDiscriminator(nn.Module):
    """Features (N,C,s,s) -> a logit for each patch (N,1,s/2,s/2), above 0 = real: 6x6 or so at the paper's size."""

    def __init__(self, channels: int, norm: Norm, width: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            normalization(norm, width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width, 1, bias=False),
            normalization(norm, width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """x itself, whose gradient is -``weight`` times what comes back (Ganin 2015, arXiv:1409.7495, eq. 6)."""
    return _Reversal.apply(x, weight)


class Pool:
    """Features of earlier images, so that a discriminator does not forget how they looked (Shrivastava 2017,
    arXiv:1612.07828, section 2.3). It begins with copies of the first batch. The same on every rank."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: Tensor | None = None  # (size,C,s,s)

    def exchange(self, features: Tensor, random: torch.Generator) -> Tensor:
        """A batch (N,C,s,s) in which half of the images have changed places with kept ones."""
        if self.size == 0:
            return features
        if self.kept is None:
            self.kept = features[torch.arange(self.size) % len(features)].clone()
        count = min(len(features) // 2, self.size)
        out = torch.randperm(len(features), generator=random)[:count].to(features.device)
        into = torch.randperm(self.size, generator=random)[:count].to(features.device)
        mixed = features.clone()
        mixed[out] = self.kept[into]
        self.kept[into] = features[out]
        return mixed


# --- losses ---------------------------------------------------------------------------------------------------


def contour_loss(logits: Tensor, contour: Tensor) -> Tensor:
    """Cross-entropy of contours (n,1,S,S), 1 = contour, each image weighted by its other pixels for each of these.

    As in the authors' code; few contours then count as much as many. The weight is at most S.
    """
    pixels, count = contour[0].numel(), contour.sum((1, 2, 3), keepdim=True)
    weight = (pixels - count) / count.clamp(min=contour.shape[-1])
    return binary_cross_entropy_with_logits(logits, contour, weight=weight.expand_as(contour))


# --- the method -----------------------------------------------------------------------------------------------


class Synthetic(Method[SyntheticConfig]):
    name = "synthetic"
    score = "normal_within_30"
    next_step = "what it sees in a photo: make surfaces IN= OUT= CKPT={folder}"

    def __init__(self, config: SyntheticConfig, world: World) -> None:
        super().__init__(config, world)
        self.net = Net(config)
        self.discriminator = PatchDiscriminator(self.net.channels, config.discriminator_norm)
        self.optimizers = {
            "net": torch.optim.Adam(self.net.parameters(), config.lr, betas=(0.5, 0.999), fused=True),
            "discriminator": torch.optim.SGD(
                self.discriminator.parameters(), config.lr_discriminator, momentum=0.9, weight_decay=5e-4, fused=True
            ),
        }
        self.pools = {"synthetic": Pool(config.pool), "real": Pool(config.pool)}

    @classmethod
    def check(cls, config: SyntheticConfig) -> None:
        if not config.real and config.preset != "demo":
            raise ValueError(
                "--real is missing: name a folder of photos (say, --real ~/Pictures), voc2012, stl10 or imagenet:PATH"
            )

    @classmethod
    def open_data(cls, config: SyntheticConfig, quiet: bool = False) -> Domains:
        """The synthetic and the real side, each split into training and held-out images."""
        stored = storage(config, quiet)
        rendered = labeled.open_synthetic(config.data, config.size, **stored)
        if config.real:
            real = labeled.open_real(config.real, config.size, **stored)
        else:
            real = labeled.sample_photos(config.size)
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
            features, guess = self.net(torch.cat([image, photo]), labeled=len(image))
        fake, real = features.split(len(image))

        # The authors' code takes the logarithm of missing depth too, and adds the square of the mean difference.
        depth = depth_loss(guess.log_depth, labels.depth, torch.square, self.world.weighted_mean)
        normal = normal_loss(guess.normal, labels.normal, self.world.weighted_mean)
        contour = contour_loss(guess.contour, labeled.contours(labels.instance))
        task = config.depth_weight * depth + config.normal_weight * normal + config.contour_weight * contour
        scalars = {"loss/depth": depth, "loss/normal": normal, "loss/contour": contour, "loss/task": task}
        learn = self._alternate if config.adversary == "alternate" else self._reverse
        scalars |= learn(task, fake, real, step)
        scalars["grad_norm/net"] = optim.take_step(self.optimizers["net"], self.world)
        return scalars

    def _alternate(self, task: Tensor, fake: Tensor, real: Tensor, step: int) -> dict[str, Tensor]:
        """The discriminator's step, on pools; then the gradients of the encoder, which it judges anew."""
        random = generator(self.config.seed, step, _POOLS)
        pooled = {
            name: self.world.slice(self.pools[name].exchange(self.world.gather(mine.detach()), random))
            for name, mine in (("synthetic", fake), ("real", real))
        }
        scalars = update_discriminator(
            self.discriminator, self.optimizers["discriminator"], pooled["real"], pooled["synthetic"], self.world
        )
        with adversarial.frozen(self.discriminator), self.world.autocast():
            verdict, on_real = self.discriminator(fake).float(), self.discriminator(real.detach()).float()
        fooling = adversarial.generator_loss(verdict)
        (task + self.config.adversarial * fooling).backward()
        return scalars | {
            "loss/adversarial": fooling,
            "loss/adversarial_weighted": self.config.adversarial * fooling,
            "domain/accuracy": accuracy(on_real, verdict),
        }

    def _reverse(self, task: Tensor, fake: Tensor, real: Tensor, step: int) -> dict[str, Tensor]:
        """One backward for all: the discriminator's gradients, and reversed those of the encoder, on both domains.

        The reversed gradients grow from 0 to full weight as training goes on (Ganin 2015, eq. 14).
        """
        ramp = 2 / (1 + math.exp(-10 * step / self.config.steps)) - 1
        weight = ramp * self.config.adversarial
        with self.world.autocast():
            on_real = self.discriminator(reverse_gradient(real, weight)).float()
        with adversarial.untracked(self.discriminator), self.world.autocast():
            on_fake = self.discriminator(reverse_gradient(fake, weight)).float()
        judging = adversarial.real_loss(on_real) + adversarial.fake_loss(on_fake)
        (task + judging).backward()
        return {
            "discriminator/real": on_real.sigmoid().mean(),
            "discriminator/fake": on_fake.sigmoid().mean(),
            "loss/discriminator": judging,
            "domain/accuracy": accuracy(on_real, on_fake),
            "grad_norm/discriminator": optim.take_step(self.optimizers["discriminator"], self.world),
        }

    # --- what it sees -----------------------------------------------------------------------------------------

    def _labeled(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Labels]:
        """This rank's random crops of synthetic images, (n,3,S,S) in [0,1] and their labels."""
        planes, flip, channel = self._crops(batch, "synthetic", random)
        image, labels = labeled.unpack(planes)
        return self._seen(image, channel), labeled.mirrored(labels, flip)

    def _photos(self, batch: Batch, random: torch.Generator) -> Tensor:
        planes, _, channel = self._crops(batch, "real", random)
        return self._seen(planes.float() / 255, channel)

    def _crops(self, batch: Batch, domain: str, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's crops of a domain, uint8 (n,C,S,S), whether each is mirrored, and a color channel for each."""
        count = self.config.batch
        place, flip = torch.rand(count, 2, generator=random), torch.rand(count, generator=random) < 0.5
        channel = torch.randint(3, (count,), generator=random)
        mine = self.world.part(count)
        image, extent = batch[f"{domain}/image"], batch[f"{domain}/extent"]
        return cropping.cut(image, extent, self.config.size, place[mine], flip[mine]), flip[mine], channel[mine]

    def _seen(self, image: Tensor, channel: Tensor) -> Tensor:
        """Images (n,3,S,S) as one ``channel`` (n,) of each three times, or unchanged."""
        if self.config.channels == "all":
            return image
        one = image[torch.arange(len(image), device=image.device), channel.to(image.device)]
        return one[:, None].expand(-1, 3, -1, -1)

    def centered(self, batch: Batch, domain: str) -> Tensor:
        """The central squares of held-out images of a domain, uint8 (n,C,S,S), at the scale of the training crops."""
        return cropping.cut(batch[f"{domain}/image"], batch[f"{domain}/extent"], self.config.size)

    @torch.no_grad()
    def look(self, image: Tensor) -> tuple[Tensor, Guess]:
        """Features and guesses for held-out images (n,3,S,S), seen by their green channel."""
        green = torch.ones(len(image), dtype=torch.long)
        with self.world.autocast():
            return self.net.eval()(self._seen(image, green))

    # --- state ------------------------------------------------------------------------------------------------

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        if self.config.adversarial == 0:
            return []
        return collapse_warning(scalars, "a lower --lr-discriminator")

    def encoders(self) -> dict[str, Encoder]:
        return {"generator": self.net.encoder}

    def get_extra_state(self) -> dict[str, Tensor]:
        """The pools of earlier features."""
        return {name: pool.kept for name, pool in self.pools.items() if pool.kept is not None}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        for name, kept in state.items():
            self.pools[name].kept = kept.to(self.world.device)

    # --- looking and measuring --------------------------------------------------------------------------------

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """What is guessed of synthetic images beside the truth, and of real ones."""
        image, labels = labeled.unpack(self.centered(batch, "synthetic"))
        photo = self.centered(batch, "real").float() / 255
        guess, real = self.look(image)[1], self.look(photo)[1]
        columns = [
            image,
            depth_picture(guess.log_depth),
            depth_picture(labels.depth.clamp(min=1e-3).log()),
            guess.normal / 2 + 0.5,
            labels.normal / 2 + 0.5,
            guess.contour.sigmoid().expand_as(image),
            labeled.contours(labels.instance).expand_as(image),
        ]
        on_real = [photo, *pictures(real)]
        return {
            "synthetic: image | depth, truth | normals, truth | contours, truth": sheet(columns),
            "real: image | depth | normals | contours": sheet(on_real),
        }

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Errors of the tasks on held-out synthetic images, and how far apart the domains' features are.

        domain_accuracy is the discriminator's, of .5 where it cannot tell; domain_probe that of a linear classifier
        fitted to the features afterwards, domain_frechet their distance (``kintsugi.metrics.domain_gap``): these two do
        not depend on how well the discriminator has learned. They need two held-out images of each domain.
        """
        errors = SurfaceErrors()
        places: dict[str, list[Tensor]] = {"synthetic": [], "real": []}
        verdicts: dict[str, list[Tensor]] = {"synthetic": [], "real": []}
        self.discriminator.eval()
        for batch in batches:
            for domain in places:
                planes = self.centered(batch, domain)[batch[f"{domain}/first"]]
                if not len(planes):
                    continue
                image = planes[:, :3].float() / 255
                features, guess = self.look(image)
                with torch.no_grad(), self.world.autocast():
                    verdicts[domain].append(self.discriminator(features).float().flatten(1))
                places[domain] += features.flatten(2).mT.cpu().unbind()  # (P,C) of each image
                if domain == "synthetic":
                    add_errors(errors, guess, labeled.unpack(planes)[1])
        found = errors.means()
        found["domain_accuracy"] = accuracy(torch.cat(verdicts["real"]), torch.cat(verdicts["synthetic"])).item()
        if min(map(len, places.values())) > 1:
            found["domain_probe"] = probe_accuracy(places["real"], places["synthetic"])
            found["domain_frechet"] = frechet_distance(torch.cat(places["real"]), torch.cat(places["synthetic"]))
        return found

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """The mean of the truth at each pixel over the measured images: what a room looks like on the whole."""
        labels = [labeled.unpack(self.centered(batch, "synthetic")[batch["synthetic/first"]])[1] for batch in batches]
        depth, normal = torch.cat([x.depth for x in labels]), torch.cat([x.normal for x in labels])
        contour = torch.cat([labeled.contours(x.instance) for x in labels])
        known = depth > 0
        log_depth = torch.where(known, depth.clamp(min=1e-3).log(), 0).sum(0) / known.sum(0).clamp(min=1)
        mean = Guess(
            log_depth[None],
            normalize(normal.mean(0, keepdim=True), dim=1),
            contour.mean(0, keepdim=True).clamp(1e-4, 1 - 1e-4).logit(),
        )
        errors = SurfaceErrors()
        for x in labels:
            n = len(x.depth)
            same = Guess(*(value.expand(n, -1, -1, -1) for value in (mean.log_depth, mean.normal, mean.contour)))
            add_errors(errors, same, x)
        return {"the scenes' mean": errors.means()}


def add_errors(errors: SurfaceErrors, guess: Guess, labels: Labels) -> None:
    """Adds the errors of a guess for images with these labels."""
    errors.add_depth(guess.log_depth, labels.depth)
    errors.add_normals(guess.normal, labels.normal)
    errors.add_contours(guess.contour, labeled.contours(labels.instance))


def accuracy(on_real: Tensor, on_fake: Tensor) -> Tensor:
    """How often a discriminator's logits are on the right side of 0, both kinds counting alike; 0-d."""
    return ((on_real > 0).float().mean() + (on_fake <= 0).float().mean()) / 2


def depth_picture(log_depth: Tensor) -> Tensor:
    """Log depth (n,1,S,S) as gray (n,3,S,S): white at ``NEAR`` meters, black at ``FAR`` and where it is missing."""
    near, far = math.log(NEAR), math.log(FAR)
    gray = ((far - log_depth) / (far - near)).clamp(0, 1)
    missing = log_depth < math.log(2e-3)
    return torch.where(missing, 0, gray).expand(-1, 3, -1, -1)


def pictures(guess: Guess) -> list[Tensor]:
    """Depth, normals (x, y, z as red, green, blue) and contours, each (n,3,S,S) in [0,1]."""
    return [depth_picture(guess.log_depth), guess.normal / 2 + 0.5, guess.contour.sigmoid().expand(-1, 3, -1, -1)]


# --- using it -------------------------------------------------------------------------------------------------


def load_net(path: Path, device: torch.device) -> tuple[Net, SyntheticConfig]:
    """Encoder and heads of a checkpoint (a file or a run's folder). ValueError of one line if it is none."""
    content = checkpoint.read(path, Synthetic.name)[1]
    config = from_plain(SyntheticConfig, content["config"])
    net = Net(config)
    net.load_state_dict(checkpoint.weights_of(content, "net"))
    return net.eval().to(device), config


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Synthetic, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
