"""What features are worth for detection, against random weights of the same network.

``python -m kintsugi.eval.detection --ckpt runs/inpainting/latest --data scenes``

torchvision's Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) with the encoder as its body, through a feature pyramid
(Lin et al. 2017, arXiv:1612.03144). ``finetune`` trains all layers, ``frozen`` all but the encoder. The figure is the
average precision at an overlap of .5, averaged over classes; VOC's difficult boxes are neither learned nor measured.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from tqdm import tqdm

from kintsugi.data.boxes import Boxed, Things, open_boxes
from kintsugi.data.store import Store
from kintsugi.eval.cells import (
    Cell,
    Machine,
    Results,
    RunSettings,
    Subject,
    Task,
    named,
    settle_statistics,
    spaced,
    warmed,
)
from kintsugi.eval.report import Comparison, compare
from kintsugi.nets.encoder import Encoder
from kintsugi.rng import derive_seed, generator
from kintsugi.train.config import parse_command, user_errors, within

Protocol = Literal["frozen", "finetune"]
STRIDES = (4, 8, 16, 32)
FIGURES = {"frozen": "AP50, frozen", "finetune": "AP50, fine-tuned"}


@dataclass(frozen=True, kw_only=True)
class DetectionSettings(RunSettings):
    detection_protocols: tuple[Protocol, ...] = ("finetune",)
    """finetune: all layers are trained; frozen: all but the encoder."""
    detection_steps: int = 600
    """Steps of each detector."""
    detection_batch: int = 4
    """Images per step."""
    detection_lr: float = 3e-4
    """AdamW's highest rate, reached after a tenth of the steps and brought to 0 along a cosine."""
    detection_size: int = 0
    """Short side to which images are brought, px; 0 = 128 of scenes, 480 of photos."""
    detection_width: int = 128
    """Channels of the feature pyramid, a multiple of 32; the paper's is 256."""
    detection_scenes: int = 300
    """How many scenes to train on, with scenes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, detection_steps=1, detection_batch=1, detection_width=1, detection_scenes=1)
        if self.detection_width % 32:
            raise ValueError(f"--detection-width must be a multiple of 32, not {self.detection_width}")
        if self.detection_size < 0 or 0 < self.detection_size < 64:
            raise ValueError(f"--detection-size must be at least 64, or 0, not {self.detection_size}")


class Detection(Task):
    """data: voc2007, a folder laid out as VOC, or scenes."""

    def __init__(self, data: str, settings: DetectionSettings, machine: Machine) -> None:
        if importlib.util.find_spec("pycocotools") is None:
            raise ValueError("detection is measured by pycocotools, which is not installed: pip install pycocotools")
        self.data, self.given, self.machine = data, settings, machine
        self.size = settings.detection_size or (128 if data == "scenes" else 480)
        self.train, self.test = open_boxes(
            data, Store(cache=settings.cache), scenes=settings.detection_scenes, size=self.size
        )
        self.name = f"boxes in {named(data)}"
        self.protocols = settings.detection_protocols

    def settings(self) -> Mapping[str, Any]:
        given = self.given
        return {
            "data": self.data,
            "size": self.size,
            "images": [len(self.train), len(self.test)],
            "classes": list(self.train.classes),
            "training": [given.detection_steps, given.detection_batch, given.detection_lr, given.detection_width],
        }

    def cell(self, subject: Subject, protocol: str, seed: int) -> Cell:
        torch.manual_seed(derive_seed(seed, 3))  # the heads, and which anchors and proposals are looked at
        frozen = protocol == "frozen"
        width, classes = self.given.detection_width, len(self.train.classes)
        net = detector(subject.encoder(), classes, self.size, width, self.machine, frozen)
        fit(net, self.train, seed, self.given, self.machine)
        mean, each = average_precision(detect(net, self.test, self.machine), self.test)
        return Cell({FIGURES[protocol]: mean}, {"AP50 by class": each})


# --- network --------------------------------------------------------------------------------------------------


class Body(nn.Module):
    """An encoder and its feature pyramid: images (N,3,H,W) in [0,1], sides multiples of 32, -> maps of ``strides``,
    fine to coarse, float (N,``width``,H/stride,W/stride).

    Strides of 4 to 32 that the encoder lacks are its next finer map, averaged: every encoder gets the same heads. The
    encoder's batch norms keep their statistics, because batches are small; so the scale of its features, odd in random
    nets, is mended by the pyramid's group norms (He et al. 2019, arXiv:1811.08883).
    """

    def __init__(self, encoder: Encoder, machine: Machine, frozen: bool, width: int) -> None:
        super().__init__()
        self.encoder, self.machine, self.out_channels = encoder.requires_grad_(not frozen), machine, width
        self.source = {
            s: max(own for own in encoder.channels if own <= s) for s in STRIDES if s >= min(encoder.channels)
        }
        self.strides = [*self.source, 2 * STRIDES[-1]]
        self.pyramid = FeaturePyramidNetwork(
            [encoder.channels[own] for own in self.source.values()],
            width,
            LastLevelMaxPool(),
            norm_layer=partial(nn.GroupNorm, 32),
        )

    def train(self, mode: bool = True) -> Body:
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        with self.machine.autocast():
            features = self.encoder(image)
            maps = OrderedDict(
                (str(i), avg_pool2d(features[own], stride // own) if own < stride else features[own])
                for i, (stride, own) in enumerate(self.source.items())
            )
            found = self.pyramid(maps)
        return {name: value.float() for name, value in found.items()}  # boxes are computed in float32


def detector(encoder: Encoder, classes: int, size: int, width: int, machine: Machine, frozen: bool) -> FasterRCNN:
    """Faster R-CNN over ``Body``, on the machine. Class 0 of its own is the background.

    Deviations: two anchors an octave from 4 times the stride (the paper's: one, 8 times), as images are small. 128
    proposals of an image are learned from (64 in Fast R-CNN), 300 measured (as in the paper), where torchvision takes
    512 and 1000.
    """
    body = Body(encoder, machine, frozen, width)
    sizes = tuple((round(4 * stride), round(4 * 2**0.5 * stride)) for stride in body.strides)
    net = FasterRCNN(
        body,
        classes + 1,
        min_size=size,
        max_size=2 * size,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,  # the encoder normalizes inside
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=1000,
        rpn_post_nms_top_n_test=300,
        box_batch_size_per_image=128,
        box_score_thresh=0.01,
    )
    return net.to(machine.device)


# --- training and measuring -----------------------------------------------------------------------------------


def fit(net: FasterRCNN, train: Boxed, seed: int, given: DetectionSettings, machine: Machine) -> list[float]:
    """Trains all that is not frozen on mirrored images; the loss of each step."""
    some = spaced(len(train), 64).tolist()
    # One by one, as they may be of any size.
    settle_statistics(
        net.backbone.encoder, (net.transform([_image(train, i, machine)])[0].tensors for i in some), machine
    )
    net.train()
    optimizer = torch.optim.AdamW(
        [p for p in net.parameters() if p.requires_grad], given.detection_lr, weight_decay=1e-2
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmed(step, given.detection_steps))
    losses = []
    for step in tqdm(range(given.detection_steps), desc=f"detector, seed {seed}", leave=False, disable=None):
        random = generator(seed, step, 9)
        rows = torch.randint(len(train), (given.detection_batch,), generator=random).tolist()
        flips = (torch.rand(given.detection_batch, generator=random) < 0.5).tolist()
        images, targets = [], []
        for row, flip in zip(rows, flips, strict=True):
            image, things = _image(train, row, machine), train.things[row]
            images.append(image.flip(-1) if flip else image)
            targets.append(_target(mirrored(things) if flip else things, machine))
        loss = torch.stack(list(net(images, targets).values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def mirrored(things: Things) -> Things:
    """Left to right."""
    left, top, right, bottom = things.boxes.unbind(1)
    boxes = torch.stack([things.width - right, top, things.width - left, bottom], 1)
    return Things(things.width, boxes, things.labels, things.difficult)


def _image(images: Boxed, index: int, machine: Machine) -> Tensor:
    return images.read(index).to(machine.device).float() / 255


def _target(things: Things, machine: Machine) -> dict[str, Tensor]:
    """What Faster R-CNN is to find: what is not difficult, its classes counted from 1."""
    easy = ~things.difficult
    return {"boxes": things.boxes[easy].to(machine.device), "labels": things.labels[easy].to(machine.device) + 1}


@torch.no_grad()
def detect(net: FasterRCNN, images: Boxed, machine: Machine) -> list[dict[str, Tensor]]:
    """Of each image boxes (k,4) in its own px, labels (k,) and scores (k,) in [0,1], on the CPU."""
    net.eval()
    found = []
    for index in range(len(images)):
        (said,) = net([_image(images, index, machine)])
        found.append({"boxes": said["boxes"].cpu(), "labels": said["labels"].cpu() - 1, "scores": said["scores"].cpu()})
    return found


def average_precision(found: Sequence[Mapping[str, Tensor]], truth: Boxed) -> tuple[float, dict[str, float]]:
    """Average precision at an overlap of .5, in [0,1]: the mean over the classes that are there, and each class's.

    found: as ``detect`` gives. Precision is read at 101 recalls, as COCO does (VOC2007: at 11). Detections of difficult
    boxes count for nothing; as for COCO's crowds, what lies within one by half is a detection of it.
    """
    metric = MeanAveragePrecision(iou_thresholds=[0.5], class_metrics=True)
    metric.update(
        [dict(said) for said in found],
        [
            {"boxes": things.boxes, "labels": things.labels, "iscrowd": things.difficult.long()}
            for things in truth.things
        ],
    )
    figures = metric.compute()
    numbers = zip(figures["classes"].view(-1).tolist(), figures["map_per_class"].view(-1).tolist(), strict=True)
    # -1: there is none to be found.
    return figures["map"].item(), {truth.classes[i]: value for i, value in numbers if value >= 0}


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config(DetectionSettings, Comparison):
    """Transfer of a checkpoint's encoders to detection, against random init."""

    data: str = "scenes"
    """scenes, voc2007, or a folder with JPEGImages/, Annotations/ and ImageSets/Main/{trainval,test}.txt."""


def run(config: Config) -> Results:
    return compare(config, "detection", lambda machine, file: Detection(config.data, config, machine))


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
