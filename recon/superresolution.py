"""Super-resolution: learning to see by giving small images their detail back (SRGAN, Ledig 2017, arXiv:1609.04802).

Phase 1 trains SRResNet on the pixels' squared error (eq. 1, 4). Phase 2, from ``--adversarial-start`` on or from
another run's weights (``--init``), trains it as SRGAN: content loss on VGG19's features (eq. 5) plus 1e-3 of a
discriminator's verdict (eq. 3, 6). The small images are bicubic, as MATLAB makes them, four times smaller.

Deviations, each for a reason:
- The net adds to the bicubic enlargement (``kintsugi.nets.srresnet``).
- The generator's weights are averaged over steps (EMA .999); the average is what is shown, measured and moved.
- The content loss is relative to the features' mean square, so that it does not depend on the scale of the weights.
- In phase 1 the learning rate falls along a cosine: short trainings profit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss
from torch.optim.swa_utils import AveragedModel

from kintsugi.augment import cropping
from kintsugi.augment.bicubic import enlarge, shrink
from kintsugi.losses import adversarial
from kintsugi.losses.perceptual import ContentLayer, open_content
from kintsugi.metrics.reconstruction import luma_figures
from kintsugi.nets.discriminators import SRGANDiscriminatorSpec
from kintsugi.nets.srresnet import SCALE, SRResNet, SRResNetSpec
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import checkpoint, optim
from kintsugi.train.command import run_method
from kintsugi.train.config import from_plain, within
from kintsugi.train.dist import World
from kintsugi.train.ema import warmed_average
from kintsugi.train.gan import Gan, GanConfig, collapse_warning, update_discriminator
from kintsugi.train.method import Batch

# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(GanConfig):
    blocks: int = 16
    """Residual blocks of the generator."""
    width: int = 64
    """Its channels."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization; group does not depend on how the batch is split over ranks."""

    adversarial_start: int = 0
    """Steps of phase 1, on pixels alone; kept as before-adversary.pt. As many as --steps: no phase 2."""
    adversarial: float = 1e-3
    """Weight of the adversarial loss in phase 2."""
    gan: Literal["bce", "hinge"] = "bce"
    """Adversarial loss."""
    init: str = ""
    """Begin with the generator of this run or checkpoint of super-resolution, instead of with fresh weights."""
    content_layer: ContentLayer = "relu5_4"
    """VGG19's layer for the content loss: relu2_2 and relu5_4 are the paper's."""
    content_weights: str = "auto"
    """VGG19: auto (where it is at hand), download, off, or a FILE of torchvision's weights. Without: MSE on pixels."""
    content_scale: float = 0.5
    """On VGG's squared distance, which is relative to the maps' mean square. At .1 it has the size of the pixels' MSE,
    but the adversary then spoils what it gains."""

    lr: float = 1e-4
    """Adam's rate in phase 1, at its beginning."""
    lr_adversarial: float = 1e-4
    """Adam's rate in phase 2, of both networks; a tenth of it in its second half."""
    ema: float = 0.999
    """Decay of the generator's running average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 16:
            raise ValueError(f"--size {self.size}: use a multiple of 16")
        if not 0 <= self.adversarial_start <= self.steps:
            raise ValueError(f"--adversarial-start {self.adversarial_start} must be from 0 to --steps {self.steps}")
        within(self, blocks=1, width=1)

    @property
    def net(self) -> SRResNetSpec:
        return SRResNetSpec(self.blocks, self.width, self.norm)

    @property
    def has_adversary(self) -> bool:
        return self.adversarial_start < self.steps


def demo() -> SuperResolutionConfig:
    """Minutes on two CPU cores, built-in scenes: a smaller net, most of it phase 1."""
    return SuperResolutionConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=1000,
        adversarial_start=800,
        adversarial=2e-4,
        batch=16,
        blocks=6,
        width=32,
        lr=2e-3,
        show_every=100,
        eval_every=200,
        save_every=200,
    )


def small() -> SuperResolutionConfig:
    """One GPU, tens of minutes: the paper's net and crops."""
    return SuperResolutionConfig(
        preset="small",
        size=96,
        short_side=320,
        batch=16,
        steps=60_000,
        adversarial_start=40_000,
        lr=4e-4,
        scenes=20_000,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
    )


