"""What a checkpoint's features are worth for segmentation, against random weights of the same network.

``python -m kintsugi.eval.segmentation --ckpt runs/inpainting/latest --data scenes``

Classes of pixels, by mean IoU; or, on clips, figure and ground. Protocols and network: ``kintsugi.eval.dense``.
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
from kintsugi.eval.cells import Cell, Machine, Results, named, spaced
from kintsugi.eval.dense import TITLES, DenseSettings, DenseTask, Labeled
from kintsugi.eval.report import Comparison, compare
from kintsugi.rng import generator
from kintsugi.train.config import parse_command, user_errors

FRAMES = 400  # of all training clips, at the most: neighbors are nearly alike


class _OfClasses(DenseTask):
    def __init__(
        self, title: str, train: MaskedImages, val: MaskedImages, settings: DenseSettings, machine: Machine
    ) -> None:
        self.classes = train.classes
        first, second = (Labeled(pairs.images, pairs.targets) for pairs in (train, val))
        super().__init__(title, first, second, len(self.classes), settings, machine)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return pixel_loss(output, target)

    def predicted(self, output: Tensor) -> Tensor:
        return output.argmax(1).byte()

    def painted(self, targets: Tensor) -> list[Tensor]:
        """Void is black."""
        palette = torch.rand(256, 3, generator=generator(11))
        palette[VOID] = 0
        return [palette[targets.long()].permute(0, 3, 1, 2)]


class Segmentation(_OfClasses):
    """data: as ``kintsugi.data.pairs.open_pairs``. void: the class id that counts for nothing.

    Figure: mean IoU over the classes of the validation images. Details: the IoU of each class.
    """

    def __init__(self, data: str, settings: DenseSettings, machine: Machine, void: int = VOID) -> None:
        store = Store(cache=settings.cache)
        train, val = (
            open_pairs(data, split, store, void=void, scenes=settings.train_scenes) for split in ("train", "val")
        )
        if len(val.classes) > len(train.classes):
            raise ValueError(
                f"--data {data}: val has class ids up to {len(val.classes) - 1}, train only up to "
                f"{len(train.classes) - 1}; is --void {void} the id of void?"
            )
        super().__init__(f"segmentation {named(data)}", train, val, settings, machine)

    def measured(self, prediction: Tensor, protocol: str) -> Cell:
        mean, each = mean_iou(prediction, self.val.targets, self.planes)
        return Cell({f"{TITLES[protocol]} mIoU": mean}, {"IoU": dict(zip(self.classes, each, strict=True))})


class FigureGround(_OfClasses):
    """data: as ``kintsugi.data.pairs.open_clips``, of which some clips are held out whole; up to ``FRAMES`` frames of
    the others, evenly spaced, are trained on.

    Figure: DAVIS' J (Perazzi et al. 2016, CVPR), the mean over held-out clips. Details: J of each.
    """

    def __init__(self, data: str, settings: DenseSettings, machine: Machine) -> None:
        train, val = (open_clips(data, split, Store(cache=settings.cache)) for split in ("train", "val"))
        some = spaced(len(train), FRAMES)
        fewer = MaskedImages(train.images[some], train.targets[some], train.classes)
        self.clips = val.clips
        super().__init__(f"figure-ground {named(data)}", fewer, val, settings, machine)

    def measured(self, prediction: Tensor, protocol: str) -> Cell:
        each = region_similarity(prediction, self.val.targets, self.clips)
        return Cell({f"{TITLES[protocol]} J": statistics.fmean(each.values())}, {"J": each})


def pixel_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of logits (B,K,H,W) for class ids (B,H,W), over the pixels that are not void; 0 if all are."""
    total = cross_entropy(logits, target.long(), ignore_index=VOID, reduction="sum")
    return total / (target != VOID).sum().clamp(min=1)


def mean_iou(prediction: Tensor, target: Tensor, classes: int) -> tuple[float, list[float | None]]:
    """Mean over the classes present in ``target`` (N,H,W) of intersection over union, and each class's (None = absent).

    Void pixels (255) count for nothing.
    """
    confusion = torch.zeros(classes, classes, dtype=torch.long)  # truth x prediction
    for said, truth in zip(prediction.split(16), target.split(16), strict=True):  # as int64 they are large
        confusion += multiclass_confusion_matrix(said.long(), truth.long(), classes, ignore_index=VOID)
    hits, present = confusion.diagonal(), confusion.sum(1)
    union = present + confusion.sum(0) - hits
    each = [(hits[k] / union[k]).item() if present[k] > 0 else None for k in range(classes)]
    return statistics.fmean(value for value in each if value is not None), each


def region_similarity(prediction: Tensor, target: Tensor, clips: Sequence[str]) -> dict[str, float]:
    """Clip -> J: the mean over its frames (N,H,W) of the foreground's intersection over union; 1 where neither has any.

    0 = background, 1 = foreground, 255 = void, which counts for nothing. clips: each frame's, N names.
    """
    said, truth, known = prediction == 1, target == 1, target != VOID
    both, either = ((x & known).sum((1, 2)) for x in (said & truth, said | truth))  # (N,)
    overlap = torch.where(either > 0, both / either.clamp(min=1), 1.0).tolist()
    return {
        clip: statistics.fmean(j for j, of in zip(overlap, clips, strict=True) if of == clip)
        for clip in dict.fromkeys(clips)
    }


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config(DenseSettings, Comparison):
    """Transfer of a checkpoint's encoders to segmentation, against random init."""

    data: str = "scenes"
    """scenes, voc2012, a folder with {train,val}/{images,masks}, or one with frames/CLIP/ and masks/CLIP/."""
    void: int = VOID
    """The class id in the masks that counts for nothing (CamVid's is 11, mostly)."""


def run(config: Config) -> Results:
    def task(machine: Machine, file: Path) -> DenseTask:
        if (Path(config.data).expanduser() / "frames").is_dir():
            return FigureGround(config.data, config, machine)
        return Segmentation(config.data, config, machine, config.void)

    return compare(config, "segmentation", task)


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
