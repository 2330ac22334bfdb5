"""Part ``learn`` of ``make gpu``: methods trained side by side on Tiny-ImageNet, then their features transferred.

The methods and their settings are those of ``bench.equal_minutes``.
"""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench import equal_minutes
from bench.equal_minutes import EqualMinutesConfig
from bench.gpu import forked
from bench.gpu.record import Place, Record
from bench.gpu.sets import labeled, training_part
from kintsugi.data.images import open_images
from kintsugi.data.store import Store
from kintsugi.eval import transfer
from kintsugi.train.config import parse_command

METHODS = ("simclr", "splitbrain", "inpainting", "mae", "spark")
TRAINING, STARTING = 0.6, 25.0
"""The fraction of the time for training, which includes this many seconds for the start and the timing of steps."""
TRANSFER = "--classification-protocols knn linear --pooled-features 2000 --steps-linear 300 --dense-protocols frozen"
TINY = "--classification-protocols knn --segmentation --geometry"
SHOWN = 320  # px, width of each method's pictures


def run(place: Place, record: Record) -> None:
    data = labeled(place, record, "tinyimagenet", "scenes")
    runs = place.work / "learn"
    shutil.rmtree(runs, ignore_errors=True)
    decoding = partial(open_images, training_part(data), 64, Store(72))  # once, for all methods
    forked.run({"decoding": decoding}, place.work / "logs", record.left)
    seconds = TRAINING * record.left
    minutes = 0.01 if place.tiny else max(0.1, (seconds - STARTING) / 60)
    settings = {
        name: EqualMinutesConfig(
            data=training_part(data),
            methods=(name,),
            minutes=minutes,
            seeds=(0,),
            threads=2,
            precision="fp32" if place.tiny else "bf16",
            warm=0 if place.tiny else 10,
            timed=1 if place.tiny else 40,
            out=runs / name,
        )
        for name in (METHODS[:1] if place.tiny else METHODS)
    }
    jobs = {name: partial(equal_minutes.run, config) for name, config in settings.items()}
    outcomes = forked.run(jobs, place.work / "logs", seconds, at_once=len(jobs))
    trained = []
    for name, outcome in outcomes.items():
        folder = runs / name / f"{name}-0"
        row: dict[str, float | str] = {"training": outcome.status, "seconds": outcome.seconds}
        if (folder / "time.json").exists():
            found = json.loads((folder / "time.json").read_text())
            row |= {"steps": found["steps"], "images": found["images"]}
        record.row("method", name, row)
        if not outcome.finished:
            record.note(f"{name}: {outcome.status}: {outcome.end.strip()}", failed="stopped" not in outcome.status)
        trained += [f"{name}={folder}"] if any(folder.glob("*.pt")) else []
    draw([Path(one.partition("=")[2]) for one in trained], place.out / "learn.png")
    if trained:
        _transfer(trained, data, place, record)


def _transfer(trained: list[str], data: str, place: Place, record: Record) -> None:
    """Transfers the features, and records the figures in per cent, also if it is stopped on the way."""
    out = place.work / "learn" / "transfer"
    options = f"--seeds 1 --no-pixels --out {out} {TINY if place.tiny else TRANSFER}".split()
    try:
        transfer.run(parse_command(transfer.TransferConfig, ["--ckpts", *trained, "--classification", data, *options]))
    finally:
        report = json.loads((out / "report.json").read_text()) if (out / "report.json").exists() else {"results": []}
        for one in report["results"]:
            found = {f"{one['task']}: {name}, %": round(100 * value, 1) for name, value in one["figures"].items()}
            record.row("weights", one["weights"], found)
            if one["error"]:
                record.note(f"{one['task']}, {one['weights']}: {one['error']}", failed=True)


def draw(runs: list[Path], file: Path) -> None:
    """The last pictures of each run, side by side and small, in one PNG."""
    sheets = []
    for run in runs:
        events = EventAccumulator(str(run), {"images": 0}).Reload()
        for tag in events.Tags()["images"][:1]:
            sheet = Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string)).convert("RGB")
            sheets.append(sheet.resize((SHOWN, max(1, round(sheet.height * SHOWN / sheet.width)))))
    if sheets:
        canvas = Image.new("RGB", (SHOWN * len(sheets), max(sheet.height for sheet in sheets)), "white")
        for column, sheet in enumerate(sheets):
            canvas.paste(sheet, (SHOWN * column, 0))
        canvas.save(file, optimize=True)
