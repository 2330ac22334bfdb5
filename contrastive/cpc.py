"""CPC: predict the lower rows of an image's patches from the upper ones (van den Oord et al. 2018, arXiv:1807.03748).

Section 3.3: the image is cut into a grid of overlapping patches, and each patch is encoded on its own. A causal
PixelCNN summarizes the rows above each position. From this context a matrix W_k predicts the patch ``k`` rows below,
which must be identified among other patches of the same image and of other images (eq. 4).

There is no batch norm, because batch statistics would give the answer away. Rows whose patches overlap those of the
context are not predicted.

Deviations: torchvision's ResNet with group norm instead of a ResNet v2 without norms; a patch's code comes from the
ResNet's last stage instead of its third, so that all of the transferred encoder is trained; patches are whole and in
color, where the authors' are gray and randomly cropped by a sixteenth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from kintsugi.augment import cropping
from kintsugi.contrastive.views import collapse_warning, spread_and_knn
from kintsugi.losses.infonce import info_nce, retrieval
from kintsugi.metrics.spread import spread
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import OWN, Network, Stem, chosen
from kintsugi.nets.layers import Norm
from kintsugi.pictures import sheet
from kintsugi.rng import generator
from kintsugi.train import inference
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import StemConfig, has_batch_norm, start_encoder
from kintsugi.train.method import Batch, Method


@dataclass(frozen=True, kw_only=True)
class CPCConfig(StemConfig):
    encoder: str = "resnet18"
    """resnet18 or resnet50 with group norm; another network of torchvision or timm:NAME that has no batch norm."""
    norm: Literal["group"] = "group"
    """CPC's only normalization: statistics of the batch would give the answer away."""
    stem: Stem = "small"
    """small: a 3x3 convolution without stride and pooling, for patches of about 16 px."""
    patch: int = 16
    """Side of a patch, px; neighboring patches overlap by half."""
    dim: int = 256
    """Width of a patch's code and of its context."""
    rows: int = 3
    """Number of rows predicted from each context, beginning with the first row that does not overlap it."""
    lr: float = 2e-4
    """Adam's learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, patch=2, dim=2, rows=1, lr=0)
        if self.patch % 2 or self.size % (self.patch // 2):
            raise ValueError(f"--size {self.size} must be a multiple of half of --patch {self.patch}, an even number")
        if self.grid < 4:
            raise ValueError(f"--size {self.size} has {self.grid} rows of patches: use a smaller --patch")

    @property
    def encoder_side(self) -> int:
        return self.patch

    @property
    def backbone(self) -> Network:
        norm: Norm = "group" if self.encoder in OWN else "batch"  # other networks keep their own norms
        return chosen(self.encoder, norm, self.stem, size=self.patch, patch=self.encoder_patch)

    def fits(self, encoder: Encoder) -> None:
        if has_batch_norm(encoder):
            raise ValueError(
                f"--encoder {self.encoder} has batch norms, whose statistics give CPC's answer away: use resnet18, "
                "resnet50, or a network without them, such as timm:convnext_atto"
            )

    @property
    def grid(self) -> int:
        """Number of patches along a side; 7 in the paper."""
        return 2 * self.size // self.patch - 1


def demo() -> CPCConfig:
    """Minutes on two CPU cores, on the built-in scenes: the paper's 7x7 grid, with patches of 16 px."""
    return CPCConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        stem="large",
        steps=300,
        batch=32,
        dim=128,
        lr=5e-4,
        show_every=100,
        eval_every=100,
        save_every=100,
    )


def small() -> CPCConfig:
    """One GPU, tens of minutes."""
    return CPCConfig(
        preset="small",
        batch=128,
        steps=20_000,
        lr=5e-4,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> CPCConfig:
    """The paper's sizes on ImageNet: 256 px, patches of 64 px."""
    return CPCConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="resnet50",
        stem="large",
        size=256,
        short_side=300,
        patch=64,
        dim=1024,
        rows=4,
        batch=128,
        steps=1_000_000,
        cache_gb=400,
        show_every=5_000,
        eval_every=10_000,
        save_every=10_000,
    )


