"""What tasks share that say something of each pixel: a fully convolutional head (Long et al. 2015, arXiv:1411.4038) on
the maps of strides 8, 16 and 32.

``frozen`` trains the head alone, on features computed once; ``finetune`` then trains all layers, on random crops or
whole images.
Validation images are used once, at the end, in their full size.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from kintsugi.eval.cells import Cell, Machine, RunSettings, Subject, Task, settle_statistics, spaced, warmed
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import sheet
from kintsugi.rng import derive_seed, generator
from kintsugi.train.config import within

Protocol = Literal["frozen", "finetune"]
TITLES = {"frozen": "frozen", "finetune": "fine-tuned"}
STRIDES = (8, 16, 32)
FEATURE_BYTES = 4e9  # what is kept of the features of training images, at the most
PICTURED = 6  # validation images

_HEAD, _CROPS, _ROWS = 0, 3, 4  # what random numbers are for, the last part of their key


@dataclass(frozen=True, kw_only=True)
class DenseSettings(RunSettings):
    dense_protocols: tuple[Protocol, ...] = ("frozen", "finetune")
    """frozen: the head alone is trained; finetune: then all layers too."""
    steps_frozen: int = 600
    """Steps of the head alone."""
    steps_finetune: int = 300
    """Steps of all layers."""
    batch_dense: int = 8
    """Images per step."""
    crop: int = 160
    """Side of the random crops on which segmentation trains all layers, px."""
    lr_frozen: float = 1e-2
    """AdamW's highest rate for the head, reached after a tenth of the steps and brought to 0 along a cosine."""
    lr_finetune: float = 3e-4
    """The same for all layers."""
    train_scenes: int = 400
    """How many scenes to train on, with a quarter as many others to validate on, where scenes are the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, steps_frozen=1, steps_finetune=1, batch_dense=1, crop=1, train_scenes=1)


@dataclass(frozen=True)
class Labeled:
    """``images`` uint8 (N,3,H,W) and what is known of their pixels, ``targets`` (N,...,H,W)."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def digest(self) -> str:
        found = hashlib.blake2b(digest_size=8)
        for part in (self.images, self.targets):
            found.update(repr(part.shape).encode())
            found.update(part.contiguous().numpy().data)
        return found.hexdigest()


# --- network --------------------------------------------------------------------------------------------------


