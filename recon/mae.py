"""Masked autoencoder: predict the pixels of masked patches from the visible ones (He et al. 2021, arXiv:2111.06377).

Three quarters of an image's patches are masked at random. The encoder, a vision transformer, computes the visible
patches only. A light decoder gets their tokens and a mask token for each masked patch, and predicts the pixels. The
loss is the mean squared error in masked patches. After training the decoder is discarded. Positions are fixed sines and
cosines in both. Settings are the authors' (github.com/facebookresearch/mae).

Deviations, each with its reason:
- The demo and the small preset have small patches, a decoder of few narrow blocks and a higher learning rate, because
  their images are small and their runs short.
- Tokens have no weight decay; in the authors' code they do, and timm's networks are trained without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kintsugi.augment import cropping
from kintsugi.fill.classical import CLASSICAL
from kintsugi.fill.membrane import membrane
from kintsugi.nets.patch_grid import cut, holes, joined, patch_means, patch_statistics
from kintsugi.nets.published import bare_name
from kintsugi.nets.vit import ViT, ViTEncoder, fixed_positions
from kintsugi.recon.masked_images import MaskedMethod
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import InitConfig, start_encoder
from kintsugi.train.method import Batch
from kintsugi.upload import upload

BETAS = (0.9, 0.95)  # AdamW's, the authors'
_CROPS, _MASKS = 0, 1  # keys of random numbers
_HEAD = 32  # channels of each of the decoder's attention heads, as in the paper


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MAEConfig(InitConfig):
    encoder: str = "timm:vit_tiny_patch16_224"
    """A vision transformer of timm. Its patches and positions become those of --patch and --size."""
    patch: int = 8
    """Side of a patch, px, a power of two."""
    mask_ratio: float = 0.75
    """Fraction of the patches that are masked; the number of visible ones is rounded down."""
    norm_pix: bool = False
    """Normalize the target of each patch by its own mean and standard deviation: better features. Pictures and figures
    then use the truth's mean and deviation of each patch."""
    decoder_depth: int = 2
    """Blocks of the decoder."""
    decoder_width: int = 128
    """Channels of the decoder, a multiple of 32."""
    smallest_crop: float = 0.2
    """Smallest fraction of an image's area that a crop shows."""
    lr: float = 1.5e-4
    """AdamW's highest learning rate, per 256 images of the batch."""
    weight_decay: float = 0.05
    """AdamW's weight decay; norms, biases and tokens have none."""
    warmup: int = 50
    """Steps over which the learning rate rises; after them it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, patch=1, mask_ratio=(0, 1), decoder_depth=1, smallest_crop=cropping.SMALLEST_CROP)
        within(self, decoder_width=_HEAD, lr=0, weight_decay=0, warmup=0)
        if self.decoder_width % _HEAD:
            raise ValueError(f"--decoder-width {self.decoder_width}: use a multiple of {_HEAD}")
        if self.size % self.patch:
            raise ValueError(f"--size {self.size}: use a multiple of --patch, {self.patch} px")
        if not 0 < self.visible < self.patches:
            raise ValueError(
                f"--mask-ratio {self.mask_ratio:g} leaves {self.visible} of {self.patches} patches visible: "
                f"use one that leaves 1 to {self.patches - 1}"
            )

    @property
    def grid(self) -> int:
        """Patches along each side."""
        return self.size // self.patch

    @property
    def patches(self) -> int:
        """L, the patches of each image."""
        return self.grid**2

    @property
    def visible(self) -> int:
        """K, the visible patches of each image."""
        return int(self.patches * (1 - self.mask_ratio))

    @property
    def vit(self) -> ViT:
        return ViT(bare_name(self.encoder), self.size, self.patch)


def demo() -> MAEConfig:
    """Minutes on two CPU cores, built-in scenes."""
    return MAEConfig(preset="demo", scenes=2048, short_side=80, steps=2500, batch=32, lr=16e-3, warmup=100)


def small() -> MAEConfig:
    """One GPU, tens of minutes."""
    return MAEConfig(
        preset="small",
        size=96,
        batch=256,
        steps=20_000,
        scenes=50_000,
        decoder_depth=4,
        decoder_width=192,
        lr=1e-3,
        warmup=1_000,
        show_every=1_000,
        eval_every=2_000,
        save_every=2_000,
    )


def paper() -> MAEConfig:
    """The paper's ViT-B/16 on ImageNet: batch 4096, 800 epochs, of which 40 are the warm-up."""
    return MAEConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="timm:vit_base_patch16_224",
        size=224,
        short_side=256,
        patch=16,
        norm_pix=True,
        decoder_depth=8,
        decoder_width=512,
        batch=4096,
        steps=250_000,
        warmup=12_500,
        cache_gb=400,
        show_every=5_000,
        eval_every=10_000,
        save_every=10_000,
    )


