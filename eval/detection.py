"""Transfer of features to object detection, against random weights of the same network.

``python -m kintsugi.eval.detection --ckpt runs/inpainting/latest --data scenes``

torchvision's Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) on the encoder, through a feature pyramid (Lin et al.
2017, arXiv:1612.03144). ``finetune`` trains all layers, ``frozen`` all but the encoder. The figure is average precision
at an overlap of .5, mean over classes; VOC's difficult boxes are ignored in training and in measuring.

Deviations: two anchor sizes per octave, from 4 times the stride on (the paper's: one, 8 times), because images are
small. Per image the loss takes 128 proposals (Fast R-CNN: 64) and 300 are measured (as in the paper), where torchvision
takes 512 and 1000.
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

from kintsugi.data.boxes import Boxed, Things, open_boxes
from kintsugi.data.store import Store
from kintsugi.eval.minimize import all_layers, layer_decay, minimize
from kintsugi.eval.report import Comparison, compare
from kintsugi.eval.results import Result, Results
from kintsugi.eval.tasks import FrozenFeatures, RunSettings, Task, data_name, evenly_spaced
from kintsugi.nets.encoder import Encoder
from kintsugi.rng import derive_seed, generator
from kintsugi.train.compute import Compute
from kintsugi.train.config import parse_command, user_errors, within
from kintsugi.train.inference import fit_batch_norms

Protocol = Literal["frozen", "finetune"]
STRIDES = (4, 8, 16, 32)
FIGURES = {"frozen": "AP50, frozen", "finetune": "AP50, fine-tuned"}


@dataclass(frozen=True, kw_only=True)
class DetectionSettings(RunSettings):
    """Options of detection."""

    detection_protocols: tuple[Protocol, ...] = ("finetune",)
    """finetune: trains all layers; frozen: all but the encoder."""
    detection_steps: int = 600
    """Steps of each detector."""
    detection_batch: int = 4
    """Images per step."""
    detection_lr: float = 3e-4
    """AdamW's highest learning rate; warm-up over a tenth of the steps, then down to 0 along a cosine."""
    detection_size: int = 0
    """Short side to which images are resized, px; 0 = 128 for scenes, 480 for photos."""
    detection_width: int = 128
    """Channels of the feature pyramid, a multiple of 32; the paper's is 256."""
    detection_scenes: int = 300
    """Number of training scenes, if the data is scenes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, detection_steps=1, detection_batch=1, detection_width=1, detection_scenes=1)
        if self.detection_width % 32:
            raise ValueError(f"--detection-width must be a multiple of 32, not {self.detection_width}")
        if self.detection_size < 0 or 0 < self.detection_size < 64:
            raise ValueError(f"--detection-size must be at least 64, or 0, not {self.detection_size}")


class Detection(Task):
    """Predicts boxes and their classes. data: voc2007, a folder laid out as VOC, or scenes.

    Raises ValueError with one line if pycocotools is missing or the data cannot be used.
    """

    def __init__(self, data: str, config: DetectionSettings, compute: Compute) -> None:
        if importlib.util.find_spec("pycocotools") is None:
            raise ValueError("detection needs pycocotools, which is not installed: pip install pycocotools")
        self.data, self.config, self.compute = data, config, compute
        self.size = config.detection_size or (128 if data == "scenes" else 480)
        self.train, self.test = open_boxes(
            data, Store(cache=config.cache), scenes=config.detection_scenes, size=self.size
        )
        self.name = f"boxes in {data_name(data)}"
        self.protocols = config.detection_protocols

    def settings(self, protocol: str) -> Mapping[str, Any]:
        config = self.config
        return {
            "data": self.data,
            "size": self.size,
            "images": [len(self.train), len(self.test)],
            "classes": list(self.train.classes),
            "training": [config.detection_steps, config.detection_batch, config.detection_lr, config.detection_width],
        }

    def measure(self, features: FrozenFeatures, protocol: str, seed: int) -> Result:
        torch.manual_seed(derive_seed(seed, 3))  # for the heads, and for sampling anchors and proposals
        frozen = protocol == "frozen"
        width, classes = self.config.detection_width, len(self.train.classes)
        net = detector(features.encoder(), classes, self.size, width, self.compute, frozen)
        fit(net, self.train, seed, self.config, self.compute, layer_decay(features.weights))
        mean, each = average_precision(detect(net, self.test, self.compute), self.test)
        return Result({FIGURES[protocol]: mean}, {"AP50 by class": each})


# --- network --------------------------------------------------------------------------------------------------


class Body(nn.Module):
    """An encoder and its feature pyramid.

    Images (N,3,H,W) in [0,1], with sides that are multiples of 32 -> maps of ``strides``, fine to coarse, float
    (N,``width``,H/stride,W/stride).

    If the encoder lacks a stride from 4 to 32, its next finer map is averaged, so that every encoder has the same
    heads. The encoder's batch norms keep their statistics, because batches are small. The pyramid's group norms
    normalize the features (He et al. 2019, arXiv:1811.08883), which have an unusual scale in random networks.
    """

    def __init__(self, encoder: Encoder, compute: Compute, frozen: bool, width: int) -> None:
        super().__init__()
        self.encoder, self.compute, self.out_channels = encoder.requires_grad_(not frozen), compute, width
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
        with self.compute.autocast():
            features = self.encoder(image)
            maps = OrderedDict(
                (str(i), avg_pool2d(features[own], stride // own) if own < stride else features[own])
                for i, (stride, own) in enumerate(self.source.items())
            )
            found = self.pyramid(maps)
        return {name: value.float() for name, value in found.items()}  # boxes are computed in float32


def detector(encoder: Encoder, classes: int, size: int, width: int, compute: Compute, frozen: bool) -> FasterRCNN:
    """Faster R-CNN over ``Body``, on the device. Its class 0 is the background; ``classes`` does not count it.

    size: short side to which images are resized, px. width: channels of the feature pyramid.
    """
    body = Body(encoder, compute, frozen, width)
    sizes = tuple((round(4 * stride), round(4 * 2**0.5 * stride)) for stride in body.strides)
    net = FasterRCNN(
        body,
        classes + 1,
        min_size=size,
        max_size=2 * size,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,  # the encoder itself normalizes
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=1000,
        rpn_post_nms_top_n_test=300,
        box_batch_size_per_image=128,
        box_score_thresh=0.01,
    )
    return net.to(compute.device)


# --- training and measuring -----------------------------------------------------------------------------------


def fit(
    net: FasterRCNN, train: Boxed, seed: int, config: DetectionSettings, compute: Compute, decay: float = 1.0
) -> Tensor:
    """Trains the layers that are not frozen, on images mirrored at random. Returns the loss of every step, (steps,).

    decay: as of ``all_layers``.
    """
    some = evenly_spaced(len(train), 64).tolist()
    # One by one, because they differ in size.
    fit_batch_norms(
        net.backbone.encoder, (net.transform([_image(train, i, compute)])[0].tensors for i in some), compute
    )
    net.train()
    batch = config.detection_batch

    def loss(step: int) -> Tensor:
        random = generator(seed, step, 9)
        rows = torch.randint(len(train), (batch,), generator=random).tolist()
        flips = (torch.rand(batch, generator=random) < 0.5).tolist()
        images, targets = [], []
        for row, flip in zip(rows, flips, strict=True):
            image, things = _image(train, row, compute), train.things[row]
            images.append(image.flip(-1) if flip else image)
            targets.append(_target(mirrored(things) if flip else things, compute))
        return torch.stack(list(net(images, targets).values())).sum()

    groups = all_layers(net, net.backbone.encoder, decay)
    return minimize(groups, loss, config.detection_steps, config.detection_lr, f"detector, seed {seed}")


def mirrored(things: Things) -> Things:
    """The things in the image mirrored left to right."""
    left, top, right, bottom = things.boxes.unbind(1)
    boxes = torch.stack([things.width - right, top, things.width - left, bottom], 1)
    return Things(things.width, boxes, things.labels, things.difficult)


def _image(images: Boxed, index: int, compute: Compute) -> Tensor:
    """One image (3,H,W) in [0,1], on the device."""
    return images.read(index).to(compute.device).float() / 255


def _target(things: Things, compute: Compute) -> dict[str, Tensor]:
    """A target for Faster R-CNN: the things that are not difficult, with classes counted from 1."""
    easy = ~things.difficult
    return {"boxes": things.boxes[easy].to(compute.device), "labels": things.labels[easy].to(compute.device) + 1}


@torch.no_grad()
def detect(net: FasterRCNN, images: Boxed, compute: Compute) -> list[dict[str, Tensor]]:
    """For each image, boxes (k,4) in its own px, labels (k,) and scores (k,) in [0,1], on the CPU."""
    net.eval()
    found = []
    for index in range(len(images)):
        (one,) = net([_image(images, index, compute)])
        found.append({"boxes": one["boxes"].cpu(), "labels": one["labels"].cpu() - 1, "scores": one["scores"].cpu()})
    return found


def average_precision(found: Sequence[Mapping[str, Tensor]], truth: Boxed) -> tuple[float, dict[str, float]]:
    """Average precision at an overlap (IoU) of .5, in [0,1]: the mean over the classes that are present, and by class.

    found: what ``detect`` returns. Precision is taken at 101 recalls, as in COCO (VOC2007: at 11). Detections of
    difficult boxes are ignored; as with COCO's crowds, a detection belongs to such a box if half of it lies inside.
    """
    metric = MeanAveragePrecision(iou_thresholds=[0.5], class_metrics=True)
    metric.update(
        [dict(one) for one in found],
        [
            {"boxes": things.boxes, "labels": things.labels, "iscrowd": things.difficult.long()}
            for things in truth.things
        ],
    )
    figures = metric.compute()
    by_class = zip(figures["classes"].view(-1).tolist(), figures["map_per_class"].view(-1).tolist(), strict=True)
    # -1 stands for classes that no image shows.
    return figures["map"].item(), {truth.classes[i]: value for i, value in by_class if value >= 0}


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(DetectionSettings, Comparison):
    """Transfer of a checkpoint's encoders to detection, against random weights."""

    data: str = "scenes"
    """scenes, voc2007, or a folder with JPEGImages/, Annotations/ and ImageSets/Main/{trainval,test}.txt."""


def run(config: DetectionConfig) -> Results:
    """Runs the experiments, prints the table and writes the report; returns the results."""
    return compare(config, "detection", lambda compute, file: Detection(config.data, config, compute))


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(DetectionConfig, argv))


if __name__ == "__main__":
    main()
