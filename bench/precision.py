"""Time of a training step in float32 and in bfloat16, side by side, for methods of several kinds.

``python -m bench.precision``. A step is the method's own, of a batch that is read beforehand, with the settings of its
demo and no adversary. Both precisions take turns. Figures are medians, in milliseconds. With one thread on a
CPU, it is the time of the processor, without other programs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.common import RESULTS, milliseconds, write
from kintsugi.contrastive import simclr
from kintsugi.data.images import open_images
from kintsugi.data.loader import Loader
from kintsugi.data.store import Store
from kintsugi.recon import inpainting, mae, splitbrain
from kintsugi.train.compute import Device, pick_device
from kintsugi.train.config import parse_command, user_errors
from kintsugi.train.dist import World, keep_freed_memory
from kintsugi.train.method import Batch, Method

METHODS: dict[str, tuple[type[Method[Any]], Callable[[], Any]]] = {
    "simclr": (simclr.SimCLR, simclr.demo),
    "splitbrain": (splitbrain.SplitBrain, splitbrain.demo),
    "inpainting": (inpainting.Inpainting, partial(replace, inpainting.demo(), lpips="off")),
    "mae": (mae.MAE, mae.demo),
}
"""Name -> the method, and a function that makes its settings."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Compares the time of training steps in float32 and bfloat16."""

    device: Device = "auto"
    """auto: the GPU if there is one."""
    batch: int = 64
    """Images per step."""
    rounds: int = 7
    """Number of timed steps in each precision, after one as a warm-up."""
    scenes: int = 128
    """Number of built-in scenes."""
    out: Path = RESULTS
    """Folder for the results and their chart."""


def measured(name: str, config: PrecisionConfig) -> dict[str, float]:
    """Milliseconds of a step of one method in each precision, and how many times as fast bfloat16 is."""
    method_class, make = METHODS[name]
    settings = replace(make(), batch=config.batch)
    images = open_images("scenes", settings.size, Store(settings.size * 3 // 2), scenes=config.scenes).train
    device = pick_device(config.device)
    with Loader(images, config.batch, 0, device=device).iterate(0) as batches:
        batch = next(batches)
    jobs: dict[str, Callable[[], object]] = {}
    for precision in ("fp32", "bf16"):
        method = method_class(settings, World(device, bf16=precision == "bf16"))
        method.world.place(method.children(), channels_last=True)
        jobs[precision] = partial(_step, method, batch)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    found = milliseconds(jobs, config.rounds, device, time.process_time if alone else time.perf_counter)
    return found | {"bf16, times as fast": round(found["fp32"] / found["bf16"], 2)}


def _step(method: Method[Any], batch: Batch) -> None:
    method.update(method.inputs(batch, 0), 0)


def run(config: PrecisionConfig) -> None:
    """Measures, prints and writes the results."""
    if pick_device(config.device).type == "cpu":
        keep_freed_memory()  # as in every training run
    found = {name: measured(name, config) for name in METHODS}
    bars = {name: {precision: row[precision] for precision in ("fp32", "bf16")} for name, row in found.items()}
    command = " ".join(["python -m bench.precision", *sys.argv[1:]])
    result = {"command": command, "step, ms": found, "settings": asdict(config) | {"out": ""}}
    write(result, {f"{name}: step, ms": row for name, row in bars.items()}, config.out, "precision")


def main() -> None:
    with user_errors():
        run(parse_command(PrecisionConfig))


if __name__ == "__main__":
    main()
