"""Frozen teachers for distillation: where their weights come from, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.pretrained import load_published
from kintsugi.nets.specs import digest
from kintsugi.train import checkpoint
from kintsugi.train.dist import World

SOURCES = (
    "timm:NAME or torchvision:NAME (downloaded), ENCODER=SOURCE with published weights, as in alexnet=FILE, "
    "or a run's folder or checkpoint"
)
"""What ``--teacher`` takes, for messages."""


class TeacherFeatures(NamedTuple):
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
    def __call__(self, image: Tensor) -> TeacherFeatures:
        """The features, float, of images (n,3,S,S) in [0,1].

        Raises ValueError with one line if ``side`` is too small for the network.
        """
        if image.shape[-1] != self.side:
            image = interpolate(image, (self.side, self.side), mode="bilinear", antialias=True)
        with self.world.autocast():
            maps = self.encoder(image)
            vector = self.encoder.vector(maps)
        return TeacherFeatures(maps[self.stride].float(), vector.float())


def load_teacher(teacher: str) -> tuple[str, Encoder]:
    """The name and the encoder of a teacher, with its weights, on the CPU.

    teacher: ``SOURCES``. Raises ValueError with one line if it cannot be loaded.
    """
    with torch.device("cpu"):
        return _loaded(teacher)


def _loaded(teacher: str) -> tuple[str, Encoder]:
    hub, _, version = teacher.partition(":")
    network, equals, weights = teacher.partition("=")
    if equals and not Path(teacher).exists():
        return network, load_published(network, weights)[0]
    if hub in ("timm", "torchvision") and version:
        bare = version.partition(".")[0]  # a name such as resnet50.a1_in1k says which of several trainings
        return version, load_published(f"timm:{bare}" if hub == "timm" else bare, teacher)[0]
    try:
        content = checkpoint.read(Path(teacher).expanduser())[1]
        return content["method"], checkpoint.encoder_of(content)[1]
    except ValueError as error:
        raise ValueError(f"--teacher {teacher}: {error}; a teacher is {SOURCES}") from None


class Standardize(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation; both are set from a sample."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def fit(self, features: Sequence[Tensor]) -> None:
        """Takes mean and deviation from features (n,C,...), each of a batch.

        A channel that hardly varies, less than a tenth of the channels' mean, counts as varying that much.
        """
        values = [each.transpose(0, 1).flatten(1) for each in features]  # (C,n*h*w)
        count = sum(each.shape[1] for each in values)
        mean = torch.stack([each.sum(1) for each in values]).sum(0) / count
        square = torch.stack([(each - mean[:, None]).square().sum(1) for each in values]).sum(0) / count
        std = square.sqrt()
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=max(0.1 * std.mean().item(), 1e-6)))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N,C,...) -> standardized, of the same shape."""
        shape = (1, -1, *[1] * (features.ndim - 2))
        return (features - self.mean.view(shape)) / self.std.view(shape)


class FeatureCache:
    """A teacher's features of every training image and of its mirror image, in half precision, on the CPU.

    Memory is taken when features are first stored. count: number of images. limit: bytes; features that would take more
    are not kept.
    """

    def __init__(self, count: int, limit: float) -> None:
        self.count, self.limit = count, limit
        self.known = torch.zeros(count, dtype=torch.bool)
        self.kept: TeacherFeatures | None = None
        """(count,2,C,h,w) and (count,2,D); the second dimension: as it is, mirrored."""

    def features(self, index: Tensor, flip: Tensor, compute: Callable[[Tensor], TeacherFeatures]) -> TeacherFeatures:
        """The features of the images ``index`` (n,), mirrored where ``flip`` (n,) is true.

        compute: gives them for a ``flip``. It is called for all images of the batch, once as they are and once
        mirrored, if one of them is new. So the teacher always sees batches of one size, and a resumed run computes the
        same.
        """
        if self.limit == 0:
            return compute(flip)
        if not bool(self.known[index].all()):
            both = [compute(torch.full_like(flip, side)) for side in (False, True)]
            if 2 * 2 * self.count * sum(part[0].numel() for part in both[0]) > self.limit:
                self.limit = 0
                return compute(flip)
            self._store(index, both)
        assert self.kept is not None
        map, vector = (part[index, flip.long()].to(self.device).float() for part in self.kept)
        return TeacherFeatures(map, vector)

    def _store(self, index: Tensor, both: Sequence[TeacherFeatures]) -> None:
        """Stores features of the images ``index`` (n,), as they are and mirrored. Known ones stay as they are."""
        if self.kept is None:
            self.device = both[0].map.device
            map, vector = (torch.empty(self.count, 2, *part.shape[1:], dtype=torch.half) for part in both[0])
            self.kept = TeacherFeatures(map, vector)
        new = ~self.known[index]
        for flip, features in enumerate(both):
            for kept, part in zip(self.kept, features, strict=True):
                kept[index[new], flip] = part.cpu()[new].half()
        self.known[index] = True
