"""What a checkpoint's features are worth for segmentation, against random weights of the same network.

``python -m eval.segmentation --ckpt runs/inpainting/latest --data scenes``

A fully convolutional head (Long et al. 2015, arXiv:1411.4038) reads the maps of strides 8, 16 and 32.
``frozen`` trains the head alone, ``finetune`` all layers. Every cell is run with the same settings from the
checkpoint's weights and from random ones, on several seeds, which set the head, the crops and the random weights.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision.utils import make_grid
from tqdm import tqdm

from core.data.pairs import VOID, Pairs, open_pairs
from core.nets.backbones import build_spec
from core.nets.encoder import Encoder
from core.rng import generator, mixed
from core.train import checkpoint
from core.train.config import parse_command, user_errors

Protocol = Literal["frozen", "finetune"]
STRIDES = (8, 16, 32)


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
    seeds: int = 3
    steps_frozen: int = 300
    """Steps of the head alone."""
    steps_finetune: int = 300
    """Steps of all layers."""
    batch: int = 8
    crop: int = 160
    """Side of the random training crops, px."""
    lr: float = 1e-3
    """AdamW's highest rate, reached after a tenth of the steps and brought to 0 along a cosine."""
    scenes: int = 400
    """How many scenes to train on, with --data scenes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
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
                score = score + interpolate(total, score.shape[-2:], mode="bilinear")
            total = score
        assert total is not None
        return interpolate(total, tuple(size), mode="bilinear")


def mean_iou(prediction: Tensor, target: Tensor, classes: int) -> tuple[float, list[float | None]]:
    """Mean over the classes present in ``target`` (N,H,W) of intersection over union, and each class's (None = absent).

    Void pixels (255) count for nothing.
    """
    confusion = multiclass_confusion_matrix(
        prediction.long(), target.long(), classes, ignore_index=VOID
    ).double()
    right, truth, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    each = [
        (right[k] / (truth[k] + said[k] - right[k])).item() if truth[k] > 0 else None for k in range(classes)
    ]
    return statistics.fmean(value for value in each if value is not None), each


# --- training one cell ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Where and how cells are computed."""

    device: torch.device
    bf16: bool

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def segment(
    encoder: Encoder,
    protocol: Protocol,
    train: Pairs,
    val: Pairs,
    seed: int,
    config: Config,
    machine: Machine,
) -> tuple[float, list[float | None], Tensor]:
    """Trains one cell; its mean IoU and per-class IoU on ``val``, and its predictions uint8 (N,H,W)."""
    torch.manual_seed(mixed(seed))
    classes = len(train.classes)
    net = FCN(encoder, classes).to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen = protocol == "frozen"
    steps = config.steps_frozen if frozen else config.steps_finetune
    if frozen:
        _settle_statistics(encoder, train, machine)
        encoder.requires_grad_(False)
    weights = list((net.scores if frozen else net).parameters())
    optimizer = torch.optim.AdamW(weights, config.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    for step in tqdm(range(steps), desc=f"{protocol} seed {seed}", leave=False, disable=None):
        image, target = _crops(train, seed, step, config, machine.device)
        net.train()
        if frozen:
            encoder.eval()
        with machine.autocast():
            if frozen:
                with torch.no_grad():
                    features = encoder(image)
                logits = net.head([features[s] for s in net.strides], image.shape[-2:])
            else:
                logits = net(image)
        loss = cross_entropy(logits.float(), target, ignore_index=VOID)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    prediction = _predict(net, val, machine)
    iou, each = mean_iou(prediction, val.targets, classes)
    return iou, each, prediction.byte()


@torch.no_grad()
def _settle_statistics(encoder: Encoder, train: Pairs, machine: Machine) -> None:
    """Batch norms take the training images' statistics: random weights have none of their own, and a frozen encoder
    of pre-training has another data set's. Done for both alike."""
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    encoder.train()
    for images in train.images[:128].split(16):
        with machine.autocast():
            encoder(images.to(machine.device).float() / 255)
    encoder.eval()


def _rate(step: int, steps: int) -> float:
    """Part of the highest learning rate: a tenth of the steps upwards, then down a cosine to 0."""
    warm = max(1, steps // 10)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


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
            found.append(net(images.to(machine.device).float() / 255).argmax(1).cpu())
    return torch.cat(found)


# --- all cells ------------------------------------------------------------------------------------------------

Results = dict[str, dict[str, dict[str, list[float]]]]
"""Role -> protocol -> weights (pretrained, random) -> mean IoU of each seed."""


def run(config: Config) -> Results:
    """All cells; prints the table, writes ``segmentation.md``, ``segmentation.json`` and TensorBoard's pictures."""
    file = checkpoint.find(config.ckpt)
    content = checkpoint.load(file)
    roles = config.roles or tuple(content["encoders"])
    if unknown := sorted(set(roles) - set(content["encoders"])):
        raise ValueError(f"{file} has no {unknown[0]}: it has {', '.join(content['encoders'])}")
    train, val = (
        open_pairs(config.data, part, void=config.void, scenes=config.scenes) for part in ("train", "val")
    )
    if len(val.classes) > len(train.classes):
        raise ValueError(f"--data {config.data}: val has class ids up to {len(val.classes) - 1}, train only up to "
                         f"{len(train.classes) - 1}; is --void {config.void} the id of void?")  # fmt: skip
    cuda = config.device != "cpu" and torch.cuda.is_available()
    bf16 = config.precision == "bf16" or (config.precision == "auto" and cuda)
    machine = Machine(torch.device("cuda" if cuda else "cpu"), bf16)
    folder = config.out or file.parent / f"segmentation-{Path(config.data).name}"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = f"{len(train)} training and {len(val)} validation images, {len(train.classes)} classes"
    print(f"{file} -> {config.data}: {sizes}, on {machine.device}")
    results: Results = {}
    per_class: dict[str, list[list[float | None]]] = {}
    started = time.time()
    with SummaryWriter(str(folder)) as writer:
        for role, protocol in ((role, protocol) for role in roles for protocol in config.protocols):
            cell: dict[str, list[float]] = {"pretrained": [], "random": []}
            results.setdefault(role, {})[protocol] = cell
            shown: list[Tensor] = []
            for weights, seed in ((w, s) for w in cell for s in range(config.seeds)):
                torch.manual_seed(mixed(seed, 1))
                encoder = build_spec(content["encoders"][role]["spec"])
                if weights == "pretrained":
                    encoder.load_state_dict(content["encoders"][role]["state"])
                iou, each, prediction = segment(encoder, protocol, train, val, seed, config, machine)
                cell[weights].append(iou)
                per_class.setdefault(f"{role}/{protocol}/{weights}", []).append(each)
                writer.add_scalar(f"{role}/{protocol}/{weights}", iou, seed)
                print(f"{role:13} {protocol:8} {weights:10} seed {seed}: mIoU {100 * iou:.1f}", flush=True)
                _write(folder, config, results, per_class, train.classes, time.time() - started)
                if seed == 0:
                    shown.append(prediction)
            picture = _picture(val, shown)
            writer.add_image(f"{role}/{protocol}: input | truth | pretrained | random", picture)
    print(markdown(results))
    return results


def markdown(results: Results) -> str:
    """Mean IoU in per cent, mean and deviation over the seeds."""
    lines = [
        "| encoder | protocol | pre-trained | random init | gain | seeds won |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for role, protocols in results.items():
        for protocol, cell in protocols.items():
            ours, base = cell["pretrained"], cell["random"]
            if not base:
                continue
            gain = statistics.fmean(ours[: len(base)]) - statistics.fmean(base)
            won = sum(a > b for a, b in zip(ours, base, strict=False))
            lines.append(
                f"| {role} | {protocol} | {_spread(ours)} | {_spread(base)} | {100 * gain:+.1f} | {won}/{len(base)} |"
            )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * deviation:.1f}"


def _write(
    folder: Path, config: Config, results: Results, per_class: dict[str, list[list[float | None]]], classes: list[str],
    seconds: float,
) -> None:  # fmt: skip
    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()
    }
    record = {
        "settings": settings,
        "classes": classes,
        "seconds": round(seconds),
        "miou": results,
        "iou": per_class,
    }
    (folder / "segmentation.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "segmentation.md").write_text(markdown(results) + "\n")


def _picture(val: Pairs, predictions: Sequence[Tensor], count: int = 6) -> Tensor:
    """input | truth | predictions, one image a row, (3,H,W)."""
    palette = torch.rand(256, 3, generator=generator(11))
    palette[VOID] = 0

    def painted(ids: Tensor) -> Tensor:
        return palette[ids[:count].long()].permute(0, 3, 1, 2)

    columns = [val.images[:count].float() / 255, painted(val.targets), *(painted(p) for p in predictions)]
    return make_grid(torch.stack(columns, 1).flatten(0, 1), nrow=len(columns), padding=2, pad_value=1.0)


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
