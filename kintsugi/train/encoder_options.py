"""The options of a training that choose its encoder and the weights from which it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.encoder_choice import OWN, Network, Stem, chosen
from kintsugi.nets.layers import Norm
from kintsugi.nets.pretrained import load_into
from kintsugi.nets.weight_files import HUBS, read_weights
from kintsugi.train import checkpoint
from kintsugi.train.config import TrainConfig
from kintsugi.train.dist import World

E = TypeVar("E", bound=Encoder)


@dataclass(frozen=True, kw_only=True)
class InitConfig(TrainConfig):
    """The option ``--init``."""

    init: str = ""
    """Start the encoder from weights: a FILE (.safetensors, .pth, .pt), a run's folder or checkpoint of any method,
    torchvision:NAME, timm:NAME or hf:OWNER/REPO."""

    @property
    def starts_from(self) -> str:
        """``--init``, or empty for a resumed run, which has its own weights."""
        return "" if self.resume else self.init

    def check_init(self, backbone: Network) -> Encoder:
        """Builds the encoder and reads the weights of ``--init`` into it. Returns it, in evaluation mode.

        For checks before anything is written: draws nothing from the global random numbers. Raises ValueError with one
        line if the network is unknown or the weights do not fit it.
        """
        with torch.random.fork_rng(devices=[]):
            encoder: Encoder = backbone.build().eval()
        if self.starts_from and int(os.environ.get("RANK", 0)) == 0:  # one process downloads
            load_into(encoder, initial_state(self.init), f"--init {self.init}")
        return encoder


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(InitConfig):
    """Options of every method that trains an encoder of the user's choice."""

    exact: ClassVar[bool] = False
    """Whether the method needs maps of exactly 1 / stride of the image's sides, as of networks that pad."""

    encoder: str = "resnet18"
    """resnet18, resnet50 or alexnet; another convolutional network of torchvision; or timm:NAME, a convolutional
    network or a vision transformer of timm, such as timm:vit_small_patch16_224."""
    norm: Norm = "batch"
    """Normalization of resnet18, resnet50 and alexnet. split: batch normalization, separately for each quarter of the
    batch. group: results do not depend on the batch or on how it is split over ranks."""
    encoder_patch: int = 0
    """Side of a vision transformer's patches, px, a power of two; 0 = its own."""

    @property
    def encoder_side(self) -> int:
        """Side of the images that the encoder sees, px."""
        return self.size

    @property
    def backbone(self) -> Network:
        """The encoder's settings. Raises ValueError with one line if options do not fit."""
        return chosen(self.encoder, self.norm, size=self.encoder_side, patch=self.encoder_patch)

    def check_encoder(self) -> None:
        """Builds the encoder and reads the weights of ``--init``, before anything is written.

        Raises ValueError with one line if the network is unknown or does not fit the method, or the weights not it.
        """
        backbone = self.backbone
        if self.encoder in OWN and not self.starts_from:  # these fit all methods
            return
        encoder = self.check_init(backbone)
        if self.encoder not in OWN:
            side = self.encoder_side
            with torch.no_grad():
                maps = encoder(torch.zeros(1, 3, side, side))
            if self.exact and any(x.shape[-2:] != (side // s, side // s) for s, x in maps.items()):
                raise ValueError(f"--encoder {self.encoder} has maps without padding, of odd sizes: choose another")
            self.fits(encoder)

    def fits(self, encoder: Encoder) -> None:
        """Raises ValueError with one line if the method cannot use this encoder.

        Not called for the networks of ``OWN``.
        """


@dataclass(frozen=True, kw_only=True)
class StemConfig(EncoderConfig):
    """Options of methods whose images may be so small that a ResNet needs another first layer."""

    stem: Stem = "large"
    """small, for ResNets: a 3x3 convolution without stride and pooling, for images of about 32 px."""

    @property
    def backbone(self) -> Network:
        return chosen(self.encoder, self.norm, self.stem, size=self.encoder_side, patch=self.encoder_patch)


def start_encoder(config: InitConfig, encoder: E, world: World, *, rgb: bool = True) -> E:
    """Loads the weights of ``--init`` into a fresh encoder, in place, and returns it. Does nothing without the option,
    or if the run is resumed. The main rank prints what matched, in one line.

    Call it before copies of the encoder are made. rgb: as of ``load_into``. Raises ValueError with one line.
    """
    if not config.starts_from:
        return encoder
    with world.main_first():
        match = load_into(encoder, initial_state(config.init), f"--init {config.init}", rgb=rgb)
    if world.is_main:
        note = "" if rgb else "; the first layer is fresh, as its input is not RGB"
        print(match.line(f"--init {config.init}") + note)
    return encoder


def initial_state(init: str) -> dict[str, Tensor]:
    """The tensors of the option ``--init``, by name. Raises ValueError with one line."""
    if init.partition(":")[0] in HUBS:
        return read_weights(init)
    path = checkpoint.resolve(Path(init).expanduser())
    return read_weights(checkpoint.find(path) if path.is_dir() else path)


def has_batch_norm(encoder: nn.Module) -> bool:
    """Whether an encoder's features of an image depend on the rest of the batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in encoder.modules())
