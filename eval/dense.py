"""The base of dense tasks, which predict something at every pixel.

A fully convolutional head (Long et al. 2015, arXiv:1411.4038) reads the maps of strides 8, 16 and 32. ``frozen`` trains
the head alone, on features computed once; ``finetune`` then trains all layers, on random crops or whole images.
Validation images are used once, at the end, in full size.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from kintsugi.eval.fcn import FCN, strides
from kintsugi.eval.minimize import all_layers, check_rates, layer_decay, minimize
from kintsugi.eval.results import Result
from kintsugi.eval.tasks import FrozenFeatures, RunSettings, Task, evenly_spaced
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import sheet
from kintsugi.rng import derive_seed, generator
from kintsugi.train.compute import Compute
from kintsugi.train.config import within
from kintsugi.train.inference import fit_batch_norms

Protocol = Literal["frozen", "finetune"]
TITLES = {"frozen": "frozen", "finetune": "fine-tuned"}
FEATURE_BYTES = 4e9  # limit on the kept features of training images
SHOWN = 6  # validation images in pictures

_HEAD, _CROPS, _ROWS = 0, 3, 4  # purposes of random numbers, the last part of their key


@dataclass(frozen=True, kw_only=True)
class DenseSettings(RunSettings):
    """Options of the dense tasks."""

    dense_protocols: tuple[Protocol, ...] = ("frozen", "finetune")
    """frozen: trains the head alone; finetune: then all layers too."""
    steps_frozen: int = 600
    """Steps of training the head alone."""
    steps_finetune: int = 300
    """Steps of training all layers."""
    batch_dense: int = 8
    """Images per step."""
    crop: int = 160
    """Side of the random crops on which segmentation trains all layers, px."""
    lr_frozen: float = 1e-2
    """AdamW's highest learning rate for the head; warm-up over a tenth of the steps, then down to 0 along a cosine."""
    lr_finetune: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """AdamW's highest learning rate for all layers, with the same schedule; the earlier blocks of pre-trained vision
    transformers have lower rates. If there are several, each is tried, and the best is chosen on a held-out tenth of
    the training images."""
    train_scenes: int = 400
    """Number of training scenes, if the data is scenes; a quarter as many others are for validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, steps_frozen=1, steps_finetune=1, batch_dense=1, crop=1, train_scenes=1)
        check_rates("--lr-finetune", self.lr_finetune)


@dataclass(frozen=True)
class Labeled:
    """``images`` uint8 (N,3,H,W) and ``targets`` (N,...,H,W), a label for every pixel."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of images and targets."""
        found = hashlib.blake2b(digest_size=8)
        for tensor in (self.images, self.targets):
            found.update(repr(tensor.shape).encode())
            found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()


# --- the task -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrozenMaps:
    """A frozen encoder's maps of training images and of their mirror images, and of the validation images.

    encoder: its batch norms are fitted to the training images. rows: indices of n training images, evenly spaced, as
    many as fit into ``FEATURE_BYTES``. maps: one (2n,C,h,w) for each of ``strides``, those of the images first. val:
    the same of the m validation images, (m,C,h,w). heads: seed -> the encoder with a head that was trained on these
    maps.
    """

    encoder: Encoder
    maps: list[Tensor]
    rows: Tensor
    val: list[Tensor]
    heads: dict[int, FCN] = field(default_factory=dict)


