"""The smallest method there is, for tests of the training loop. A run takes a second, most of it TensorBoard's."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kintsugi.nets.encoder import Encoder
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import TrainConfig
from kintsugi.train.dist import World
from kintsugi.train.method import Batch, Method
from kintsugi.upload import upload


@dataclass(frozen=True, kw_only=True)
class TinyConfig(TrainConfig):
    width: int = 4
    optimizer: optim.Rule = "adam"
    lr: float = 0.01


def demo() -> TinyConfig:
    return TinyConfig(
        scenes=24,
        size=8,
        batch=4,
        steps=6,
        log_every=2,
        show_every=4,
        eval_every=3,
        save_every=2,
        eval_images=2,
        device="cpu",
    )


class TinyMethod(Method[TinyConfig]):
    """A denoising autoencoder with the state that real methods have: moments, batch statistics, dropout."""

    name = "tiny"
    score = "quality"

    def __init__(self, config: TinyConfig, world: World) -> None:
        super().__init__(config, world)
        width = config.width
        net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout(), nn.Conv2d(width, 3, 3, padding=1)
        )
        self.net = net
        self.optimizers = {"net": optim.make_optimizer(config.optimizer, net, config.lr, 0.01)}

    def inputs(self, batch: Batch, step: int) -> Batch:
        image = batch["image"][:, :, :8, :8].float() / 255
        count = len(image) * self.world.size
        noise = torch.rand(count, 3, 8, 8, generator=generator(self.config.seed, step))
        return {"image": image, "noise": upload(image.device, self.world.slice(noise))[0]}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        image = inputs["image"]
        loss = (self.net.train()(image + inputs["noise"]) - image).square().mean()
        self.world.backward(loss, self.optimizers["net"])
        return {"loss/tiny": loss.detach(), **self.take_step("net", step)}

    def show(self, batch: Batch) -> dict[str, Tensor]:
        return {"image": batch["image"][0].float() / 255}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        image = torch.cat([batch["image"] for batch in batches]).float() / 255
        return {"quality": -(self.net.eval()(image) - image).square().mean().item()}

    def encoders(self) -> dict[str, Encoder]:
        return {}


def main(argv: Sequence[str] | None = None) -> None:
    run_method(TinyMethod, [demo], argv)


if __name__ == "__main__":
    main(sys.argv[1:])
