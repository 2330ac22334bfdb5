"""DINO: a student predicts which of many outputs a slowly moving teacher chooses for other crops of the image (Caron
2021, arXiv:2104.14294).

Algorithm 1: the student sees all crops, the teacher only the global ones. The loss is the cross-entropy of the
student's softmax and the teacher's, for every pair of different crops. The teacher is a moving average of the student.
Its outputs are centered, by their running mean, so that no output always wins; and sharpened, by a low temperature, so
that the outputs do not become equally likely. As in the paper, the teacher is evaluated and transferred.

Deviations, each with its reason:
- The encoder's vector is the one that eval transfers: the mean of the coarsest map's positions, or of a vision
  transformer's patch tokens. The authors train the class token.
- The gradient is clipped by its total norm, as in all methods here; the authors clip that of each tensor.
- There is no stochastic depth in the student: encoders are built without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, normalize, softmax

from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.contrastive.crops import CropsConfig, CropsMethod, encode_crops
from kintsugi.metrics.spread import spread
from kintsugi.nets.encoder import Encoder
from kintsugi.train import inference, optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.ema import cosine_momentum, ema_copy, ema_update
from kintsugi.train.method import Batch

# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DINOConfig(CropsConfig):
    local_crops: int = 8
    smallest_crop: float = 0.4
    largest_local: float = 0.4
    hidden: int = 2048
    """Width of the head's two hidden layers."""
    bottleneck: int = 256
    """Width of the head's last hidden vector, which is normalized."""
    head_norm: bool = False
    """Batch norms in the head's hidden layers, an option of the authors' code. Without them, the outputs of a short run
    become equally likely, because it learns only what all images have in common."""
    outputs: int = 65_536
    """Number of outputs, K; a few thousand are enough for small data sets."""
    momentum: float = 0.996
    """Momentum of the teacher's moving average at the first step; it rises to 1. Nearer to 1 for small batches."""
    center_momentum: float = 0.9
    """Momentum of the running mean of the teacher's outputs."""
    temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: float = 0.07
    """Temperature of the teacher's softmax after its warm-up."""
    first_teacher_temperature: float = 0.04
    """Temperature of the teacher's softmax at the first step."""
    temperature_warmup: int = 0
    """Steps over which the teacher's temperature changes from the first to the last, linearly."""
    frozen: int = 0
    """Steps at the start in which the head's last layer is not trained; the authors take one epoch."""
    clip: float = 3.0
    """Largest norm of the gradient."""
    optimizer: optim.Rule = "adam"
    lr: float = 5e-4
    weight_decay: float = 0.04
    """Weight decay at the first step, of weights only. The authors take 1e-4 for ResNets, from first to last."""
    last_weight_decay: float = 0.4
    """Weight decay at the last step; it changes along a cosine."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly; then it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, hidden=1, bottleneck=1, outputs=2, momentum=(0, 1), center_momentum=(0, 1), last_weight_decay=0)
        within(self, **dict.fromkeys(("temperature", "teacher_temperature", "first_teacher_temperature"), 1e-3))
        within(self, **dict.fromkeys(("temperature_warmup", "frozen", "warmup", "clip"), 0))


def demo() -> DINOConfig:
    """Minutes on two CPU cores, on the built-in scenes. A low momentum, because there are few steps."""
    return DINOConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=400,
        batch=64,
        local_crops=4,
        hidden=512,
        bottleneck=128,
        head_norm=True,
        outputs=1024,
        momentum=0.98,
        teacher_temperature=0.04,
        frozen=32,
        lr=5e-4,
        weight_decay=1e-4,
        last_weight_decay=1e-4,
        warmup=30,
        show_every=150,
        eval_every=100,
        save_every=100,
    )


def small() -> DINOConfig:
    """One GPU, tens of minutes."""
    return DINOConfig(
        preset="small",
        size=64,
        batch=256,
        steps=20_000,
        head_norm=True,
        outputs=4096,
        temperature_warmup=4_000,
        frozen=195,
        lr=5e-4,
        weight_decay=1e-4,
        last_weight_decay=1e-4,
        warmup=500,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> DINOConfig:
    """The paper's ViT-S/16 on ImageNet: batch 1024, 100 epochs."""
    return DINOConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="timm:vit_small_patch16_224",
        size=224,
        short_side=256,
        local_size=96,
        batch=1024,
        steps=125_100,
        warmup=12_510,
        temperature_warmup=37_530,
        frozen=1_251,
        lr=2e-3,
        cache_gb=400,
        show_every=1_000,
        eval_every=2_000,
        save_every=1_000,
    )


# --- losses and schedules -------------------------------------------------------------------------------------


