"""Split-brain autoencoder: two networks, each of which predicts what the other sees (Zhang, Isola and Efros 2017,
arXiv:1611.09842).

One sees lightness and predicts chroma, the other sees chroma and predicts lightness, so neither can learn by copying.
Both have half of the usual width. Together they see the whole image, and their concatenated features are transferred.
Planes are predicted by classification (``--loss classification``, eq. 4: 313 bins of ab, 50 of L, 1-hot, no
rebalancing) or by regression (``--loss l2``, eq. 2).

Deviations, each with its reason:
- A feature pyramid over standard encoders predicts at a quarter of the side; the paper's AlexNet predicts at a
  sixteenth. So pictures show more detail, and the encoders can be transferred.
- Encoders that cannot be halved (``timm:NAME``) have their full width in both networks.
- AdamW with a cosine schedule: the paper's long training with momentum does not fit into minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss

from kintsugi import color
from kintsugi.augment import cropping
from kintsugi.color import lab_to_rgb, rgb_to_lab
from kintsugi.metrics.chroma import AbErrors
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.decoders import Pyramid
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import OWN, Network
from kintsugi.nets.layers import Norm
from kintsugi.nets.planes import JoinedEncoder, Planes
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import EncoderConfig, start_encoder
from kintsugi.train.method import Batch, Method
from kintsugi.upload import constant

N = TypeVar("N", bound="NetsConfig")
AB_BINS, L_BINS = 313, 50
TEMPERATURE = 0.38
"""Temperature of the annealed mean, which turns bins into a color or a lightness (``kintsugi.color``)."""


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NetsConfig(EncoderConfig):
    """Settings of both split-brain methods."""

    encoder: str = "alexnet"
    """Encoder of each network, as of other methods; alexnet is the paper's. splitbrain halves the width of resnet18,
    resnet50 and alexnet; others have their full width."""
    lr: float = 1e-3
    """AdamW's learning rate after the warm-up."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    warmup: int = 50
    """Steps over which the learning rate rises; after them it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 32:
            raise ValueError(f"--size {self.size}: use a multiple of 32")


@dataclass(frozen=True, kw_only=True)
class SplitBrainConfig(NetsConfig):
    loss: Literal["classification", "l2"] = "classification"
    """What is predicted for each pixel: a bin, which gives better features in the paper, or the value itself."""

    @property
    def backbone(self) -> Network:
        """The encoder of each half."""
        return replace(full, width=0.5) if isinstance(full := super().backbone, Backbone) else full


def demo() -> SplitBrainConfig:
    """Minutes on two CPU cores, built-in scenes."""
    return SplitBrainConfig(
        preset="demo", scenes=2048, short_side=80, steps=1200, batch=32, show_every=200, eval_every=400, save_every=400
    )


def small() -> SplitBrainConfig:
    """One GPU, tens of minutes."""
    return SplitBrainConfig(
        preset="small",
        encoder="resnet18",
        size=96,
        batch=64,
        steps=20_000,
        scenes=50_000,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
    )


def paper() -> SplitBrainConfig:
    """The paper's network and data; crops of 192 px instead of 180, as the side must be a multiple of 32."""
    return SplitBrainConfig(
        preset="paper",
        data="imagenet:imagenet",
        size=192,
        short_side=256,
        batch=256,
        steps=400_000,
        cache_gb=400,
        show_every=5_000,
        eval_every=10_000,
        save_every=10_000,
    )


# --- networks -------------------------------------------------------------------------------------------------


class CrossChannel(nn.Module):
    """An encoder that predicts other planes: image (N,3,S,S) in [0,1] -> (N,out,s,s) float, s = S / finest stride."""

    def __init__(self, encoder: Encoder, out: int, norm: Norm) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Pyramid(encoder.channels, out, 128, norm)

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image)).float()


# --- losses ---------------------------------------------------------------------------------------------------


def ab_loss(logits: Tensor, ab: Tensor) -> Tensor:
    """Cross-entropy (eq. 4) of logits (N,313,s,s) with the bins nearest to ab (N,2,s,s); 0-d."""
    nearest = color.soft_encode(ab, constant(color.ab_bins(), ab.device), neighbors=1)[0]  # (N,1,s,s)
    return cross_entropy(logits, nearest[:, 0])


def lightness_loss(logits: Tensor, lightness: Tensor) -> Tensor:
    """Cross-entropy of logits (N,50,s,s) with the bins of lightness (N,1,s,s) in 0..100; 0-d."""
    return cross_entropy(logits, color.lightness_bins(lightness)[:, 0])


def decode_ab(logits: Tensor) -> Tensor:
    """The annealed mean of the bins: logits (N,313,s,s) -> ab (N,2,s,s)."""
    return color.annealed_mean(logits, constant(color.ab_bins(), logits.device), TEMPERATURE)


def decode_lightness(logits: Tensor) -> Tensor:
    """The annealed mean of the bins: logits (N,50,s,s) -> lightness (N,1,s,s) in 0..100."""
    centers = torch.arange(1.0, 100, 2, device=logits.device)[:, None]  # (50,1)
    return color.annealed_mean(logits, centers, TEMPERATURE)


def enlarged(plane: Tensor, like: Tensor) -> Tensor:
    """(N,C,s,s) -> (N,C,S,S), where S is the side of ``like``."""
    return interpolate(plane, like.shape[-2:], mode="bilinear")


# --- the method -----------------------------------------------------------------------------------------------