class DenseTask(Task):
    """A task with a label for every pixel. A subclass defines loss, prediction, figures and pictures.

    planes: K, the number of values that the network gives for each pixel.
    """

    def __init__(
        self, name: str, train: Labeled, val: Labeled, planes: int, config: DenseSettings, compute: Compute
    ) -> None:
        self.name, self.train, self.val, self.planes = name, train, val, planes
        self.config, self.compute = config, compute
        self.protocols = config.dense_protocols
        self.crop = config.crop
        self.shown = evenly_spaced(len(val), SHOWN)
        # Predictions for the shown images with seed 0, by weights and protocol.
        self._predictions: dict[tuple[str, str], Tensor] = {}
        self._baselines: dict[str, str | None] = {}  # weights in the pictures -> random weights of their network

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, 0-d, of the network's output (B,K,h,w), float, for targets (B,...,h,w)."""

    @abstractmethod
    def predict(self, output: Tensor) -> Tensor:
        """The network's output (B,K,H,W) as a prediction in the form of targets (B,...,H,W)."""

    @abstractmethod
    def score(self, prediction: Tensor, protocol: str) -> Result:
        """Figures of the predictions (N,...,H,W), on the CPU, for all validation images.

        The names of the figures begin with the protocol's title.
        """

    @abstractmethod
    def paint(self, targets: Tensor) -> list[Tensor]:
        """One or more pictures (n,3,H,W) in [0,1] of targets or predictions (n,...,H,W)."""

    def mirror(self, targets: Tensor) -> Tensor:
        """The targets (B,...,h,w) of the images mirrored left to right."""
        return targets.flip(-1)

    def settings(self, protocol: str) -> Mapping[str, Any]:
        config = self.config
        own = {"finetune": [config.steps_finetune, *config.lr_finetune, self.crop]} if protocol == "finetune" else {}
        return {
            "data": [self.train.digest, self.val.digest],
            "planes": self.planes,
            "batch": config.batch_dense,
            "frozen": [config.steps_frozen, config.lr_frozen],  # fine-tuning starts from the head of frozen
            **own,
        }

    def measure(self, features: FrozenFeatures, protocol: str, seed: int) -> Result:
        """Trains and measures. ``finetune`` starts from the head of ``frozen``, because a random head would spoil the
        features before it learns to use them (Kumar et al. 2022, arXiv:2202.10054)."""
        frozen = features.once(self.frozen_maps)
        if seed not in frozen.heads:
            frozen.heads[seed] = self._with_head(frozen, seed)
        net, details = frozen.heads[seed], {}
        if protocol == "finetune":
            net, details["learning rate"] = self._fine_tuned(net, seed, layer_decay(features.weights))
            prediction = self._predict_all(net, lambda rows: net(self._image(self.val.images[rows])))
        else:
            size = self.val.images.shape[-2:]
            prediction = self._predict_all(net, lambda rows: net.head([maps[rows] for maps in frozen.val], size))
        if seed == 0:
            weights = features.weights
            self._predictions[weights.name, protocol] = prediction[self.shown]
            if weights.states:
                self._baselines[weights.name] = weights.baseline
        result = self.score(prediction, protocol)
        return Result(result.figures, {**result.details, **details})

    def pictures(self) -> Mapping[str, Tensor]:
        found = {}
        for (weights, protocol), prediction in self._predictions.items():
            if weights in self._baselines:
                random = self._predictions.get((self._baselines[weights] or "", protocol))
                columns = [self.val.images[self.shown].float() / 255, *self.paint(self.val.targets[self.shown])]
                columns += self.paint(prediction) + ([] if random is None else self.paint(random))
                names = "input, truth, predicted" + ("" if random is None else ", by random weights")
                found[f"{weights}, {TITLES[protocol]}: {names}"] = sheet(columns)
        return found

    @torch.no_grad()
    def frozen_maps(self, encoder: Encoder) -> FrozenMaps:
        """Fits the encoder's batch norms, and computes its maps of the training images."""
        images, compute = self.train.images, self.compute
        some = evenly_spaced(len(images), 256).split(16)
        fit_batch_norms(encoder, (images[rows].float() / 255 for rows in some), compute)

        def maps_of(images: Tensor, mirror: bool = False) -> list[Tensor]:
            """The maps of some images, or of their mirror images: one (n,C,h,w) for each of ``strides``."""
            image = self._image(images)
            with compute.autocast():
                maps = encoder(image.flip(-1) if mirror else image)
            return [maps[stride].to(compute.dtype) for stride in strides(encoder)]

        size = 2 * sum(x.nbytes for x in maps_of(images[:1]))
        rows = evenly_spaced(len(images), max(1, int(FEATURE_BYTES // size)))
        batches = [
            maps_of(images[some], mirror)
            for mirror in (False, True)
            for some in tqdm(rows.split(8), desc="features", leave=False, disable=None)
        ]
        val = [maps_of(some) for some in self.val.images.split(8)]
        maps, val_maps = ([torch.cat(each) for each in zip(*found, strict=True)] for found in (batches, val))
        return FrozenMaps(encoder, maps, rows, val_maps)

    def _with_head(self, frozen: FrozenMaps, seed: int) -> FCN:
        """The frozen encoder with a head trained on its maps."""
        config, count = self.config, len(frozen.rows)
        torch.manual_seed(derive_seed(seed, _HEAD))
        net = FCN(frozen.encoder, self.planes).to(self.compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        net.train()

        def loss(step: int) -> Tensor:
            chosen = torch.randint(2 * count, (config.batch_dense,), generator=generator(seed, step, _ROWS))
            target = self.train.targets[frozen.rows[chosen % count]]
            target = self._mirror_some(target, chosen >= count).to(self.compute.device)
            places = chosen.to(self.compute.device)
            with self.compute.autocast():
                output = net.head([maps[places] for maps in frozen.maps], target.shape[-2:])
            return self.loss(output, target)

        minimize(net.scores.parameters(), loss, config.steps_frozen, config.lr_frozen, f"head, seed {seed}")
        return net

    def _fine_tuned(self, start: FCN, seed: int, decay: float) -> tuple[FCN, float]:
        """A copy of the network, all of whose layers were trained, and the learning rate.

        Each rate is tried. Chosen is the one with the lowest loss on the last tenth of the training images, which is
        held out: the last, because neighbors are often frames of one film. One rate alone trains on all images.
        """
        count, rates = len(self.train), self.config.lr_finetune
        kept = max(1, count - max(1, count // 10)) if len(rates) > 1 else count
        held_out = torch.arange(kept, count)
        best, chosen, lowest = None, rates[0], math.inf
        for lr in rates:
            net = copy.deepcopy(start)
            self._train_all(net, kept, seed, lr, decay)
            loss = self._mean_loss(net, held_out) if len(held_out) else 0.0
            if best is None or loss < lowest:  # never true for NaN
                best, chosen, lowest = net, lr, math.inf if math.isnan(loss) else loss
        assert best is not None
        return best, chosen

    def _train_all(self, net: FCN, count: int, seed: int, lr: float, decay: float) -> None:
        """Trains all layers, on random crops of the first ``count`` images. decay: as of ``all_layers``."""
        net.train()

        def loss(step: int) -> Tensor:
            image, target = self.random_crops(count, seed, step)
            with self.compute.autocast():
                output = net(image)
            return self.loss(output, target)

        title = f"all layers, seed {seed}, rate {lr:g}"
        minimize(all_layers(net, net.encoder, decay), loss, self.config.steps_finetune, lr, title)

    @torch.no_grad()
    def _mean_loss(self, net: FCN, rows: Tensor) -> float:
        """The mean loss of the training images ``rows``, in full size."""
        net.eval()
        total = torch.zeros((), device=self.compute.device)
        for some in rows.split(8):
            with self.compute.autocast():
                output = net(self._image(self.train.images[some]))
            total += len(some) * self.loss(output, self.train.targets[some].to(self.compute.device))
        return total.item() / len(rows)

    def random_crops(self, count: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """A step's random crops of the first ``count`` images, mirrored at random: images (B,3,c,c) in [0,1], targets
        (B,...,c,c)."""
        random, batch = generator(seed, step, _CROPS), self.config.batch_dense
        height, width = self.train.images.shape[-2:]
        tall, wide = min(self.crop, height), min(self.crop, width)
        chosen = torch.randint(count, (batch,), generator=random)
        tops = torch.randint(height - tall + 1, (batch,), generator=random)
        lefts = torch.randint(width - wide + 1, (batch,), generator=random)
        flip = torch.rand(batch, generator=random) < 0.5
        windows = [
            (i, ..., slice(top, top + tall), slice(left, left + wide))
            for i, top, left in torch.stack([chosen, tops, lefts], 1).tolist()
        ]
        image = torch.stack([self.train.images[window] for window in windows])
        image = torch.where(flip[:, None, None, None], image.flip(-1), image)
        target = self._mirror_some(torch.stack([self.train.targets[window] for window in windows]), flip)
        return self._image(image), target.to(self.compute.device)

    def _mirror_some(self, targets: Tensor, flip: Tensor) -> Tensor:
        """``mirror`` for the targets (B,...,h,w) where ``flip``, bool (B,)."""
        return torch.where(flip.view(-1, *[1] * (targets.ndim - 1)), self.mirror(targets), targets)

    def _image(self, images: Tensor) -> Tensor:
        """Images uint8 (n,3,H,W) as the network's input, in [0,1], on the device."""
        return images.to(self.compute.device, memory_format=torch.channels_last).float() / 255

    @torch.no_grad()
    def _predict_all(self, net: FCN, output: Callable[[Tensor], Tensor]) -> Tensor:
        """Predictions for all validation images, in the form of targets, on the CPU. ``output``: indices of validation
        images -> the network's output (n,K,H,W)."""
        net.eval()
        found = []
        for rows in torch.arange(len(self.val)).split(8):
            with self.compute.autocast():
                found.append(self.predict(output(rows)).cpu())
        return torch.cat(found)