def teacher_targets(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """The teacher's centered and sharpened probabilities, like ``logits``: (...,K), center (K,)."""
    return softmax((logits - center) / temperature, -1)


def dino_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy of the student's and the teacher's probabilities over pairs of different crops, 0-d.

    logits: the student's, (V,N,K), of V crops of N images, of which the G global ones come first. targets: the
    teacher's probabilities of those, (G,N,K).
    """
    entropies = -torch.einsum("gnk,vnk->gvn", targets, log_softmax(logits / temperature, -1))  # (G,V,N)
    views = torch.arange(len(logits), device=logits.device)
    different = views[: len(targets), None, None] != views[:, None]  # (G,V,1)
    return (entropies * different).sum() / (len(targets) * (len(logits) - 1) * logits.shape[1])


def entropy(probabilities: Tensor) -> Tensor:
    """The mean entropy, in nats, of probabilities (...,K); 0-d."""
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1).mean()


# --- the method -----------------------------------------------------------------------------------------------


class DINOHead(nn.Module):
    """Features (N,width) -> logits (N,K): three linear layers, normalization, and a last layer of unit vectors.

    norm: batch norms in the hidden layers.
    The last layer is the authors' layer with weight normalization whose lengths are fixed at 1.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, outputs: int, *, norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in ((width, hidden), (hidden, hidden)):
            layers += [nn.Linear(narrow, wide), *([nn.BatchNorm1d(wide)] if norm else []), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last = nn.Parameter(torch.empty(outputs, bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.last, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        return linear(normalize(self.layers(features), dim=1), normalize(self.last, dim=1))


class DINO(CropsMethod[DINOConfig]):
    """A student, trained by gradients; its moving average, the teacher; the running mean of the teacher's outputs."""

    name = "dino"
    center: Tensor

    def __init__(self, config: DINOConfig, world: World) -> None:
        super().__init__(config, world)
        norm = config.head_norm and config.norm != "group"
        self.head = DINOHead(self.width, config.hidden, config.bottleneck, config.outputs, norm=norm)
        self.teacher = ema_copy(self.student)
        self.register_buffer("center", torch.zeros(config.outputs))
        self.rate = optim.scaled_lr(config.optimizer, config.lr, config.batch)
        self.optimizers["student"] = optim.make_optimizer(
            config.optimizer, self.student, self.rate, config.weight_decay, decay_all=False
        )

    @property
    def student(self) -> nn.ModuleList:
        """Encoder and head: the networks that gradients train."""
        return nn.ModuleList([self.encoder, self.head])

    @property
    def teacher_encoder(self) -> Encoder:
        """The encoder that is evaluated and transferred."""
        encoder = self.teacher[0]
        assert isinstance(encoder, Encoder)
        return encoder

    def recipes(self) -> tuple[ColorAugmentation, ColorAugmentation]:
        """Global crop 1 is always blurred; global crop 2 is rarely blurred and sometimes solarized."""
        first = replace(self.local_recipe(), blur=min(1.0, 2 * self.config.blur))
        return first, replace(first, blur=self.config.blur / 5, solarize=0.2)

    def local_recipe(self) -> ColorAugmentation:
        return ColorAugmentation(0.4, 0.4, 0.2, 0.1, blur=self.config.blur).with_strength(self.config.strength)

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        crops = list(inputs.values())
        count = crops[0].shape[1]
        self.student.train()
        self.teacher.train()
        with self.world.autocast():
            features = encode_crops(self.encoder, crops)  # (V*n,D)
            logits = self.head(features).float().unflatten(0, (-1, count))  # (V,n,K)
            with torch.no_grad():
                taught = self.teacher[1](encode_crops(self.teacher_encoder, crops[:1])).float()
                taught = taught.unflatten(0, (-1, count))  # (G,n,K)
        targets = teacher_targets(taught, self.center, self.sharpness(step))
        loss = dino_loss(logits, targets, config.temperature)
        self.world.backward(loss, self.optimizers["student"])
        if step < config.frozen:
            self.head.last.grad = None
        self.schedule(step)
        scalars = {"loss/dino": loss.detach(), **self.take_step("student", step, config.clip)}
        momentum = cosine_momentum(config.momentum, step, config.steps)
        ema_update(self.teacher, self.student, momentum)
        self.center.lerp_(self.world.mean(taught.mean((0, 1))), 1 - config.center_momentum)
        if config.logs(step):
            scalars |= {"momentum": torch.full((), momentum, device=loss.device), **spread(features[:count])}
            # A collapse to one output has entropy 0 of the mean; a collapse to equal outputs has log K of both.
            scalars |= {"targets/entropy": entropy(targets), "targets/entropy_of_mean": entropy(targets.mean((0, 1)))}
        return scalars

    def schedule(self, step: int) -> None:
        """Sets the learning rate and the weight decay of a step."""
        config, optimizer = self.config, self.optimizers["student"]
        optim.set_lr(optimizer, self.rate * optim.warmup_cosine(step, config.steps, config.warmup))
        decay = optim.cosine(config.weight_decay, config.last_weight_decay, step, config.steps)
        optimizer.param_groups[0]["weight_decay"] = decay  # the second group has none

    def sharpness(self, step: int) -> float:
        """The teacher's temperature at a step."""
        config = self.config
        share = min(1.0, step / config.temperature_warmup) if config.temperature_warmup else 1.0
        first = config.first_teacher_temperature
        return first + share * (config.teacher_temperature - first)

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.teacher_encoder}

    def features(self, image: Tensor) -> Tensor:
        """The teacher's features; (N,3,S,S) -> (N,D)."""
        return inference.features(self.teacher_encoder, image, self.world)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(DINO, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
