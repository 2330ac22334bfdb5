"""What a checkpoint's features are worth for naming images, against random weights of the same network.

``python -m eval.classification --ckpt runs/simclr/latest --data caltech101``

Features are frozen and computed once. ``knn`` votes among the nearest training images (Wu 2018, arXiv:1805.01978).
``linear`` trains a linear classifier on each layer's map, pooled to about 9,000 numbers (Zhang 2016, section 3.2; Goyal
2019, arXiv:1905.01235), and with few labels, on those of a few images of each class. Its learning rate is chosen on a
part of the training images, then it is trained on all of them; the test images are used once, at the end.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, normalize
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from core.data import views
from core.data.images import Images, open_labelled
from core.nets.encoder import Encoder
from core.rng import generator
from core.train import checkpoint
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

Protocol = Literal["knn", "linear", "few"]
NUMBERS = 9000  # of a layer's pooled map, at the most, or one a channel
RATES = [10 ** (-4 + i / 2) for i in range(8)]  # 1e-4 to .3
HELD = 0.1  # part of the training images on which the rate is chosen


@dataclass(frozen=True)
class Config:
    """Transfer of a checkpoint's encoders to classification, against random init."""

    data: str
    """A folder with train/ and test/ of class folders, cifar10, stl10 or imagenet:PATH."""
    ckpt: Path = Path("runs/simclr/latest")
    """A run's folder or a checkpoint."""
    size: int = 0
    """Side of the central squares that are seen, px; 0 = that of pre-training's crops."""
    roles: tuple[str, ...] = ()
    """Which encoders: generator, discriminator, encoder; default all that the checkpoint has."""
    protocols: tuple[Protocol, ...] = ("knn", "linear", "few")
    labels: tuple[float, ...] = (0.01, 0.1)
    """Parts of the training labels for few; at least two of each class are taken."""
    seeds: int = 3
    """How many times each cell is run; they set heads, orders, which labels are few, and the random weights."""
    steps: int = 500
    """Steps of each linear classifier."""
    batch: int = 256
    """Images per step."""
    cache: Path | None = None
    """Where decoded images are kept; default $KINTSUGI_CACHE or ~/.cache/kintsugi."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU, fp32 elsewhere. bf16 also pays on CPUs with AMX."""
    out: Path | None = None
    """Folder for the results; default: classification-DATA in the run's folder."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if not all(0 < part < 1 for part in self.labels):
            raise ValueError(f"--labels must be between 0 and 1, not {self.labels}")


# --- features -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Of one set of images: each stride's map pooled and flattened (N,D), the coarsest averaged (N,C), labels (N,)."""

    layers: dict[int, Tensor]
    mean: Tensor
    labels: Tensor


