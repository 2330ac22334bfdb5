"""Split-brain autoencoder of images with depth: RGB predicts HHA, HHA predicts color (Zhang, Isola and Efros 2017,
arXiv:1611.09842, section 4.2).

Two networks of full width. One sees the image and predicts its depth as HHA (``kintsugi.data.hha``) by squared error.
The other sees HHA and predicts the image's Lab: L by squared error, and ab as one of 313 bins, with 200 times the
weight. Where depth is missing, HHA is black and is left out of the loss. The first network gives features of RGB, both
together give features of RGB-D.

Deviations are those of ``kintsugi.recon.splitbrain``. Crops keep the images' own resolution, because resizing would
change the meaning of disparity and height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss

from kintsugi.augment import cropping
from kintsugi.color import lab_to_rgb, rgb_to_lab
from kintsugi.data import hha_images
from kintsugi.data.image_set import Split
from kintsugi.metrics.chroma import AbErrors
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.planes import RgbdEncoder
from kintsugi.pictures import sheet
from kintsugi.recon.splitbrain import AB_BINS, CrossChannel, NetsConfig, TwoNets, ab_loss, decode_ab, enlarged
from kintsugi.rng import generator
from kintsugi.train.command import run_method
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import start_encoder
from kintsugi.train.method import Batch
from kintsugi.train.opening import store_of

AB_WEIGHT = 200.0  # weight of the ab loss relative to the squared error of L in 0..100


@dataclass(frozen=True, kw_only=True)
class SplitBrainHhaConfig(NetsConfig):
    data: str = "scenes"
    """scenes, or a folder with rgb/, depth/ (16-bit PNGs in millimeters, 0 = missing) and intrinsics.txt (3x3)."""


def demo() -> SplitBrainHhaConfig:
    """Minutes on two CPU cores, built-in scenes."""
    return SplitBrainHhaConfig(
        preset="demo", scenes=2048, short_side=80, steps=800, batch=32, show_every=100, eval_every=200, save_every=200
    )


def small() -> SplitBrainHhaConfig:
    """One GPU, tens of minutes."""
    return SplitBrainHhaConfig(
        preset="small",
        encoder="resnet18",
        size=96,
        short_side=120,
        batch=64,
        steps=10_000,
        scenes=30_000,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
    )


def paper() -> SplitBrainHhaConfig:
    """The paper's network, for NYUD's frames; crops of 192 px instead of 180, as the side must be a multiple of 32."""
    return SplitBrainHhaConfig(
        preset="paper",
        size=192,
        short_side=240,
        batch=128,
        steps=50_000,
        scenes=100_000,
        cache_gb=100,
        show_every=5_000,
        eval_every=5_000,
        save_every=5_000,
    )


# --- the method -----------------------------------------------------------------------------------------------


class SplitBrainHha(TwoNets[SplitBrainHhaConfig]):
    """Two networks of full width: one predicts HHA from RGB, the other Lab from HHA."""

    name = "splitbrain-hha"
    score = "hha_psnr"

    def __init__(self, config: SplitBrainHhaConfig, world: World) -> None:
        super().__init__(config, world)
        rgb = start_encoder(config, config.backbone.build(), world)
        hha = start_encoder(config, config.backbone.build(), world, rgb=False)
        self.to_hha = CrossChannel(rgb, 3, config.norm)
        self.to_lab = CrossChannel(hha, 1 + AB_BINS, config.norm)
        self.optimize({"hha": self.to_hha, "lab": self.to_lab})

    @classmethod
    def open_data(cls, config: SplitBrainHhaConfig, quiet: bool = False) -> Split:
        return hha_images.open_hha(config.data, config.size, store_of(config, quiet), scenes=config.scenes)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config, random = self.config, generator(self.config.seed, step)
        place, flip = torch.rand(config.batch, 2, generator=random), cropping.random_flips(config.batch, random)
        mine = self.world.part(config.batch)
        planes = cropping.crop(batch["image"], batch["extent"], config.size, place[mine], flip[mine])
        image, hha, known = hha_images.unpack(planes)
        self.train()
        with self.world.autocast():
            predicted_hha, out = self.to_hha(image), self.to_lab(hha)  # (n,3,s,s), (n,314,s,s): L and logits of ab
        lab = interpolate(rgb_to_lab(image), out.shape[-2:], mode="area")  # (n,3,s,s)
        lightness = mse_loss(100 * out[:, :1], lab[:, :1])
        chroma = ab_loss(out[:, 1:], lab[:, 1:])
        losses = {"hha": masked_l2(predicted_hha, hha, known, self.world), "lab": lightness + AB_WEIGHT * chroma}
        return self.learn(losses, step) | {
            "loss/lightness": lightness.detach(),
            "loss/ab": chroma.detach(),
            "known": known.float().mean(),
        }

    def encoders(self) -> dict[str, Encoder]:
        rgb, hha = self.to_hha.encoder, self.to_lab.encoder
        return {"generator": rgb, "rgbd": RgbdEncoder(rgb, hha)}

    # --- pictures and figures ---------------------------------------------------------------------------------

    def centered(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Central squares of held-out images: RGB and HHA (n,3,S,S) in [0,1]; where depth is known, (n,1,S,S) bool."""
        return hha_images.unpack(cropping.crop(batch["image"], batch["extent"], self.config.size))

    def rgb_images(self, batch: Batch) -> Batch:
        return {**batch, "image": batch["image"][:, :3]}

    @torch.no_grad()
    def predict(self, image: Tensor, hha: Tensor) -> tuple[Tensor, Tensor]:
        """Image and HHA (N,3,S,S) in [0,1] -> HHA (N,3,S,S) in [0,1] from the image, and Lab (N,3,S,S) from HHA."""
        with self.world.autocast():
            predicted_hha, out = self.to_hha.eval()(image), self.to_lab.eval()(hha)
        lab = torch.cat([(100 * out[:, :1]).clamp(0, 100), decode_ab(out[:, 1:])], 1)
        return enlarged(predicted_hha.clamp(0, 1), image), enlarged(lab, image)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Each network's input and prediction. HHA is disparity, height, angle as red, green, blue; black = missing."""
        image, hha, _ = self.centered(batch)
        predicted_hha, predicted_lab = self.predict(image, hha)
        columns = [image, predicted_hha, hha, lab_to_rgb(predicted_lab)]
        return {"image | HHA predicted from it | HHA | image predicted from HHA": sheet(columns, zoom=2)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        return self._figures(batches, self.predict)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of predicting each plane's mean over the held-out images at every pixel."""
        every = list(batches)
        sums, count, labs = torch.zeros(3), torch.zeros(()), []
        for image, hha, known in map(self.centered, every):
            sums += (hha * known).sum((0, 2, 3)).cpu()
            count += known.sum().cpu()
            labs.append(rgb_to_lab(image).mean((2, 3)))  # (n,3)
        hha_mean = (sums / count.clamp(min=1)).to(self.world.device).view(1, 3, 1, 1)
        lab_mean = torch.cat(labs).mean(0).view(1, 3, 1, 1)
        return {
            "mean of each plane": self._figures(
                every, lambda image, hha: (hha_mean.expand_as(image), lab_mean.expand_as(image))
            )
        }

    def _figures(
        self, batches: Iterable[Batch], predict: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """Figures of both predictions.

        HHA, where depth is known: PSNR in dB, and the mean absolute error of each plane in 8-bit levels; a level of
        height is a centimeter, one of angle a degree. Lab: ``AbErrors`` of ab, root mean square error of L in 0..100.
        """
        errors, squared, absolute, count, light = AbErrors(), torch.zeros(3), torch.zeros(3), 0.0, []
        for batch in batches:
            image, hha, known = self.centered(batch)
            predicted_hha, predicted_lab = predict(image, hha)
            lab, difference = rgb_to_lab(image), (predicted_hha - hha) * known
            squared += difference.square().sum((0, 2, 3)).cpu()
            absolute += 255 * difference.abs().sum((0, 2, 3)).cpu()
            count += known.sum().item()
            errors.add(predicted_lab[:, 1:], lab[:, 1:])
            light.append((predicted_lab - lab)[:, :1].square().mean((1, 2, 3)))
        count = max(count, 1.0)
        planes = dict(zip(("disparity", "height", "angle"), (absolute / count).tolist(), strict=True))
        hha_psnr = -10 * (squared.sum() / (3 * count)).clamp(min=1e-10).log10().item()
        light_rms = torch.cat(light).mean().sqrt().item()
        return {"hha_psnr": hha_psnr, **planes, **errors.means(), "lightness_rms": light_rms}


def masked_l2(predicted: Tensor, hha: Tensor, known: Tensor, world: World) -> Tensor:
    """Mean squared error of HHA predicted at a quarter of the side, (N,3,s,s), where depth is known; 0-d.

    hha (N,3,S,S), known (N,1,S,S) bool. The target of a position is the mean over its known pixels; its weight is the
    fraction of its pixels that are known.
    """
    weight = interpolate(known.float(), predicted.shape[-2:], mode="area")  # (N,1,s,s)
    truth = interpolate(hha * known, predicted.shape[-2:], mode="area") / weight.clamp(min=1e-6)
    return world.weighted_mean((predicted - truth).square().mean(1, keepdim=True), weight)


def main(argv: Sequence[str] | None = None) -> None:
    run_method(SplitBrainHha, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