def paper() -> SuperResolutionConfig:
    """The paper's: a million steps on pixels, then 200k."""
    return SuperResolutionConfig(
        preset="paper",
        data="imagenet:imagenet",
        size=96,
        short_side=384,
        batch=16,
        steps=1_200_000,
        adversarial_start=1_000_000,
        content_weights="download",
        cache_gb=400,
        show_every=10_000,
        eval_every=20_000,
        save_every=20_000,
    )


# --- the method -----------------------------------------------------------------------------------------------


class SuperResolution(Gan[SuperResolutionConfig]):
    name = "superresolution"
    score = "psnr"
    next_step = "enlarge a photo: make upscale IN= OUT= CKPT={folder}"

    def __init__(self, config: SuperResolutionConfig, world: World) -> None:
        super().__init__(config, world)
        self.generator = config.net.build()
        if config.init and not config.resume:  # a resumed run has weights of its own
            self.generator.load_state_dict(_initial(Path(config.init), config.net))
        self.average = AveragedModel(self.generator, multi_avg_fn=warmed_average(config.ema), use_buffers=True)
        self.optimizers = {"generator": torch.optim.Adam(self.generator.parameters(), config.lr, fused=True)}
        # Functions, because VGG is not part of the method's weights.
        self.content_distance: Callable[[Tensor, Tensor], Tensor] | None = None
        if config.has_adversary:
            self.discriminator = SRGANDiscriminatorSpec(config.size, min(64, 2 * config.width), config.norm).build()
            self.optimizers["discriminator"] = torch.optim.Adam(
                self.discriminator.parameters(), config.lr_adversarial, fused=True
            )
            content, said = open_content(config.content_layer, config.content_weights)
            if content is not None:
                self.content_distance = content.to(world.device).distance
            if world.is_main:
                print(f"content loss on {'pixels: ' if content is None else ''}{said}")

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        large = self.crops(batch, step)  # (n,3,S,S)
        with self.world.autocast():
            painted = self.generator(shrink(large, SCALE).clamp(0, 1))
        pixels = mse_loss(painted, large)
        scalars = {"loss/pixels": pixels.detach()}
        second = step >= config.adversarial_start
        if second:
            loss, more = self._srgan_loss(painted, large, step, pixels)
            scalars |= more
        else:
            loss = pixels
        loss.backward()
        optim.set_lr(self.optimizers["generator"], self.rate(step))
        scalars["grad_norm/generator"] = optim.take_step(self.optimizers["generator"], self.world)
        self.average.update_parameters(self.generator)
        return scalars | {"loss/generator": loss.detach()}

    def _srgan_loss(
        self, painted: Tensor, large: Tensor, step: int, pixels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Content plus adversarial loss (eq. 3), after the discriminator's step."""
        config = self.config
        optim.set_lr(self.optimizers["discriminator"], self.rate(step))
        scalars = update_discriminator(
            self.discriminator, self.optimizers["discriminator"], large, painted.detach(), self.world, kind=config.gan
        )
        content = 4 * pixels  # MSE in [-1,1], the range of the paper's weights
        if self.content_distance is not None:
            with self.world.autocast():
                content = config.content_scale * self.content_distance(painted, large)
        # The generator is judged by the discriminator that has just learned.
        with adversarial.frozen(self.discriminator), self.world.autocast():
            verdict = self.discriminator(painted)
        fooling = adversarial.generator_loss(verdict.float(), config.gan)
        return content + config.adversarial * fooling, scalars | {
            "loss/content": content.detach(),
            "loss/adversarial": fooling.detach(),
            "loss/adversarial_weighted": config.adversarial * fooling.detach(),
        }

    def rate(self, step: int) -> float:
        config = self.config
        if step < config.adversarial_start:
            return config.lr * optim.warmup_cosine(step, config.adversarial_start, min(100, config.adversarial_start))
        late = step >= (config.adversarial_start + config.steps) // 2
        return config.lr_adversarial * (0.1 if late else 1)

    def crops(self, batch: Batch, step: int) -> Tensor:
        """This rank's random crops of a step, (n,3,S,S) in [0,1], at the images' own resolution."""
        config, random = self.config, generator(self.config.seed, step)
        place, flip = torch.rand(config.batch, 2, generator=random), cropping.random_flips(config.batch, random)
        mine = self.world.part(config.batch)
        return cropping.crop(batch["image"], batch["extent"], config.size, place[mine], flip[mine]) / 255

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        return collapse_warning(scalars, "a lower --lr-adversarial")

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """A run of phase 1 alone may go on with more ``--steps``, as phase 2: its discriminator is then a fresh one."""
        if self.config.has_adversary and "discriminator" not in state["optimizers"]:
            fresh = self.training_state()
            state = {part: {**fresh[part], **state[part]} for part in state}
        super().load_training_state(state)

    @classmethod
    def check(cls, config: SuperResolutionConfig) -> None:
        if config.init and not config.resume:
            _initial(Path(config.init), config.net)

    # --- looking and measuring --------------------------------------------------------------------------------

    @property
    def averaged(self) -> SRResNet:
        net = self.average.module
        assert isinstance(net, SRResNet)
        return net

    def centered(self, batch: Batch) -> Tensor:
        """Held-out images: the central square at their own resolution."""
        return cropping.crop(batch["image"], batch["extent"], self.config.size) / 255

    @torch.no_grad()
    def upscale(self, small: Tensor) -> Tensor:
        """(N,3,h,w) in [0,1] -> (N,3,4h,4w) in [0,1], by the averaged generator."""
        net = self.averaged.eval()
        with self.world.autocast():
            return net(small).clamp(0, 1)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: the small image, its pixels as squares | bicubic | super-resolved | truth."""
        truth = self.centered(batch)
        small = shrink(truth, SCALE).clamp(0, 1)
        columns = [
            interpolate(small, scale_factor=SCALE),
            enlarge(small, SCALE).clamp(0, 1),
            self.upscale(small),
            truth,
        ]
        return {"small | bicubic | super-resolved | truth": sheet(columns, zoom=2)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        return self._figures(batches, self.upscale)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        return {"bicubic": self._figures(batches, lambda small: enlarge(small, SCALE).clamp(0, 1))}

    def _figures(self, batches: Iterable[Batch], upscale: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """PSNR and SSIM of luma (``kintsugi.metrics.reconstruction.luma_figures``); small images are 8-bit, as in
        files."""
        found = []
        for batch in batches:
            truth = self.centered(batch)
            small = (255 * shrink(truth, SCALE).clamp(0, 1)).round() / 255
            found.append(torch.stack(list(luma_figures(upscale(small), truth).values())))  # (2,n)
        psnr, ssim = torch.cat(found, 1).mean(1).tolist()
        return {"psnr": psnr, "ssim": ssim}


# --- using it -------------------------------------------------------------------------------------------------


def _averaged(content: dict[str, Any]) -> tuple[SRResNetSpec, dict[str, Tensor]]:
    """The generator of a checkpoint: what it is built from, and its averaged weights."""
    return from_plain(SuperResolutionConfig, content["config"]).net, checkpoint.weights_of(content, "average.module")


def _initial(path: Path, wanted: SRResNetSpec) -> dict[str, Tensor]:
    """The weights of ``--init``. ValueError of one line if its net is another."""
    file, content = checkpoint.read(path, SuperResolution.name)
    spec, weights = _averaged(content)
    if spec != wanted:
        raise ValueError(
            f"{file} has {spec.blocks} blocks of {spec.width} ({spec.norm}), not {wanted.blocks} of {wanted.width} "
            f"({wanted.norm}): use --blocks {spec.blocks} --width {spec.width} --norm {spec.norm}"
        )
    return weights


def load_upscaler(path: Path, device: torch.device) -> SRResNet:
    """The averaged generator of a checkpoint (a file or a run's folder). ValueError of one line if it is none."""
    spec, weights = _averaged(checkpoint.read(path, SuperResolution.name)[1])
    net = spec.build()
    net.load_state_dict(weights)
    return net.eval().to(device)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(SuperResolution, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