class TwoNets(Method[N]):
    """What both split-brain methods share: two networks, each with its own loss and optimizer."""

    def optimize(self, nets: dict[str, CrossChannel]) -> None:
        """Creates an AdamW optimizer for each network. nets: name of its loss -> network."""
        config = self.config
        self.optimizers = {
            name: torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
            for name, net in nets.items()
        }

    def learn(self, losses: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """One optimization step of each network on its own loss, 0-d. Returns scalars to log."""
        config, scalars = self.config, dict[str, Tensor]()
        for name, loss in losses.items():
            optimizer = self.optimizers[name]
            self.world.backward(loss, optimizer)
            optim.set_lr(optimizer, config.lr * optim.warmup_cosine(step, config.steps, config.warmup))
            scalars |= self.take_step(name, step)
            scalars[f"loss/{name}"] = loss.detach()
        return scalars


class SplitBrain(TwoNets[SplitBrainConfig]):
    """Two networks of half width: one predicts ab from L, the other L from ab."""

    name = "splitbrain"
    score = "psnr"

    def __init__(self, config: SplitBrainConfig, world: World) -> None:
        super().__init__(config, world)
        classify = config.loss == "classification"
        encoders = [Planes("L", config.backbone).build(), Planes("ab", config.backbone).build()]
        for encoder, gray in zip(encoders, (True, False), strict=True):
            start_encoder(config, encoder, world, rgb=gray)
        self.to_ab = CrossChannel(encoders[0], AB_BINS if classify else 2, config.norm)
        self.to_lightness = CrossChannel(encoders[1], L_BINS if classify else 1, config.norm)
        self.optimize({"ab": self.to_ab, "lightness": self.to_lightness})

    @classmethod
    def check(cls, config: SplitBrainConfig) -> None:
        if config.starts_from and config.encoder in OWN:
            raise ValueError(
                f"--init {config.init}: the halves of {config.encoder} have half its width, so no weights fit them: "
                "use an encoder of full width, such as --encoder timm:resnet18"
            )
        super().check(config)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config, count = self.config, self.config.batch
        image = cropping.random_crops(batch, config.size, count, self.world.part(count), generator(config.seed, step))
        self.train()
        with self.world.autocast():
            ab, lightness = self.to_ab(image), self.to_lightness(image)
        target = interpolate(rgb_to_lab(image), ab.shape[-2:], mode="area")  # (n,3,s,s)
        if config.loss == "classification":
            losses = {"ab": ab_loss(ab, target[:, 1:]), "lightness": lightness_loss(lightness, target[:, :1])}
        else:
            losses = {"ab": mse_loss(ab, target[:, 1:] / 110), "lightness": mse_loss(lightness, target[:, :1] / 100)}
        return self.learn(losses, step)

    def encoders(self) -> dict[str, Encoder]:
        return {"generator": JoinedEncoder([self.to_ab.encoder, self.to_lightness.encoder])}

    # --- pictures and figures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """RGB (N,3,S,S) in [0,1] -> Lab (N,3,S,S), each plane predicted by the half that does not see it."""
        with self.world.autocast():
            ab, lightness = self.to_ab.eval()(image), self.to_lightness.eval()(image)
        if self.config.loss == "classification":
            ab, lightness = decode_ab(ab), decode_lightness(lightness)
        else:
            ab, lightness = 110 * ab, 100 * lightness
        return enlarged(torch.cat([lightness, ab], 1), image)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """For each half its input and the image with its prediction; then both predictions together, and the truth."""
        truth = cropping.center_crops(batch, self.config.size)
        lab, predicted = rgb_to_lab(truth), self.predict(truth)
        light, ab = lab[:, :1], lab[:, 1:]
        columns = [
            lab_to_rgb(torch.cat(planes, 1))
            for planes in (
                (light, torch.zeros_like(ab)),
                (light, predicted[:, 1:]),
                (torch.full_like(light, 60), ab),
                (predicted[:, :1], ab),
                (predicted[:, :1], predicted[:, 1:]),
            )
        ]
        title = "L | ab predicted from L | ab | L predicted from ab | both predicted | truth"
        return {title: sheet([*columns, truth], zoom=2)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        return self._figures(batches, self.predict)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of predicting the held-out images' mean color at every pixel."""
        every = list(batches)
        labs = [rgb_to_lab(cropping.center_crops(b, self.config.size)).mean((2, 3)) for b in every]  # (n,3) each
        mean = torch.cat(labs).mean(0).view(1, 3, 1, 1)
        return {"mean color": self._figures(every, lambda image: mean.expand_as(image))}

    def _figures(self, batches: Iterable[Batch], predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """PSNR in dB of the image from both predictions, ``AbErrors`` of ab, root mean square error of L in 0..100."""
        errors, rows = AbErrors(), []
        for batch in batches:
            truth = cropping.center_crops(batch, self.config.size)
            lab, predicted = rgb_to_lab(truth), predict(truth)
            errors.add(predicted[:, 1:], lab[:, 1:])
            psnr = -10 * (lab_to_rgb(predicted) - truth).square().mean((1, 2, 3)).clamp(min=1e-10).log10()
            rows.append(torch.stack([psnr, (predicted - lab)[:, :1].square().mean((1, 2, 3))]))  # (2,n)
        psnr, squared = torch.cat(rows, 1).mean(1).tolist()
        return {"psnr": psnr, **errors.means(), "lightness_rms": squared**0.5}


def main(argv: Sequence[str] | None = None) -> None:
    run_method(SplitBrain, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
