"""The folder of a run: opens it, resumes from it, and makes ``latest`` point to it."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from kintsugi.train import bf16, checkpoint
from kintsugi.train.config import TrainConfig
from kintsugi.train.dist import World
from kintsugi.train.method import Method


def open_folder(name: str, config: TrainConfig, world: World) -> Path:
    """The run's folder, the same on every rank. Creates it if needed. name: of the method.

    Raises ValueError with one line if it already holds a run and --resume is not given, and OSError if it cannot be
    created.
    """
    made = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(world.from_main(str(config.out or config.runs / name / made)))
    if world.is_main:
        checkpoint.sweep(folder)
    if not world.is_main or config.resume:
        return folder
    if any(folder.glob("*.pt")):
        raise ValueError(f"{folder} already holds a run: add --resume to continue it, or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {folder} ({error.strerror}): choose another folder with --runs") from None
    return folder


def resume(folder: Path, config: TrainConfig, method: Method[Any], world: World) -> tuple[int, float]:
    """Loads the newest checkpoint into the method. Returns the step at which to continue, and the best score so far.

    Raises ValueError with one line if there is no checkpoint, if the run already has all steps, or if the checkpoint
    does not fit the method.
    """
    file, content = checkpoint.read(folder, method.name)
    if content["step"] >= config.steps:
        raise ValueError(f"{file} already has {content['step']} steps: set a higher --steps")
    try:
        method.load_training_state(content["state"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error).partition("\n\t")[2].partition("\n")[0] or error  # torch's message is a title and a list
        raise ValueError(
            f"{file} does not fit the networks of these settings ({why}): resume without changes, "
            "with the version that wrote it"
        ) from None
    if world.is_main and (ranks := content.get("ranks", world.size)) != world.size:
        print(
            f"note: {file} was written by {ranks} ranks, this run has {world.size}: images and random numbers are the "
            "same, but sums have another order and batch norms other parts of the batch, so the weights will not be "
            "those of an uninterrupted run bit for bit",
            file=sys.stderr,
        )
    if world.is_main and world.bf16 and world.device.type == "cpu" and not bf16.in_hardware():
        print(
            "note: this run computes in bf16, for which this CPU has no instructions, so its steps are slow: "
            "--precision fp32 --accept-changes continues in fp32",
            file=sys.stderr,
        )
    return content["step"], content["score"]


def point_latest(folder: Path) -> None:
    """Writes this run's name into ``latest``, a file in the parent folder, which is replaced in one rename.

    It is a file and not a link, because TensorBoard follows links and would show the run twice.
    """
    pointer, fresh = folder.parent / checkpoint.LATEST, folder.parent / f".{checkpoint.LATEST}.{os.getpid()}"
    fresh.write_text(folder.name + "\n")
    fresh.replace(pointer)