# --- masks --------------------------------------------------------------------------------------------------


def shuffled(noise: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    """Random masks from noise (N,L): the ``visible`` patches with the least noise stay.

    Returns their indices (N,visible), and ``restore`` (N,L): the place of each patch among the shuffled ones, of which
    the first ``visible`` are visible. Both int64.
    """
    order = noise.argsort(dim=1, stable=True)
    return order[:, :visible], order.argsort(1)


# --- networks -------------------------------------------------------------------------------------------------


class PatchDecoder(nn.Module):
    """Tokens of the visible patches (N,P+K,D) -> predicted pixels of all patches (N,L,3*patch*patch), float.

    P prefix tokens (class, registers) come first. Predictions at visible patches are not trained.
    """

    positions: Tensor

    def __init__(self, width_in: int, prefix: int, grid: int, patch: int, width: int, depth: int) -> None:
        from timm.models.vision_transformer import Block  # imported here: slow, and --help does not need it

        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(width_in, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", fixed_positions(grid, width), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, width // _HEAD, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * patch**2)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """restore: as ``shuffled`` returns it."""
        x = self.embed(tokens)
        prefix, seen = x[:, : self.prefix], x[:, self.prefix :]  # (N,P,W), (N,K,W)
        hidden = self.mask_token.expand(len(x), restore.shape[1] - seen.shape[1], -1)
        every = torch.cat([seen, hidden], 1).gather(1, restore[:, :, None].expand(-1, -1, x.shape[2]))  # (N,L,W)
        x = self.blocks(torch.cat([prefix, every + self.positions], 1))
        return self.pixels(self.norm(x[:, self.prefix :])).float()


def initialize(encoder: ViTEncoder, decoder: PatchDecoder) -> None:
    """The authors' initial weights, and the encoder's fixed positions, in place."""
    for layer in [*encoder.modules(), *decoder.modules()]:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    net = encoder.net
    nn.init.xavier_uniform_(net.patch_embed.proj.weight.data.flatten(1))  # as a linear layer's
    for token in (net.cls_token, net.reg_token, decoder.mask_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    encoder.fix_positions()


# --- losses ---------------------------------------------------------------------------------------------------


def targets(patches: Tensor, norm_pix: bool) -> Tensor:
    """What is predicted for patches (N,L,P) of normalized images: their pixels; with norm_pix, normalized by patch."""
    if not norm_pix:
        return patches
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def masked_loss(predicted: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error in masked patches, 0-d. predicted, target: (N,L,P). masked: bool (N,L)."""
    return ((predicted - target).square().mean(2) * masked).sum() / masked.sum()


# --- the method -----------------------------------------------------------------------------------------------


class MAE(MaskedMethod[MAEConfig]):
    """A vision transformer that computes visible patches only, and a decoder that predicts the masked ones."""

    name = "mae"
    shardable = True
    title = "visible | predicted | truth"
    encoder: ViTEncoder

    def __init__(self, config: MAEConfig, world: World) -> None:
        super().__init__(config, world)
        self.encoder = config.vit.build()
        prefix = self.encoder.net.num_prefix_tokens
        width, depth = config.decoder_width, config.decoder_depth
        self.decoder = PatchDecoder(self.encoder.width, prefix, config.grid, config.patch, width, depth)
        initialize(self.encoder, self.decoder)
        start_encoder(config, self.encoder, world)
        nets = nn.ModuleList([self.encoder, self.decoder])
        groups = optim.decay_groups(nets, config.weight_decay)
        self.rate = config.lr * config.batch / 256  # the highest learning rate
        self.optimizers["both"] = torch.optim.AdamW(groups, self.rate, BETAS, fused=True)

    @classmethod
    def check(cls, config: MAEConfig) -> None:
        config.check_init(config.vit)

    def inputs(self, batch: Batch, step: int) -> Batch:
        """This rank's random crops (n,3,S,S) in [0,1], and noise (n,L) for their masks."""
        config, count = self.config, self.config.batch
        random, mine = generator(config.seed, step, _CROPS), self.world.part(count)
        image = cropping.random_crops(batch, config.size, count, mine, random, config.smallest_crop)
        return {"image": image, "noise": upload(image.device, self.draw(count, step)[mine])[0]}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        config, image = self.config, inputs["image"]
        self.train()
        predicted, masked = self.predict(image, inputs["noise"])
        loss = masked_loss(predicted, targets(self.patches(image), config.norm_pix), masked)
        self.world.backward(loss, self.optimizers["both"])
        optim.set_lr(self.optimizers["both"], self.rate * optim.warmup_cosine(step, config.steps, config.warmup))
        return {"loss/pixels": loss.detach(), **self.take_step("both", step)}

    def draw(self, count: int, *key: int) -> Tensor:
        """Noise (count,L) for ``key``, from which ``shuffled`` makes masks; on the CPU."""
        return torch.rand(count, self.config.patches, generator=generator(self.config.seed, *key, _MASKS))

    def predict(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts the patches, (N,L,P), from the visible ones. Returns also which were masked, bool (N,L)."""
        kept, restore = shuffled(noise, self.config.visible)
        with self.world.autocast():
            predicted = self.decoder(self.encoder.tokens(image, kept), restore)
        return predicted, restore >= self.config.visible

    def patches(self, image: Tensor) -> Tensor:
        """The patches (N,L,P) of images (N,3,S,S) in [0,1], normalized as the encoder's input."""
        return cut(self.encoder.normalized(image), self.config.patch)

    # --- pictures and figures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(self, image: Tensor, noise: Tensor) -> Tensor:
        """The predicted image, (N,3,S,S) in [0,1]; with norm_pix it has the truth's statistics of each patch."""
        patches, _ = self.eval().predict(image, noise)
        if self.config.norm_pix:
            mean, deviation = patch_statistics(self.patches(image))
            patches = patches * deviation + mean
        return (joined(patches, self.config.patch) * self.encoder.std + self.encoder.mean).clamp(0, 1)

    def mask(self, noise: Tensor) -> Tensor:
        """The mask that noise (N,L) makes, float (N,1,S,S), 1 = masked."""
        return holes(shuffled(noise, self.config.visible)[1] >= self.config.visible, self.config.size)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of fills without learning: the mean color of the visible patches, and smooth interpolations of them.

        membrane: each masked pixel is the mean of its neighbors. With norm_pix, also each patch in its own true mean,
        because the predictions then have the truth's statistics.
        """
        every, patch = list(batches), self.config.patch
        paints = {name: self.with_fill(fill) for name, fill in {**CLASSICAL, "membrane": membrane}.items()}
        if self.config.norm_pix:
            paints["mean of each patch"] = lambda image, noise: patch_means(image, patch)
        return {name: self.figures(every, paint) for name, paint in paints.items()}


def main(argv: Sequence[str] | None = None) -> None:
    run_method(MAE, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
