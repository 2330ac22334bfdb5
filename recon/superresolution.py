"""Super-resolution: learning to see by restoring the detail of small images (SRGAN, Ledig 2017, arXiv:1609.04802).

Phase 1 trains SRResNet on the squared error of pixels (eq. 1, 4). Phase 2 starts at ``--adversarial-start``, or from
another run's weights (``--init``), and trains it as SRGAN: a content loss on VGG19's features (eq. 5) plus 1e-3 times
an adversarial loss (eq. 3, 6). The small images are four times smaller, resized bicubically as MATLAB does.

Deviations, each with its reason:
- The network adds to the bicubic enlargement, so that it starts from a good image (``kintsugi.nets.srresnet``).
- The generator's weights are averaged over steps (EMA .999), because a GAN's weights fluctuate; the average is shown,
  measured and transferred.
- The content loss is relative to the mean square of the features, so that it does not depend on the scale of VGG's
  weights. It alone makes the sub-pixel convolutions leave a grain of dots, 4 px apart, within some steps; a loss on
  that pattern prevents it (``kintsugi.losses.grain``). The losses of ESRGAN (Wang 2018, arXiv:1809.00219) are options:
  several layers before their ReLU, and the absolute error of pixels.
- In phase 1 the learning rate falls along a cosine, which helps short runs.
- Crops are mirrored, and outside the demo turned by quarters: eight times the crops, for sets of some hundred photos.
  The paper has 350,000. ``--scale-jitter`` adds crops of shrunk photos, which are sharper than the photos themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, l1_loss, mse_loss

from kintsugi.augment import cropping
from kintsugi.augment.bicubic import enlarge, shrink
from kintsugi.losses.grain import grain_loss
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
from kintsugi.train.ema import RunningAverage
from kintsugi.train.gan import Gan, GanConfig, adversarial_loss, collapse_warning, update_discriminator
from kintsugi.train.initial import initial_weights
from kintsugi.train.method import Batch

# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(GanConfig):
    blocks: int = 16
    """Residual blocks of the generator."""
    width: int = 64
    """Channels of the generator."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization; with group, results do not depend on how the batch is split over ranks."""

    adversarial_start: int = 0
    """Steps of phase 1, on pixels alone; its result is kept as before-adversary.pt. Equal to --steps: no phase 2."""
    adversarial: float = 1e-3
    """Weight of the adversarial loss in phase 2."""
    gan: Literal["bce", "hinge"] = "bce"
    """The adversarial loss: binary cross-entropy or hinge."""
    init: str = ""
    """Start from the generator of this run, checkpoint or file of weights of super-resolution, not from fresh ones."""
    content_layer: ContentLayer = "relu5_4"
    """VGG19's layer for the content loss. The paper uses relu2_2 and relu5_4, squared; a range takes the last
    convolution of each block before its ReLU, absolute, as ESRGAN does."""
    content_weights: str = "auto"
    """VGG19: auto (if it is on this machine), download, off, or a FILE with torchvision's weights. Without VGG19 the
    content loss is the squared error of pixels."""
    content_scale: float = 0.5
    """Factor on VGG's distance, which is relative to the features of the truth. For squared ones: at .1 it is about as
    large as the squared error of pixels, but then the adversarial loss outweighs it."""
    grain: float = 1000.0
    """Weight in phase 2 of the energy of the error's pattern that repeats every four pixels, in windows of 32 px
    (``grain_loss``); 0: off, and the grain appears."""
    pixel_weight: float = 0.0
    """Weight of the absolute error of pixels in phase 2, which keeps colors; ESRGAN has it, SRGAN does not."""

    turns: bool = False
    """Turn the crops by random quarter turns, in addition to mirroring them: eight orientations."""
    scale_jitter: float = 1.0
    """Smallest factor by which photos are shrunk before half of the crops are taken, uniform in the logarithm; the
    other half keeps the photos' resolution. 1: never shrunk. A photo is not shrunk below --size."""

    lr: float = 1e-4
    """Adam's learning rate at the start of phase 1."""
    lr_adversarial: float = 1e-4
    """Adam's learning rate of both networks in phase 2; in the second half of phase 2, a tenth of it."""
    ema: float = 0.999
    """Decay of the generator's running average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 16:
            raise ValueError(f"--size {self.size}: use a multiple of 16")
        if not 0 <= self.adversarial_start <= self.steps:
            raise ValueError(f"--adversarial-start {self.adversarial_start} must be from 0 to --steps {self.steps}")
        within(self, blocks=1, width=1, scale_jitter=(1 / 64, 1.0))

    @property
    def net(self) -> SRResNetSpec:
        return SRResNetSpec(self.blocks, self.width, self.norm)

    @property
    def has_adversary(self) -> bool:
        return self.adversarial_start < self.steps


def demo() -> SuperResolutionConfig:
    """Minutes on two CPU cores, built-in scenes: a smaller network, most steps in phase 1."""
    return SuperResolutionConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=1000,
        adversarial_start=800,
        adversarial=2e-4,
        grain=0,
        batch=16,
        blocks=6,
        width=32,
        lr=2e-3,
        show_every=100,
        eval_every=200,
        save_every=200,
    )


def small() -> SuperResolutionConfig:
    """One GPU, tens of minutes: the paper's network and crops."""
    return SuperResolutionConfig(
        preset="small",
        turns=True,
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
    """The paper's recipe: a million steps on pixels, then 200k as SRGAN."""
    return SuperResolutionConfig(
        preset="paper",
        turns=True,
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
    """SRResNet in phase 1, SRGAN in phase 2."""

    name = "superresolution"
    score = "psnr"
    next_program = "upscale"

    def __init__(self, config: SuperResolutionConfig, world: World) -> None:
        super().__init__(config, world)
        self.generator = config.net.build()
        if config.init and not config.resume:  # a resumed run has its own weights
            self.generator.load_state_dict(_initial(config))
        self.average = RunningAverage(self.generator, config.ema)
        self.optimizers = {"generator": torch.optim.Adam(self.generator.parameters(), config.lr, fused=True)}
        # A function, because VGG is not part of the method's weights.
        self.content_distance: Callable[[Tensor, Tensor], Tensor] | None = None
        if config.has_adversary:
            self.discriminator = SRGANDiscriminatorSpec(config.size, min(64, 2 * config.width), config.norm).build()
            self.optimizers["discriminator"] = torch.optim.Adam(
                self.discriminator.parameters(), config.lr_adversarial, fused=True
            )
            content, report = open_content(config.content_layer, config.content_weights)
            if content is not None:
                self.content_distance = content.to(world.device).distance
            if world.is_main:
                print(f"content loss on {'pixels: ' if content is None else ''}{report}")

    def inputs(self, batch: Batch, step: int) -> Batch:
        return {"image": self.crops(batch, step)}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config, large = self.config, inputs["image"]  # (n,3,S,S)
        with self.world.autocast():
            enlarged = self.generator(shrink(large, SCALE).clamp(0, 1))
        loss = pixels = mse_loss(enlarged, large)
        scalars = {"loss/pixels": pixels.detach()}
        if step >= config.adversarial_start:
            loss, more = self._srgan_loss(enlarged, large, step, pixels)
            scalars |= more
        self.world.backward(loss, self.optimizers["generator"])
        optim.set_lr(self.optimizers["generator"], self.rate(step))
        scalars |= self.take_step("generator", step)
        self.average.update_parameters(self.generator)
        return scalars | {"loss/generator": loss.detach()}

    def _srgan_loss(
        self, enlarged: Tensor, large: Tensor, step: int, pixels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Updates the discriminator; returns the generator's content plus adversarial loss (eq. 3), and scalars."""
        config = self.config
        optim.set_lr(self.optimizers["discriminator"], self.rate(step))
        scalars = update_discriminator(self, self.discriminator, large, enlarged.detach(), step, kind=config.gan)
        content = 4 * pixels  # squared error in [-1,1], the range for the paper's loss weights
        if self.content_distance is not None:
            with self.world.autocast():
                content = config.content_scale * self.content_distance(enlarged, large)
        # The generator's loss comes from the discriminator after its update.
        weighted, more = adversarial_loss(self.discriminator, enlarged, self.world, config.adversarial, config.gan)
        grain = grain_loss(enlarged, large, SCALE, window=min(32, config.size))
        loss = content + weighted + config.grain * grain + config.pixel_weight * l1_loss(enlarged, large)
        return loss, scalars | more | {"loss/content": content.detach(), "loss/grain": grain.detach()}

    def rate(self, step: int) -> float:
        """The learning rate at a step: phase 1 has a warm-up and a cosine, phase 2 one drop to a tenth."""
        config = self.config
        if step < config.adversarial_start:
            return config.lr * optim.warmup_cosine(step, config.adversarial_start, min(100, config.adversarial_start))
        late = step >= (config.adversarial_start + config.steps) // 2
        return config.lr_adversarial * (0.1 if late else 1)

    def crops(self, batch: Batch, step: int) -> Tensor:
        """This rank's random crops for a step, (n,3,S,S) in [0,1], drawn for the global batch."""
        config = self.config
        mine, random = self.world.part(config.batch), generator(config.seed, step)
        return cropping.square_crops(
            batch, config.size, config.batch, mine, random, turned=config.turns, smallest=config.scale_jitter
        )

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        return collapse_warning(scalars, "a lower --lr-adversarial")

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restores a checkpoint. A run of phase 1 alone may continue into phase 2, with a new discriminator."""
        if self.config.has_adversary and "discriminator" not in state["optimizers"]:
            fresh = self.training_state()
            state = {key: {**fresh[key], **state[key]} for key in state}
        super().load_training_state(state)

    @classmethod
    def check(cls, config: SuperResolutionConfig) -> None:
        if config.init and not config.resume:
            _initial(config)

    # --- pictures and figures ---------------------------------------------------------------------------------

    def centered(self, batch: Batch) -> Tensor:
        """The central squares of held-out images at their own resolution, (n,3,S,S) in [0,1]."""
        return cropping.crop(batch["image"], batch["extent"], self.config.size) / 255

    @torch.no_grad()
    def upscale(self, small: Tensor) -> Tensor:
        """Enlarges with the averaged generator: (N,3,h,w) in [0,1] -> (N,3,4h,4w) in [0,1]."""
        net = self.average.module.eval()
        with self.world.autocast():
            return net(small).clamp(0, 1)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: the small image with its pixels as squares | bicubic | super-resolved | truth."""
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
        """Figures of bicubic enlargement."""
        return {"bicubic": self._figures(batches, lambda small: enlarge(small, SCALE).clamp(0, 1))}

    def _figures(self, batches: Iterable[Batch], upscale: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Mean PSNR in dB and SSIM of luma (``luma_figures``). The small images are rounded to 8 bits, as in files."""
        found = []
        for batch in batches:
            truth = self.centered(batch)
            small = (255 * shrink(truth, SCALE).clamp(0, 1)).round() / 255
            found.append(torch.stack(list(luma_figures(upscale(small), truth).values())))  # (2,n)
        psnr, ssim = torch.cat(found, 1).mean(1).tolist()
        return {"psnr": psnr, "ssim": ssim}


# --- using a trained network ----------------------------------------------------------------------------------


def _initial(config: SuperResolutionConfig) -> dict[str, Tensor]:
    """The weights of ``--init``."""
    return initial_weights(config.init, config, SuperResolution.name, "average.module", "blocks", "width", "norm")


def load_upscaler(path: Path, device: torch.device) -> SRResNet:
    """The averaged generator of a checkpoint (a file or a run's folder).

    Raises ValueError with one line if it is not a checkpoint of super-resolution.
    """
    content = checkpoint.read(path, SuperResolution.name)[1]
    net = from_plain(SuperResolutionConfig, content["config"]).net.build()
    net.load_state_dict(checkpoint.weights_of(content, "average.module"))
    return net.eval().to(device)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(SuperResolution, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