class FCN(nn.Module):
    """Encoder and head: RGB (N,3,H,W) in [0,1] -> K numbers a pixel, float (N,K,H,W)."""

    def __init__(self, encoder: Encoder, planes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.strides = strides(encoder)
        # Each map is normalized first, so that the scale of its features, odd in random nets, is no handicap.
        self.scores = nn.ModuleDict(
            {
                str(s): nn.Sequential(nn.BatchNorm2d(encoder.channels[s]), nn.Conv2d(encoder.channels[s], planes, 1))
                for s in self.strides
            }
        )

    def forward(self, image: Tensor) -> Tensor:
        features = self.encoder(image)
        return self.head([features[s] for s in self.strides], image.shape[-2:])

    def head(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """From the coarsest score map to the finest, each enlarged to the next and added (FCN-8s)."""
        total: Tensor | None = None
        for stride, features in reversed(list(zip(self.strides, maps, strict=True))):
            score = self.scores[str(stride)](features).float()
            if total is not None:
                score = score + enlarged(total, score.shape[-2:])
            total = score
        assert total is not None
        return enlarged(total, size)


def strides(encoder: Encoder) -> list[int]:
    """Of the maps that a head reads, fine to coarse: 8, 16 and 32, those that there are, or else the coarsest."""
    return [s for s in STRIDES if s in encoder.channels] or [max(encoder.channels)]


def enlarged(image: Tensor, size: Sequence[int]) -> Tensor:
    """``interpolate(image, size, mode="bilinear")`` of (N,C,h,w) float as two matrix products, rows @ image @ columns:
    its backward pass on a CPU, torch's own takes most of the time that training a head takes."""
    with torch.autocast(image.device.type, enabled=False):
        columns, rows = (
            interpolate(torch.eye(now, device=image.device)[None], new, mode="linear")[0]  # (now,new)
            for now, new in ((image.shape[-1], size[-1]), (image.shape[-2], size[-2]))
        )
        return rows.mT @ (image @ columns)


# --- the task -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frozen:
    """An encoder with the statistics of the training images, and its maps (2n,C,h,w) of n of these, evenly spaced, and
    of their mirror images: all that fits into ``FEATURE_BYTES``. ``heads``: those trained on them so far, by seed."""

    encoder: Encoder
    maps: list[Tensor]
    rows: Tensor
    """(n,) which images."""
    heads: dict[int, FCN] = field(default_factory=dict)


class DenseTask(Task):
    """A subclass says how ill an output is, what it predicts, what that is worth, and how it looks.

    planes: K, the numbers of each pixel that the network gives.
    """

    def __init__(
        self, name: str, train: Labeled, val: Labeled, planes: int, settings: DenseSettings, machine: Machine
    ) -> None:
        self.name, self.train, self.val, self.planes = name, train, val, planes
        self.given, self.machine = settings, machine
        self.protocols = settings.dense_protocols
        self.crop = settings.crop
        self.shown = spaced(len(val), PICTURED)
        self._predicted: dict[tuple[str, str], Tensor] = {}  # of the shown images: row, protocol -> seed 0's
        self._base: dict[str, str | None] = {}  # rows of which pictures are made -> random weights of their network

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Of what the network gives (B,K,h,w), float, for targets (B,...,h,w)."""

    @abstractmethod
    def predicted(self, output: Tensor) -> Tensor:
        """(B,K,H,W) -> in the form of targets."""

    @abstractmethod
    def measured(self, prediction: Tensor, protocol: str) -> Cell:
        """Of all validation images, on the CPU; figures begin with the protocol's title."""

    @abstractmethod
    def painted(self, targets: Tensor) -> list[Tensor]:
        """One or more pictures (n,3,H,W) in [0,1] of targets or predictions (n,...,H,W)."""

    def mirrored(self, targets: Tensor) -> Tensor:
        """Those of mirror images."""
        return targets.flip(-1)

    def settings(self) -> Mapping[str, Any]:
        given = self.given
        return {
            "data": [self.train.digest, self.val.digest],
            "planes": self.planes,
            "batch": given.batch_dense,
            "frozen": [given.steps_frozen, given.lr_frozen],
            "finetune": [given.steps_finetune, given.lr_finetune, self.crop],
        }

    def cell(self, subject: Subject, protocol: str, seed: int) -> Cell:
        """``finetune`` begins where ``frozen`` ends: a head that is still random would spoil the features it is given
        before it can use them (Kumar et al. 2022, arXiv:2202.10054)."""
        frozen = subject.once(self.frozen)
        if seed not in frozen.heads:
            frozen.heads[seed] = self._with_head(frozen, seed)
        net = frozen.heads[seed]
        if protocol == "finetune":
            net = copy.deepcopy(net)
            self._train_all(net, seed)
        prediction = self._predict(net)
        if seed == 0:
            self._predicted[subject.row.name, protocol] = prediction[self.shown]
            if subject.row.state is not None:
                self._base[subject.row.name] = subject.row.base
        return self.measured(prediction, protocol)

    def pictures(self) -> Mapping[str, Tensor]:
        found = {}
        for (row, protocol), predicted in self._predicted.items():
            if row in self._base:
                random = self._predicted.get((self._base[row] or "", protocol))
                columns = [self.val.images[self.shown].float() / 255, *self.painted(self.val.targets[self.shown])]
                columns += self.painted(predicted) + ([] if random is None else self.painted(random))
                names = "input, truth, predicted" + ("" if random is None else ", by random weights")
                found[f"{row}, {TITLES[protocol]}: {names}"] = sheet(columns)
        return found

    @torch.no_grad()
    def frozen(self, encoder: Encoder) -> Frozen:
        images, machine = self.train.images, self.machine
        some = spaced(len(images), 256).split(16)
        settle_statistics(encoder, (images[rows].float() / 255 for rows in some), machine)

        def maps_of(rows: Tensor, mirror: bool) -> list[Tensor]:
            image = images[rows].to(machine.device, memory_format=torch.channels_last).float() / 255
            with machine.autocast():
                maps = encoder(image.flip(-1) if mirror else image)
            return [maps[stride].to(machine.dtype) for stride in strides(encoder)]

        size = 2 * sum(x.nbytes for x in maps_of(torch.tensor([0]), mirror=False))
        rows = spaced(len(images), max(1, int(FEATURE_BYTES // size)))
        parts = [
            maps_of(part, mirror)
            for mirror in (False, True)
            for part in tqdm(rows.split(8), desc="features", leave=False, disable=None)
        ]
        return Frozen(encoder, [torch.cat(maps) for maps in zip(*parts, strict=True)], rows)

    def _with_head(self, frozen: Frozen, seed: int) -> FCN:
        """The frozen encoder with a head trained on its features."""
        given, count = self.given, len(frozen.rows)
        torch.manual_seed(derive_seed(seed, _HEAD))
        net = FCN(frozen.encoder, self.planes).to(self.machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        net.train()

        def loss(step: int) -> Tensor:
            chosen = torch.randint(2 * count, (given.batch_dense,), generator=generator(seed, step, _ROWS))
            target = self.train.targets[frozen.rows[chosen % count]]
            target = self._where_flipped(target, chosen >= count).to(self.machine.device)
            places = chosen.to(self.machine.device)
            with self.machine.autocast():
                output = net.head([maps[places] for maps in frozen.maps], target.shape[-2:])
            return self.loss(output, target)

        _descend(net.scores, loss, given.steps_frozen, given.lr_frozen, f"head, seed {seed}")
        return net

    def _train_all(self, net: FCN, seed: int) -> None:
        net.train()

        def loss(step: int) -> Tensor:
            image, target = self.crops(seed, step)
            with self.machine.autocast():
                output = net(image)
            return self.loss(output, target)

        _descend(net, loss, self.given.steps_finetune, self.given.lr_finetune, f"all layers, seed {seed}")

    def crops(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """A step's random crops, mirrored at random: images (B,3,c,c) in [0,1], targets (B,...,c,c)."""
        random, count = generator(seed, step, _CROPS), self.given.batch_dense
        height, width = self.train.images.shape[-2:]
        tall, wide = min(self.crop, height), min(self.crop, width)
        chosen = torch.randint(len(self.train), (count,), generator=random)
        tops = torch.randint(height - tall + 1, (count,), generator=random)
        lefts = torch.randint(width - wide + 1, (count,), generator=random)
        flip = torch.rand(count, generator=random) < 0.5
        windows = [
            (i, ..., slice(top, top + tall), slice(left, left + wide))
            for i, top, left in torch.stack([chosen, tops, lefts], 1).tolist()
        ]
        image = torch.stack([self.train.images[window] for window in windows])
        image = torch.where(flip[:, None, None, None], image.flip(-1), image)
        target = self._where_flipped(torch.stack([self.train.targets[window] for window in windows]), flip)
        device = self.machine.device
        image = image.to(device, memory_format=torch.channels_last)
        return image.float() / 255, target.to(device)

    def _where_flipped(self, targets: Tensor, flip: Tensor) -> Tensor:
        return torch.where(flip.view(-1, *[1] * (targets.ndim - 1)), self.mirrored(targets), targets)

    @torch.no_grad()
    def _predict(self, net: FCN) -> Tensor:
        net.eval()
        found = []
        for images in self.val.images.split(8):
            image = images.to(self.machine.device, memory_format=torch.channels_last).float() / 255
            with self.machine.autocast():
                output = net(image)
            found.append(self.predicted(output).cpu())
        return torch.cat(found)


def _descend(part: nn.Module, loss: Callable[[int], Tensor], steps: int, lr: float, title: str) -> None:
    """Trains ``part`` by the loss of each step."""
    optimizer = torch.optim.AdamW(part.parameters(), lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmed(step, steps))
    for step in tqdm(range(steps), desc=title, leave=False, disable=None):
        loss(step).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
