"""Frozen teachers for distillation: where their weights come from, and what they compute."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.published import load_published
from kintsugi.nets.specs import build_spec, digest
from kintsugi.train import checkpoint
from kintsugi.train.dist import World

SOURCES = (
    "timm:NAME or torchvision:NAME (downloaded), ARCHITECTURE=FILE with published weights, as in alexnet=FILE, "
    "or a run's folder or checkpoint"
)
"""What ``--teacher`` takes, for messages."""


class Features(NamedTuple):
    """A network's features of n images: one map, and one vector of each image."""

    map: Tensor  # (n,C,h,w)
    vector: Tensor  # (n,D)


class Teacher:
    """A frozen encoder. It is no module, so that its weights are in no checkpoint.

    stride: of the map that it returns; 0 = the coarsest. side: images are resized to this side, px, before it sees
    them. Raises ValueError with one line if the encoder has no such map, or does not take RGB.
    """

    def __init__(self, name: str, encoder: Encoder, stride: int, side: int, world: World) -> None:
        if encoder.planes != 3:
            raise ValueError(f"--teacher {name} does not take RGB images alone: use another teacher")
        strides = sorted(encoder.channels)
        if stride and stride not in strides:
            raise ValueError(f"--teacher-stride {stride}: {name} has {', '.join(map(str, strides))}, and 0 = the last")
        self.name, self.side, self.world = name, side, world
        self.stride = stride or strides[-1]
        self.channels, self.width = encoder.channels[self.stride], encoder.channels[strides[-1]]
        """Channels of the map, and length of the vector."""
        self.digest = digest(encoder.spec.plain(), encoder.state_dict())
        self.encoder = encoder.to(world.device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Features:
        """The features, float, of images (n,3,S,S) in [0,1].

        Raises ValueError with one line if ``side`` is too small for the network.
        """
        if image.shape[-1] != self.side:
            image = interpolate(image, (self.side, self.side), mode="bilinear", antialias=True)
        with self.world.autocast():
            maps = self.encoder(image)
            vector = self.encoder.vector(maps)
        return Features(maps[self.stride].float(), vector.float())


def load_teacher(teacher: str) -> tuple[str, Encoder]:
    """The name and the encoder of a teacher, with its weights, on the CPU.

    teacher: ``SOURCES``. Raises ValueError with one line if it cannot be loaded.
    """
    with torch.device("cpu"):
        return _loaded(teacher)


def _loaded(teacher: str) -> tuple[str, Encoder]:
    source, _, name = teacher.partition(":")
    if source in ("timm", "torchvision") and name:
        return name, _built(*_downloaded(source, name))
    architecture, equals, file = teacher.partition("=")
    if equals and not Path(teacher).exists():
        return architecture, _built(*load_published(architecture, Path(file).expanduser()))
    try:
        content = checkpoint.read(Path(teacher).expanduser())[1]
        return content["method"], checkpoint.encoder_of(content)[1]
    except ValueError as error:
        raise ValueError(f"--teacher {teacher}: {error}; a teacher is {SOURCES}") from None


def _built(spec: dict[str, Any], state: dict[str, Tensor]) -> Encoder:
    encoder = build_spec(spec)
    encoder.load_state_dict(state)
    return encoder


def _downloaded(source: str, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Downloads published weights, as ``load_published`` reads them. Raises ValueError with one line if it fails."""
    own = name if source == "torchvision" else f"timm/{name}"
    try:
        net = _from_hub(source, name)
    except Exception as error:  # an unknown name, no network, no access: each library raises its own kinds
        why = str(error).strip().splitlines()[0][:150] if str(error).strip() else ""
        raise ValueError(
            f"--teacher {source}:{name} could not be downloaded ({type(error).__name__}: {why}): check the name and "
            f"the network, or give a file of its weights with --teacher {own}=FILE"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(net.state_dict(), file)
        return load_published(own, file)


def _from_hub(source: str, name: str) -> nn.Module:
    if source == "torchvision":
        from torchvision.models import get_model  # imported here: slow, and --help does not need it

        return get_model(name, weights="DEFAULT")
    import timm

    return timm.create_model(name, pretrained=True)


class FeatureCache:
    """A teacher's features of every training image and of its mirror image, in half precision, on the CPU.

    Memory is taken when features are stored, not before. count: number of images. limit: bytes.
    """

    def __init__(self, count: int, limit: float) -> None:
        self.count, self.limit = count, limit
        self.known = torch.zeros(count, dtype=torch.bool)
        self.maps = self.vectors = torch.empty(0)

    def fits(self, of_one: Features) -> bool:
        """Whether the features of all images, each as large as ``of_one``, take less than the limit."""
        return 2 * 2 * self.count * sum(part[0].numel() for part in of_one) <= self.limit

    def store(self, index: Tensor, plain: Features, mirrored: Features) -> None:
        """Stores the features of the images ``index`` (n,), as they are and mirrored. Known ones stay as they are."""
        if not len(self.maps):
            self.maps, self.vectors = (
                torch.empty(self.count, 2, *part.shape[1:], dtype=torch.float16) for part in plain
            )
        new = ~self.known[index]
        for flip, features in enumerate((plain, mirrored)):
            self.maps[index[new], flip] = features.map.cpu()[new].half()
            self.vectors[index[new], flip] = features.vector.cpu()[new].half()
        self.known[index] = True

    def get(self, index: Tensor, flip: Tensor, device: torch.device) -> Features | None:
        """The features of the images ``index`` (n,), mirrored where ``flip`` (n,) is true; None if any is unknown."""
        if not bool(self.known[index].all()):
            return None
        side = flip.long()
        return Features(self.maps[index, side].to(device).float(), self.vectors[index, side].to(device).float())
