"""Time of training steps compared with the least time that they can take, on the built-in scenes.

Run ``make bench`` or ``python -m bench.steps``. Jobs that are compared with each other take turns. Figures are medians.
There are two ratios:

- *contrastive*: a whole step (reading, both views, update), divided by the same update with views made beforehand;
- *GAN*: the update of a batch read beforehand, divided by the sum of its networks' own forward and backward passes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from bench.common import Job, TimingConfig, milliseconds, write
from kintsugi.augment.bicubic import shrink
from kintsugi.contrastive import byol, moco, simclr
from kintsugi.contrastive.views import ViewsMethod
from kintsugi.data.image_set import Images
from kintsugi.data.images import open_images
from kintsugi.data.loader import Loader, resident
from kintsugi.data.store import Store
from kintsugi.losses.adversarial import frozen
from kintsugi.losses.perceptual import open_content
from kintsugi.recon import inpainting, superresolution
from kintsugi.train.compiled import Compiling, begin_step
from kintsugi.train.compute import pick_device
from kintsugi.train.config import parse_command, user_errors
from kintsugi.train.dist import World, keep_freed_memory
from kintsugi.train.method import Batch, Method


@dataclass(frozen=True, kw_only=True)
class StepsConfig(TimingConfig):
    """Compares the time of training steps with the least time that they can take."""

    rounds: int = 7
    scenes: int = 512
    """Number of built-in scenes."""
    repeats: int = 1
    """Steps of each timed run; with several, a GPU need not wait for this process after each step."""


class Steps:
    """The jobs of this benchmark and their measurements.

    images: what whole steps read; default: the built-in scenes. On a GPU they are kept there, as in training.
    """

    def __init__(self, config: StepsConfig, images: Images | None = None) -> None:
        device = pick_device(config.device)
        self.config, self.world = config, World(device, bf16=config.precision == "bf16")
        if images is None:
            images = open_images("scenes", config.size, Store(config.size * 5 // 4), scenes=config.scenes).train
        self.images = resident(images, device, -1)

    def milliseconds(self, jobs: dict[str, Job]) -> dict[str, float]:
        return milliseconds(jobs, self.config.rounds, self.world.device, repeats=self.config.repeats)

    def place(self, method: Method, compiling: Compiling = "no") -> None:
        """Moves a method's networks to the device, as the training loop does.

        What was compiled before is forgotten: torch compiles calls of modules only a few times in a process, and then
        runs them uncompiled.
        """
        if compiling != "no":
            torch.compiler.reset()
        method.to(self.world.device)  # its own buffers too
        self.world.place(method.children(), channels_last=True, compiling=compiling)

    # --- contrastive ------------------------------------------------------------------------------------------

    def contrastive(self, method: ViewsMethod, compiling: Compiling = "no") -> dict[str, float]:
        """Milliseconds of a whole step, of the update alone and of both views alone; and the first divided by the
        second."""
        self.place(method, compiling)
        loader = Loader(self.images, method.config.batch, 0, device=self.world.device)
        with loader.iterate(0) as batches:
            batch = next(batches)
            views = method.inputs(batch, 0)

            def update(inputs: Batch) -> None:
                begin_step(compiling)
                method.update(inputs, 0)

            jobs: dict[str, Job] = {
                "whole step": lambda: update(method.inputs(next(batches), 0)),
                "model only": lambda: update(views),
                "both views": lambda: method.inputs(batch, 0),
            }
            found = self.milliseconds(jobs)
        return found | {"whole over model": round(found["whole step"] / found["model only"], 3)}

    def views_methods(self) -> dict[str, dict[str, float]]:
        """The figures of ``contrastive`` for SimCLR, MoCo and BYOL."""
        size, batch, world = self.config.size, self.config.batch, self.world
        return {
            "simclr": self.contrastive(simclr.SimCLR(replace(simclr.demo(), size=size, batch=batch), world)),
            "moco": self.contrastive(moco.MoCo(replace(moco.demo(), size=size, batch=batch), world)),
            "byol": self.contrastive(byol.BYOL(replace(byol.demo(), size=size, batch=batch), world)),
        }

    # --- GANs -------------------------------------------------------------------------------------------------

    def alone(self, network: nn.Module, *inputs: Tensor) -> Job:
        """A job: one forward and one backward pass of a network, with gradients for its weights and its first input."""
        first = inputs[0].detach().requires_grad_()

        def both() -> None:
            with self.world.autocast():
                out = network(first, *inputs[1:])
            out.sum().backward()
            network.zero_grad(set_to_none=True)

        return both

    def gan(self, method: inpainting.Inpainting | superresolution.SuperResolution) -> dict[str, float]:
        """Milliseconds of a whole step and of each network alone; and the step divided by the sum of its passes.

        A step trains the discriminator on real and on generated images, so its passes count twice.
        """
        self.place(method)
        batch = Loader(self.images, method.config.batch, 0, device=self.world.device)
        with batch.iterate(0) as batches:
            real = next(batches)
        inputs = method.inputs(real, 0)
        truth = inputs["image"]
        if isinstance(method, inpainting.Inpainting):
            generator = self.alone(method.generator, truth, inputs["mask"])
            shown = method._judged(truth)
        else:
            generator, shown = self.alone(method.generator, shrink(truth, 4)), truth
        discriminator = self.alone(method.discriminator, shown)

        def to_its_input() -> None:
            with frozen(method.discriminator):
                discriminator()

        networks = {"generator": generator, "discriminator": discriminator, "discriminator, to its input": to_its_input}
        if isinstance(method, superresolution.SuperResolution):
            content = open_content(method.config.content_layer, method.config.content_weights)[0]
            if content is not None:
                networks["content"] = self.alone(content.to(self.world.device), truth)
        late = method.config.adversarial_start
        found = self.milliseconds({"whole step": lambda: method.update(inputs, late), **networks})
        passes = {name: found[name] * (2 if name == "discriminator" else 1) for name in networks}
        return found | {"whole over networks": round(found["whole step"] / sum(passes.values()), 3)}

    def gans(self) -> dict[str, dict[str, float]]:
        """The figures of ``gan`` for inpainting and super-resolution."""
        size, batch = self.config.size, self.config.batch
        painter = replace(inpainting.demo(), size=size, batch=batch, steps=1000, adversarial_start=10)
        enlarger = replace(superresolution.demo(), size=size, batch=batch, steps=1000, adversarial_start=10)
        return {
            "inpainting": self.gan(inpainting.Inpainting(painter, self.world)),
            "superresolution": self.gan(superresolution.SuperResolution(enlarger, self.world)),
        }


def run(config: StepsConfig) -> None:
    keep_freed_memory()  # as in every training run
    bench = Steps(config)
    views, gans = bench.views_methods(), bench.gans()
    result = {"contrastive, ms": views, "GAN, ms": gans, "settings": asdict(config) | {"out": ""}}
    ratios = {
        "whole step over model only": {name: found["whole over model"] for name, found in views.items()},
        "whole GAN step over its networks": {name: found["whole over networks"] for name, found in gans.items()},
    }
    write(result, ratios, config.out, "steps")


if __name__ == "__main__":
    with user_errors():
        run(parse_command(StepsConfig))
