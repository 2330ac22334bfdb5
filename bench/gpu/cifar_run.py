"""Part ``cifar10`` of ``make gpu``: SimCLR for as many epochs as fit, with kNN against epochs.

The settings are those of docs/cifar10.md, with the learning rate's schedule over the epochs of this run.
"""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from bench.common import logged
from bench.equal_minutes import scaled, seconds_per_step
from bench.gpu.record import Place, Record
from bench.gpu.sets import labeled, training_part
from kintsugi.contrastive import simclr
from kintsugi.eval import classification
from kintsugi.train.command import named
from kintsugi.train.config import parse_command, parse_training
from kintsugi.train.loop import train

OPTIONS = (
    "--preset small --size 32 --short-side 32 --stem small --smallest-crop 0.08 --blur 0 --strength 0.5 "
    "--temperature 0.5 --batch 512 --steps 19531 --optimizer sgd --lr 0.12 --weight-decay 5e-4 --warmup 977 "
    "--log-every 50 --eval-images 1024 --keep 1"
)
TINY = "--batch 8 --steps 100 --warmup 10 --encoder alexnet --stem large --eval-images 4"
FRACTION = 0.6
"""The fraction of the time that steps get; the rest is for start, evaluations and the last kNN, and for steps that take
longer than the first ones."""
EVALUATIONS = 12
TITLE = "SimCLR on CIFAR-10"


def run(place: Place, record: Record) -> None:
    data = labeled(place, record, "cifar10", "cifar10")
    words = [*OPTIONS.split(), *(TINY.split() if place.tiny else []), "--data", training_part(data)]
    config = parse_training("simclr", named((simclr.demo, simclr.small, simclr.paper)), words)
    images = len(simclr.SimCLR.open_data(config, True).train)
    began = record.left
    seconds = seconds_per_step(simclr.SimCLR, config, 2, *((0, 1) if place.tiny else (20, 60)))
    epochs = int((FRACTION * began - (began - record.left)) / seconds * config.batch / images)
    epochs = 1 if place.tiny else max(1, epochs)
    config = scaled(config, max(1, epochs * images // config.batch))
    every = max(1, config.steps // EVALUATIONS)
    folder = place.work / "cifar10"
    shutil.rmtree(folder, ignore_errors=True)
    config = replace(config, out=folder, eval_every=every, show_every=config.steps, save_every=config.steps)
    try:
        train(simclr.SimCLR, config)
    finally:  # also if it was stopped
        curve(record, folder, config.batch / images, place.out / "cifar10.png")
    known = "test images by all training images"
    record.row(TITLE, known, {"epochs": round(config.steps * config.batch / images, 1), "kNN, %": knn(folder, data)})


def curve(record: Record, folder: Path, epochs_a_step: float, picture: Path) -> None:
    """Records and draws kNN against epochs, as the run in ``folder`` logged it, and its speed."""
    found = {step * epochs_a_step: value for step, value in logged(folder, "heldout/knn").items()}
    for epoch, value in found.items():
        name = f"held-out images by each other, {epoch:.1f} epochs"
        record.row(TITLE, name, {"epochs": round(epoch, 1), "kNN, %": round(value, 1)})
    if rates := logged(folder, "speed/images_per_second"):
        record.row(
            f"{TITLE}: images/s in the loop", "median", {"images/s": round(statistics.median(rates.values()), 1)}
        )
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axis.plot(list(found), list(found.values()), "o-", color="#b8860b")
    axis.set(xlabel="epochs", ylabel="kNN of held-out images, %", title=TITLE)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=90)
    plt.close(figure)


def knn(folder: Path, data: str) -> float:
    """Accuracy of kNN on the test images, per cent, of the run's last checkpoint."""
    out = folder / "knn"
    options = f"--classification-protocols knn --seeds 1 --size 32 --ckpt {folder} --out {out} --data"
    classification.run(parse_command(classification.ClassificationConfig, [*options.split(), data]))
    results = json.loads((out / "report.json").read_text())["results"]
    (own,) = (one for one in results if not one["weights"].startswith("random"))
    return round(100 * own["figures"]["kNN"], 1)