def patches(image: Tensor, side: int) -> Tensor:
    """Overlapping patches (N,G,G,3,side,side) of squares (N,3,S,S), half a patch apart; G = 2 S / side - 1."""
    return image.unfold(2, side, side // 2).unfold(3, side, side // 2).permute(0, 2, 3, 1, 4, 5)


class CausalContext(nn.Module):
    """A PixelCNN on a grid (N,C,G,G): the output at (i,j) depends on rows 0..i only (appendix A.2)."""

    def __init__(self, channels: int, blocks: int = 5) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[CausalBlock(channels) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).relu()


class CausalBlock(nn.Module):
    """A residual block: a convolution along the row, then one with the row above; (N,C,G,G) -> (N,C,G,G)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.narrow = nn.Conv2d(channels, inner, 1)
        self.across = nn.Conv2d(inner, inner, (1, 3), padding=(0, 1))
        self.down = nn.Conv2d(inner, inner, (2, 1))
        self.wide = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.across(self.narrow(x).relu())
        y = self.down(pad(y, (0, 0, 1, 0))).relu()  # a row of zeros above: G + 1 rows -> G
        return x + self.wide(y)


class CPC(Method[CPCConfig]):
    """An encoder of patches, a PixelCNN that summarizes the rows above, and a matrix for each number of rows ahead."""

    name = "cpc"
    score = "accuracy"

    def __init__(self, config: CPCConfig, world: World) -> None:
        super().__init__(config, world)
        self.encoder: Encoder = start_encoder(config, config.backbone.build(), world)
        width = self.encoder.vector_length
        self.project = nn.Linear(width, config.dim)
        self.context = CausalContext(config.dim)
        self.first = 2  # row i + 1 overlaps row i, which is in the context
        self.predict = nn.ModuleList(nn.Conv2d(config.dim, config.dim, 1) for _ in self.steps_ahead)
        self.optimizers = {"all": torch.optim.Adam(self.parameters(), config.lr, fused=True)}

    @property
    def steps_ahead(self) -> range:
        """How many rows below its context each predicted row is."""
        return range(self.first, min(self.first + self.config.rows, self.config.grid))

    def inputs(self, batch: Batch, step: int) -> Batch:
        """This rank's random crops (n,3,S,S) in [0,1]."""
        count, random = len(batch["image"]) * self.world.size, generator(self.config.seed, step)
        return {"image": cropping.random_crops(batch, self.config.size, count, self.world.part(count), random)}

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        losses: list[Tensor] = []
        scalars: dict[str, Tensor] = {}
        codes, contrasts = self.contrasts(inputs["image"], all_ranks=True)
        for ahead, (logits, positive) in contrasts.items():
            losses.append(info_nce(logits, positive))
            if self.config.logs(step):
                figures = retrieval(logits, positive, 1.0)
                scalars |= {f"{name}_{ahead}_below": value for name, value in figures.items()}
        loss = torch.stack(losses).mean()
        self.world.backward(loss, self.optimizers["all"])
        if self.config.logs(step):
            scalars |= spread(codes.mean((2, 3)))
        return scalars | {"loss/info_nce": loss.detach(), **self.take_step("all", step)}

    def codes(self, image: Tensor) -> Tensor:
        """Codes of all patches, each computed from its patch alone: (N,3,S,S) -> (N,D,G,G)."""
        config = self.config
        count, grid = len(image), config.grid
        cut = patches(image, config.patch).flatten(0, 2)  # (N*G*G,3,p,p)
        with self.world.autocast():
            code = self.project(self.encoder.vectors(cut))  # (N*G*G,D)
        return code.float().view(count, grid, grid, -1).permute(0, 3, 1, 2)

    def contrasts(self, image: Tensor, *, all_ranks: bool = False) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
        """The codes (N,D,G,G); and rows ahead -> logits (M,K), as in eq. 4, and the positives' indices (M,), int64.

        There are M = N (G - ahead) G predictions. The K candidates are the codes at all positions of all images, with
        ``all_ranks`` also those of the other ranks.
        """
        grid = self.config.grid
        codes = self.codes(image)  # (N,D,G,G)
        with self.world.autocast():
            context = self.context(codes).float()
        mine = codes.permute(0, 2, 3, 1).flatten(0, 2)  # (n*G*G,D)
        candidates = self.world.gather(mine) if all_ranks else mine  # (N*G*G,D)
        places = torch.arange(len(mine), device=codes.device).view(len(image), grid, grid)
        if all_ranks:
            places = places + self.world.rank * len(mine)
        result = {}
        for ahead, predict in zip(self.steps_ahead, self.predict, strict=True):
            with self.world.autocast():
                prediction = predict(context[:, :, :-ahead]).float()  # (N,D,G-ahead,G)
            prediction = prediction.permute(0, 2, 3, 1).flatten(0, 2)  # (M,D)
            positive = places[:, ahead:].flatten()  # (M,)
            result[ahead] = (prediction @ candidates.T / prediction.shape[1] ** 0.5, positive)
        return codes, result

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        return collapse_warning(scalars)

    # --- pictures and held-out figures --------------------------------------------------------------------

    def centered(self, batch: Batch) -> Tensor:
        """The central squares of a batch's images, (n,3,S,S) in [0,1]."""
        return cropping.center_crops(batch, self.config.size)

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """The patches two rows below a context in the image's middle, and those that the network predicts there.

        Columns: image | true patches | for each place, the patch with the highest logit among those of all images.
        """
        image, config = self.centered(batch), self.config
        ahead = self.first
        logits, positive = self.contrasts(image)[1][ahead]
        grid = config.grid
        all_patches = patches(image, config.patch).flatten(0, 2)  # (N*G*G,3,p,p)
        row = (grid - ahead) // 2  # of the context
        shape = (len(image), grid - ahead, grid)
        truth, chosen = positive.view(shape)[:, row], logits.argmax(1).view(shape)[:, row]  # (N,G)

        def strip(numbers: Tensor) -> Tensor:
            """Patches with these numbers (N,G), side by side, with gray above and below: (N,3,S,S)."""
            line = all_patches[numbers].permute(0, 2, 3, 1, 4).flatten(3)  # (N,3,p,G*p)
            line = interpolate(line, (config.size // grid, config.size), mode="bilinear", antialias=True)
            above = (config.size - line.shape[2]) // 2
            return pad(line, (0, 0, above, config.size - line.shape[2] - above), value=0.5)

        columns = [image, strip(truth), strip(chosen)]
        return {"image | patches two rows below the context | patches predicted there": sheet(columns, zoom=2)}

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = self.centered(batch)
        return self.encoder.vectors(image).float(), image

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures on held-out images.

        loss: InfoNCE, nats. accuracy: how often a patch is identified among those of 16 images, per cent. Others:
        ``spread_and_knn``.
        """
        losses, hits, features, labels = [], [], [], []
        for batch in batches:
            image = self.centered(batch)
            for few in image.split(16):
                for logits, positive in self.contrasts(few)[1].values():
                    losses.append(info_nce(logits, positive).item())
                    hits.append(100 * (logits.argmax(1) == positive).float().mean().item())
            features.append(self.embed(batch)[0])
            labels += [batch["label"]] if "label" in batch else []
        figures = {"loss": sum(losses) / len(losses), "accuracy": sum(hits) / len(hits)}
        return figures | spread_and_knn(torch.cat(features), labels)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of pixels, and of a network with random weights (``spread_and_knn``)."""
        kept = list(batches)
        labels = [batch["label"] for batch in kept if "label" in batch]
        images = [self.centered(batch) for batch in kept]
        untrained = inference.untrained_features(self.encoder, self.config.seed, images, self.world)
        return {name: spread_and_knn(torch.cat([*map(extract, images)]), labels) for name, extract in untrained.items()}


def main(argv: Sequence[str] | None = None) -> None:
    run_method(CPC, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
