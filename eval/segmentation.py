"""What a checkpoint's features are worth for segmentation, against random weights of the same network.

``python -m eval.segmentation --ckpt runs/inpainting/latest --data scenes``

A fully convolutional head (Long et al. 2015, arXiv:1411.4038) reads the maps of strides 8, 16 and 32.
``frozen`` trains the head alone, on features computed once; ``finetune`` trains all layers, on random crops. Every
cell is run with the same settings from the checkpoint's weights and from random ones, on several seeds, which set the
head, the order, the crops and the random weights. Validation images are used once, at the end, in their full size.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.functional.classification import multiclass_confusion_matrix
from tqdm import tqdm

from core.data.pairs import VOID, Pairs, open_pairs
from core.nets.encoder import Encoder
from core.rng import generator, mixed
from core.sheet import sheet
from core.train.config import parse_command, to_plain, user_errors
from eval.cells import (
    WEIGHTS,
    Machine,
    Results,
    at,
    build,
    markdown,
    saved_encoders,
    settle_statistics,
    spaced,
    warmed,
)

Protocol = Literal["frozen", "finetune"]
STRIDES = (8, 16, 32)
FEATURE_BYTES = 4e9  # what the frozen protocol keeps of features, at the most


@dataclass(frozen=True)
class Config:
    """Transfer of a checkpoint's encoders to segmentation, against random init."""

    ckpt: Path = Path("runs/inpainting/latest")
    """A run's folder or a checkpoint."""
    data: str = "scenes"
    """scenes, voc2012, or a folder with {train,val}/{images,masks}."""
    void: int = VOID
    """The class id in the masks that counts for nothing (CamVid here: 11)."""
    roles: tuple[str, ...] = ()
    """Which encoders: generator, discriminator; default all that the checkpoint has."""
    protocols: tuple[Protocol, ...] = ("frozen", "finetune")
    """frozen: the head alone is trained; finetune: then all layers too."""
    seeds: int = 3
    """How many times each cell is run."""
    steps_frozen: int = 600
    """Steps of the head alone."""
    steps_finetune: int = 300
    """Steps of all layers."""
    batch: int = 8
    """Images per step."""
    crop: int = 160
    """Side of the random training crops, px."""
    lr_frozen: float = 1e-2
    """AdamW's highest rate for the head, reached after a tenth of the steps and brought to 0 along a cosine."""
    lr_finetune: float = 3e-4
    """The same for all layers."""
    scenes: int = 400
    """How many scenes to train on, with --data scenes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU, fp32 elsewhere. bf16 also pays on CPUs with AMX."""
    out: Path | None = None
    """Folder for the results; default: segmentation-DATA in the run's folder."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps_frozen", "steps_finetune", "batch", "crop", "scenes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")


# --- network --------------------------------------------------------------------------------------------------


class FCN(nn.Module):
    """Encoder and head: RGB (N,3,H,W) in [0,1] -> class logits (N,K,H,W)."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.strides = [s for s in STRIDES if s in encoder.channels] or [max(encoder.channels)]
        # Each map is normalised first, so that the scale of its features, odd in random nets, is no handicap.
        self.scores = nn.ModuleDict(
            {
                str(s): nn.Sequential(
                    nn.BatchNorm2d(encoder.channels[s]), nn.Conv2d(encoder.channels[s], classes, 1)
                )
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


def enlarged(image: Tensor, size: Sequence[int]) -> Tensor:
    """``interpolate(image, size, mode="bilinear")`` of (N,C,h,w) float as two matrix products, rows @ image @ columns:
    its backward pass on a CPU, torch's own takes most of the time that training a head takes."""
    with torch.autocast(image.device.type, enabled=False):
        columns, rows = (
            interpolate(torch.eye(now, device=image.device)[None], new, mode="linear")[0]  # (now,new)
            for now, new in ((image.shape[-1], size[-1]), (image.shape[-2], size[-2]))
        )
        return rows.mT @ (image @ columns)


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


# --- training one cell ----------------------------------------------------------------------------------------


def segment(
    encoder: Encoder,
    protocol: Protocol,
    train: Pairs,
    val: Pairs,
    seed: int,
    config: Config,
    machine: Machine,
) -> tuple[float, list[float | None], Tensor]:
    """Trains one cell; its mean IoU and per-class IoU on ``val``, and its predictions uint8 (N,H,W).

    ``finetune`` begins where ``frozen`` ends: a head that is still random would spoil the features it is given
    before it can use them (Kumar et al. 2022, arXiv:2202.10054).
    """
    torch.manual_seed(mixed(seed))  # the head
    net = FCN(encoder, len(train.classes)).to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    settle_statistics(
        encoder, (train.images[rows].float() / 255 for rows in spaced(len(train), 256).split(16)), machine
    )
    maps, targets = _features(net, train, seed, machine)
    net.train()

    def head(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(targets), (config.batch,), generator=generator(seed, step, 4)).to(
            machine.device
        )
        return net.head([features[rows] for features in maps], targets.shape[-2:]), targets[rows]

    def everything(step: int) -> tuple[Tensor, Tensor]:
        image, target = _crops(train, seed, step, config, machine.device)
        return net(image), target

    _descend(net.scores, head, config.steps_frozen, config.lr_frozen, machine, f"head, seed {seed}")
    if protocol == "finetune":
        _descend(
            net, everything, config.steps_finetune, config.lr_finetune, machine, f"all layers, seed {seed}"
        )
    prediction = _predict(net, val, machine)
    iou, each = mean_iou(prediction, val.targets, len(train.classes))
    return iou, each, prediction


def _descend(
    part: nn.Module,
    forward: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
    machine: Machine,
    title: str,
) -> None:
    """Trains ``part`` on the logits and targets that ``forward`` gives for each step."""
    optimizer = torch.optim.AdamW(part.parameters(), lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmed(step, steps))
    for step in tqdm(range(steps), desc=title, leave=False, disable=None):
        with machine.autocast():
            logits, target = forward(step)
        cross_entropy(logits, target.long(), ignore_index=VOID).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()


@torch.no_grad()
def _features(net: FCN, train: Pairs, seed: int, machine: Machine) -> tuple[list[Tensor], Tensor]:
    """The maps (2n,C,h,w) of each stride of the training images and of their mirror images, and targets (2n,H,W).

    n is the number of images, or as many as ``FEATURE_BYTES`` hold, chosen at random.
    """
    encoder = net.encoder.eval()
    order = torch.randperm(len(train), generator=generator(seed, 5))
    maps: list[list[Tensor]] = [[] for _ in net.strides]
    targets: list[Tensor] = []
    used = 0.0
    for rows in order.split(8):
        image, target = train.images[rows], train.targets[rows]
        image = torch.cat([image, image.flip(-1)]).to(machine.device, memory_format=torch.channels_last)
        with machine.autocast():
            features = encoder(image.float() / 255)
        for kept, stride in zip(maps, net.strides, strict=True):
            kept.append(features[stride].to(torch.bfloat16 if machine.bf16 else torch.float32))
        targets.append(torch.cat([target, target.flip(-1)]).to(machine.device))
        used += sum(kept[-1].nbytes for kept in maps)
        if used > FEATURE_BYTES:
            break
    return [torch.cat(kept) for kept in maps], torch.cat(targets)


def _crops(train: Pairs, seed: int, step: int, config: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """A step's random crops, mirrored at random: images (B,3,c,c) in [0,1], targets (B,c,c)."""
    random = generator(seed, step, 3)
    height, width = train.targets.shape[-2:]
    tall, wide = min(config.crop, height), min(config.crop, width)
    chosen = torch.randint(len(train), (config.batch,), generator=random)
    tops = torch.randint(height - tall + 1, (config.batch,), generator=random).tolist()
    lefts = torch.randint(width - wide + 1, (config.batch,), generator=random).tolist()
    flip = torch.rand(config.batch, generator=random) < 0.5
    windows = [
        (i, slice(t, t + tall), slice(x, x + wide))
        for i, t, x in zip(chosen.tolist(), tops, lefts, strict=True)
    ]
    image = torch.stack([train.images[i, :, rows, columns] for i, rows, columns in windows])
    target = torch.stack([train.targets[i, rows, columns] for i, rows, columns in windows])
    image = torch.where(flip[:, None, None, None], image.flip(-1), image)
    target = torch.where(flip[:, None, None], target.flip(-1), target)
    return image.to(device).float() / 255, target.to(device).long()


@torch.no_grad()
def _predict(net: FCN, val: Pairs, machine: Machine) -> Tensor:
    net.eval()
    found = []
    for images in val.images.split(8):
        with machine.autocast():
            found.append(net(images.to(machine.device).float() / 255).argmax(1).byte().cpu())
    return torch.cat(found)


# --- all cells ------------------------------------------------------------------------------------------------

PerClass = dict[str, dict[str, dict[str, list[list[float | None]]]]]
"""The same, with the IoU of each class, None where it is absent from the truth."""


def run(config: Config) -> Results:
    """All cells; prints the table, writes ``segmentation.md``, ``segmentation.json`` and TensorBoard's pictures."""
    started = time.time()
    file, encoders = saved_encoders(config.ckpt, config.roles)
    folder = config.out or file.parent / f"segmentation-{Path(config.data).resolve().name}"
    folder.mkdir(parents=True, exist_ok=True)  # before anything slow
    train, val = (
        open_pairs(config.data, part, void=config.void, scenes=config.scenes) for part in ("train", "val")
    )
    if len(val.classes) > len(train.classes):
        raise ValueError(f"--data {config.data}: val has class ids up to {len(val.classes) - 1}, train only up to "
                         f"{len(train.classes) - 1}; is --void {config.void} the id of void?")  # fmt: skip
    machine = Machine.of(config.device, config.precision)
    sizes = f"{len(train)} training and {len(val)} validation images, {len(train.classes)} classes"
    print(f"{file} -> {config.data}: {sizes}, on {machine.device}{' in bf16' if machine.bf16 else ''}")
    results: Results = {}
    per_class: PerClass = {}
    # Seeds are the outermost loop, so that an interrupted evaluation has whole comparisons.
    cells = [
        (s, r, p, w) for s in range(config.seeds) for r in encoders for p in config.protocols for w in WEIGHTS
    ]
    shown: list[Tensor] = []
    with SummaryWriter(str(folder)) as writer:
        for seed, role, protocol, weights in cells:
            encoder = build(encoders[role], weights, seed)
            iou, each, prediction = segment(encoder, protocol, train, val, seed, config, machine)
            at(results, role, protocol, weights).append(iou)
            at(per_class, role, protocol, weights).append(each)
            print(f"seed {seed} {role:13} {protocol:8} {weights:10} mIoU {100 * iou:.1f}", flush=True)
            writer.add_scalar(f"mIoU/{role} {protocol} {weights}", iou, seed)
            if seed == 0:
                shown = [prediction] if weights == WEIGHTS[0] else [*shown, prediction]
                if weights == WEIGHTS[-1]:
                    writer.add_image(
                        f"{role} {protocol}: input, truth, {', '.join(WEIGHTS)}", _picture(val, shown)
                    )
            record = {
                "checkpoint": str(file),
                "settings": to_plain(config),
                "classes": train.classes,
                "seconds": round(time.time() - started),
                "miou": results,
                "iou": per_class,
            }
            (folder / "segmentation.json").write_text(json.dumps(record, indent=1) + "\n")
            (folder / "segmentation.md").write_text(markdown(results) + "\n")
    print(markdown(results))
    print(f"written to {folder}")
    return results


def _picture(val: Pairs, predictions: Sequence[Tensor], count: int = 6) -> Tensor:
    """input | truth | predictions, one image a row, (3,H,W); void is black."""
    rows = spaced(len(val), count)
    palette = torch.rand(256, 3, generator=generator(11))
    palette[VOID] = 0
    painted = [palette[ids[rows].long()].permute(0, 3, 1, 2) for ids in (val.targets, *predictions)]
    columns = [val.images[rows].float() / 255, *painted]
    return sheet(columns)


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
