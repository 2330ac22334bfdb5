"""Transfer of features to semantic segmentation, against random weights of the same network.

``python -m kintsugi.eval.segmentation --ckpt runs/inpainting/latest --data scenes``

The figure is mean IoU over classes. On clips, where foreground is separated from background, it is the J of DAVIS.
Protocols and network: ``kintsugi.eval.dense``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_confusion_matrix

from kintsugi.data.pairs import VOID, MaskedImages, open_clips, open_pairs
from kintsugi.data.store import Store
from kintsugi.eval.dense import TITLES, DenseSettings, DenseTask, Labeled
from kintsugi.eval.report import Comparison, compare
from kintsugi.eval.results import Result, Results
from kintsugi.eval.tasks import data_name, evenly_spaced
from kintsugi.rng import generator
from kintsugi.train.compute import Compute
from kintsugi.train.config import parse_command, user_errors

FRAMES = 400  # limit on the frames of all training clips together: neighbors are nearly alike


class _PixelClasses(DenseTask):
    """Predicts a class for every pixel. Targets: uint8 (N,H,W), class indices, 255 = void."""

    def __init__(
        self, title: str, train: MaskedImages, val: MaskedImages, config: DenseSettings, compute: Compute
    ) -> None:
        self.classes = train.classes
        first, second = (Labeled(pairs.images, pairs.targets) for pairs in (train, val))
        super().__init__(title, first, second, len(self.classes), config, compute)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return pixel_loss(output, target)

    def predict(self, output: Tensor) -> Tensor:
        return output.argmax(1).byte()

    def paint(self, targets: Tensor) -> list[Tensor]:
        """One color per class; void is black."""
        palette = torch.rand(256, 3, generator=generator(11))
        palette[VOID] = 0
        return [palette[targets.long()].permute(0, 3, 1, 2)]


class Segmentation(_PixelClasses):
    """Semantic segmentation. data: as in ``kintsugi.data.pairs.open_pairs``. void: the class id to ignore, besides 255.

    Figure: mean IoU over the classes of the validation images. Details: the IoU of each class.
    """

    def __init__(self, data: str, config: DenseSettings, compute: Compute, void: int = VOID) -> None:
        store = Store(cache=config.cache)
        train, val = (
            open_pairs(data, split, store, void=void, scenes=config.train_scenes) for split in ("train", "val")
        )
        if len(val.classes) > len(train.classes):
            raise ValueError(
                f"--data {data}: val has class ids up to {len(val.classes) - 1}, train only up to "
                f"{len(train.classes) - 1}; is --void {void} the id of void?"
            )
        super().__init__(f"segmentation {data_name(data)}", train, val, config, compute)

    def score(self, prediction: Tensor, protocol: str) -> Result:
        mean, each = mean_iou(prediction, self.val.targets, self.planes)
        return Result({f"{TITLES[protocol]} mIoU": mean}, {"IoU": dict(zip(self.classes, each, strict=True))})


class FigureGround(_PixelClasses):
    """Foreground and background in clips. data: as in ``kintsugi.data.pairs.open_clips``.

    Whole clips are held out; training takes up to ``FRAMES`` frames of the others, evenly spaced. Figure: DAVIS' J
    (Perazzi et al. 2016, CVPR), the mean over held-out clips. Details: J of each clip.
    """

    def __init__(self, data: str, config: DenseSettings, compute: Compute) -> None:
        train, val = (open_clips(data, part) for part in ("train", "val"))
        some = evenly_spaced(len(train), FRAMES)
        fewer = MaskedImages(train.images[some], train.targets[some], train.classes)
        self.clips = val.clips
        super().__init__(f"figure-ground {data_name(data)}", fewer, val, config, compute)

    def score(self, prediction: Tensor, protocol: str) -> Result:
        each = region_similarity(prediction, self.val.targets, self.clips)
        return Result({f"{TITLES[protocol]} J": statistics.fmean(each.values())}, {"J": each})


def pixel_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that are not void, 0-d; 0 if all are. Logits (B,K,H,W), class ids (B,H,W)."""
    total = cross_entropy(logits, target.long(), ignore_index=VOID, reduction="sum")
    return total / (target != VOID).sum().clamp(min=1)


def mean_iou(prediction: Tensor, target: Tensor, classes: int) -> tuple[float, list[float | None]]:
    """Intersection over union, in [0,1]: the mean over the classes present in ``target``, and each class's (None =
    absent).

    Both (N,H,W), class ids. Void pixels, 255 in ``target``, are ignored.
    """
    confusion = torch.zeros(classes, classes, dtype=torch.long)  # truth x prediction
    for predicted, truth in zip(prediction.split(16), target.split(16), strict=True):  # they are large as int64
        confusion += multiclass_confusion_matrix(predicted.long(), truth.long(), classes, ignore_index=VOID)
    hits, present = confusion.diagonal(), confusion.sum(1)
    union = present + confusion.sum(0) - hits
    each = [(hits[k] / union[k]).item() if present[k] > 0 else None for k in range(classes)]
    return statistics.fmean(value for value in each if value is not None), each


def region_similarity(prediction: Tensor, target: Tensor, clips: Sequence[str]) -> dict[str, float]:
    """Clip -> J, the mean over its frames of the foreground's intersection over union, in [0,1].

    A frame without foreground in prediction and target counts 1. Both (N,H,W): 0 = background, 1 = foreground; 255 in
    ``target`` = void, which is ignored. clips: the name of each frame's clip, N names.
    """
    predicted, truth, known = prediction == 1, target == 1, target != VOID
    both, either = ((x & known).sum((1, 2)) for x in (predicted & truth, predicted | truth))  # (N,)
    overlap = torch.where(either > 0, both / either.clamp(min=1), 1.0).tolist()
    return {
        clip: statistics.fmean(j for j, of in zip(overlap, clips, strict=True) if of == clip)
        for clip in dict.fromkeys(clips)
    }


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(DenseSettings, Comparison):
    """Transfer of a checkpoint's encoders to segmentation, against random weights."""

    data: str = "scenes"
    """scenes, voc2012, a folder with {train,val}/{images,masks}, or one with frames/CLIP/ and masks/CLIP/."""
    void: int = VOID
    """The class id to ignore in the masks; in CamVid it is mostly 11."""


def run(config: SegmentationConfig) -> Results:
    """Runs the experiments, prints the table and writes the report; returns the results."""

    def task(compute: Compute, file: Path) -> DenseTask:
        if (Path(config.data).expanduser() / "frames").is_dir():
            return FigureGround(config.data, config, compute)
        return Segmentation(config.data, config, compute, config.void)

    return compare(config, "segmentation", task)


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(SegmentationConfig, argv))


if __name__ == "__main__":
    main()