@torch.no_grad()
def features(encoder: Encoder, images: Images, size: int, machine: Machine) -> Features:
    layers: dict[int, list[Tensor]] = {stride: [] for stride in encoder.channels}
    means, labels = [], []
    half = torch.bfloat16 if machine.bf16 else torch.float32
    for image, label in _batches(images, size, machine, torch.arange(len(images))):
        with machine.autocast():
            maps = encoder(image)
        for stride, x in maps.items():
            side = max(1, math.isqrt(NUMBERS // x.shape[1]))
            pooled = adaptive_avg_pool2d(x.float(), (min(side, x.shape[2]), min(side, x.shape[3])))
            layers[stride].append(pooled.flatten(1).to(half))
        means.append(maps[max(maps)].float().mean((2, 3)))
        labels.append(label)
    return Features({s: torch.cat(each) for s, each in layers.items()}, torch.cat(means), torch.cat(labels))


def _batches(images: Images, size: int, machine: Machine, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for some in tqdm(rows.split(64), desc="features", leave=False, disable=None):
        batch = {name: value.to(machine.device) for name, value in images.batch(some).items()}
        yield views.center_crops(batch, size), batch["label"]


# --- protocols ------------------------------------------------------------------------------------------------


def knn(train: Features, test: Features, temperature: float = 0.1) -> float:
    """Part of the test images whose class their nearest training images vote for: cosine, weights exp(s / T)."""
    neighbours = min(200 if len(train.labels) > 10_000 else 20, len(train.labels))
    known, classes = normalize(train.mean, dim=1), int(train.labels.amax()) + 1
    right = 0
    for x, label in zip(test.mean.split(512), test.labels.split(512), strict=True):
        near, index = (normalize(x, dim=1) @ known.T).topk(neighbours, dim=1)
        votes = torch.zeros(len(x), classes, device=x.device)
        votes.scatter_add_(1, train.labels[index], (near / temperature).exp())
        right += int((votes.argmax(1) == label).sum())
    return right / len(test.labels)


def linear(
    x: Tensor, label: Tensor, tried: Tensor, truth: Tensor, seed: int, config: Config
) -> tuple[float, float]:
    """Accuracy on ``tried`` (M,D) of a linear classifier of x (N,D), and that by which its rate was chosen."""
    held = _some_of_each(label, HELD, seed, least=1, keep=1)
    chosen = 0
    figure = 0.0
    if held.any():
        accuracies = _fit(x[~held], label[~held], x[held], label[held], RATES, seed, config)
        chosen, figure = int(accuracies.argmax()), accuracies.max().item()
    return _fit(x, label, tried, truth, [RATES[chosen]], seed, config).item(), figure


def _fit(
    x: Tensor, label: Tensor, tried: Tensor, truth: Tensor, rates: Sequence[float], seed: int, config: Config
) -> Tensor:
    """Accuracy on ``tried`` of a linear classifier for each learning rate, (R,); all are trained at once.

    SGD with momentum .9 along a cosine, on features of mean 0 and deviation 1.
    """
    count, classes = len(rates), int(max(label.amax(), truth.amax())) + 1
    spread, mean = torch.std_mean(x.float(), 0, correction=0)
    scale = 1 / spread.clamp(min=1e-3 * spread.mean().clamp(min=1e-6))
    weight = torch.zeros(count, x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(count, 1, classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], 1.0, momentum=0.9)
    rate = torch.tensor(rates, device=x.device)[:, None, None]
    random = generator(seed, 6)
    for step in range(config.steps):
        rows = torch.randint(len(x), (min(config.batch, len(x)),), generator=random).to(x.device)
        logits = (x[rows].float() - mean) * scale @ weight + bias  # (R,B,K)
        cross_entropy(logits.flatten(0, 1), label[rows].repeat(count)).mul(count).backward()
        for parameter in (weight, bias):
            assert parameter.grad is not None
            parameter.grad *= rate
        optimizer.param_groups[0]["lr"] = warmed(step, config.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        hits = [
            (((part.float() - mean) * scale @ weight + bias).argmax(2) == said).sum(1)
            for part, said in zip(tried.split(1024), truth.split(1024), strict=True)
        ]
    return torch.stack(hits).sum(0) / len(truth)


def _some_of_each(label: Tensor, part: float, seed: int, least: int, keep: int = 0) -> Tensor:
    """A random part of each class, bool (N,): at least ``least`` images, if ``keep`` others are left of it."""
    order = torch.randperm(len(label), generator=generator(seed, 7)).to(label.device)
    chosen = torch.zeros(len(label), dtype=torch.bool, device=label.device)
    for number in label.unique():
        of_class = order[label[order] == number]
        count = max(least, round(part * len(of_class)))
        chosen[of_class[: max(0, min(count, len(of_class) - keep))]] = True
    return chosen


# --- all cells ------------------------------------------------------------------------------------------------


def cell(train: Features, test: Features, seed: int, config: Config) -> dict[str, float]:
    """Protocol -> accuracy of one encoder's features."""
    found: dict[str, float] = {}
    if "knn" in config.protocols:
        found["knn"] = knn(train, test)
    scores: dict[int, float] = {}
    if "linear" in config.protocols:
        for stride, x in train.layers.items():
            found[f"linear, stride {stride}"], scores[stride] = linear(
                x, train.labels, test.layers[stride], test.labels, seed, config
            )
        best = max(scores, key=lambda stride: scores[stride])
        found["linear, best"] = found[f"linear, stride {best}"]  # best on the held-out training images
    if "few" in config.protocols:
        for part in config.labels:
            some = _some_of_each(train.labels, part, seed, least=2)
            label = train.labels[some]
            each = [
                linear(x[some], label, test.layers[stride], test.labels, seed, config)
                for stride, x in train.layers.items()
            ]
            found[f"{100 * part:g} % of labels"] = max(each, key=lambda result: result[1])[0]
    return found


def run(config: Config) -> Results:
    """All cells; prints the table, writes ``classification.md`` and ``classification.json``."""
    started = time.time()
    file, encoders = saved_encoders(config.ckpt, config.roles)
    size = config.size or checkpoint.load(file)["config"]["size"]
    data = open_labelled(config.data, size, cache_dir=config.cache)
    folder = config.out or file.parent / f"classification-{Path(config.data).resolve().name}"
    folder.mkdir(parents=True, exist_ok=True)
    machine = Machine.of(config.device, config.precision)
    print(f"{file} -> {config.data}: {len(data.train)} training and {len(data.heldout)} test images of {size} px, "
          f"{len(data.train.classes)} classes, on {machine.device}{' in bf16' if machine.bf16 else ''}")  # fmt: skip
    results: Results = {}
    kept: dict[str, tuple[Features, Features]] = {}  # of pre-trained encoders, the same for every seed
    with SummaryWriter(str(folder)) as writer:
        for seed, role, weights in [
            (s, r, w) for s in range(config.seeds) for r in encoders for w in WEIGHTS
        ]:
            if weights == "pretrained" and role in kept:
                pair = kept[role]
            else:
                encoder = build(encoders[role], weights, seed)
                encoder.to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                some = _batches(data.train, size, machine, spaced(len(data.train), 256))
                settle_statistics(encoder, (image for image, _ in some), machine)
                pair = (
                    features(encoder, data.train, size, machine),
                    features(encoder, data.heldout, size, machine),
                )
                if weights == "pretrained":
                    kept[role] = pair
            for protocol, accuracy in cell(*pair, seed, config).items():
                at(results, role, protocol, weights).append(accuracy)
                print(f"seed {seed} {role:13} {protocol:16} {weights:10} {100 * accuracy:.1f} %", flush=True)
                writer.add_scalar(f"accuracy/{role} {protocol} {weights}", accuracy, seed)
            record = {
                "checkpoint": str(file),
                "settings": to_plain(config),
                "classes": len(data.train.classes),
                "seconds": round(time.time() - started),
                "accuracy": results,
            }
            (folder / "classification.json").write_text(json.dumps(record, indent=1) + "\n")
            (folder / "classification.md").write_text(markdown(results) + "\n")
    print(markdown(results))
    print(f"written to {folder}")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
