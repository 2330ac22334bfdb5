"""Pre-trains several methods for the same time on the same cores, each with several seeds.

``python -m bench.equal_minutes --data tiny/train --minutes 8 --teacher alexnet=alexnet.safetensors`` times the step of
each method and sets the number of steps by it, so that learning rate schedules end in time. Each run is in
``runs/equal-minutes/METHOD-SEED``; a finished run is not made again. ``make transfer`` then compares the features; runs
of one name are pre-trainings of one row::

    make transfer CKPT="simclr=runs/equal-minutes/simclr-0 simclr=runs/equal-minutes/simclr-1 ..." ARGS="--seeds 3"
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bench.common import machine, wait
from kintsugi.catalog import METHODS
from kintsugi.data.loader import Loader
from kintsugi.train.command import method_in, named
from kintsugi.train.config import parse_command, parse_training, user_errors, within
from kintsugi.train.dist import open_world
from kintsugi.train.loop import prepared, train
from kintsugi.train.method import Method

OPTIONS: Mapping[str, str] = {
    "simclr": "",
    "splitbrain": "--encoder resnet18",
    "inpainting": "--mask regions --lpips off",
    "mae": "--norm-pix --batch 64 --lr 8e-3",
    "spark": "--cell 8 --decoder-width 128 --lr 2e-3",
    "distill": "--teacher {teacher}",
    "lejepa": "--local-crops 0",
    "dino": "--local-crops 0 --lr 4e-3",
    "colorization": "",
    "superresolution": "",
    "synthetic": "--data scenes --real {data}",
    "cpc": "",
    "moco": "",
    "byol": "",
    "rotation": "",
    "jigsaw": "--size 120 --short-side 128",
    "context": "--size 128 --short-side 128",
    "deepcluster": "--clusters 200 --every 200",
    "sela": "--clusters 200 --labelings 4",
    "cliquecnn": "--cliques 256 --members 8 --group 32",
    "frame-order": "--data {clips}",
    "odd-one-out": "--data {clips}",
}
"""Method -> its own options besides those of its demo, where {data} and so on stand for the options of this program.

The network is a ResNet-18; for MAE a ViT-Tiny, for super-resolution an SRResNet, and for synthetic to real and both
methods on clips an AlexNet."""

_SHARED = "--size 64 --short-side 72 --eval-images 256 --log-every 50"
_SCALED = ("warmup", "adversarial_start", "frozen", "temperature_warmup")  # settings counted in steps


@dataclass(frozen=True, kw_only=True)
class EqualMinutesConfig:
    """Pre-trains methods for equal minutes."""

    data: str
    """Images to train on, as in the option --data of the methods."""
    methods: tuple[str, ...] = ("simclr", "splitbrain", "inpainting", "mae", "spark", "distill", "lejepa")
    """Names of the methods."""
    teacher: str = ""
    """The teacher of distill, as its option --teacher."""
    clips: str = ""
    """A folder of clips for frame-order and odd-one-out, as their option --data."""
    minutes: float = 8.0
    """Minutes of each run, of all threads."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of each method for each of these seeds."""
    steps: int = 0
    """Steps of each run; 0 = as many as fit into the minutes. With the steps that one machine makes in its minutes,
    another gives the same runs, but for rounding."""
    threads: int = 1
    """Threads of each run. With one thread, time is the processor's, so that other programs do not count."""
    precision: str = "bf16"
    """fp32 or bf16."""
    warm: int = 4
    """Steps of the timing that are not counted."""
    timed: int = 24
    """Steps of the timing that are counted."""
    out: Path = Path("runs/equal-minutes")
    """Folder of the runs."""

    def __post_init__(self) -> None:
        within(self, minutes=0.01, steps=0, threads=1, warm=0, timed=1)
        if unknown := sorted(set(self.methods) - set(OPTIONS)):
            raise ValueError(f"--methods {unknown[0]}: choose from {', '.join(OPTIONS)}")
        for name in self.methods:
            for needed in ("teacher", "clips"):
                if f"{{{needed}}}" in OPTIONS[name] and not getattr(self, needed):
                    raise ValueError(
                        f"--{needed} is missing, which {name} needs: give it, or leave {name} out of --methods"
                    )


def run(config: EqualMinutesConfig) -> None:
    """Makes the runs that are missing, and writes ``equal-minutes.json`` with what all runs in the folder took."""
    torch.set_num_threads(config.threads)
    timed: dict[str, float] = {}  # method -> seconds of a step, so that all seeds make equally many steps
    for seed in config.seeds:
        for name in config.methods:
            folder = config.out / f"{name}-{seed}"
            if (folder / "time.json").is_file():
                continue
            method, settings = settings_of(name, config, seed)
            settings = replace(settings, out=folder)
            if name not in timed:
                timed[name] = seconds_per_step(method, settings, config.threads, config.warm, config.timed)
            seconds = timed[name]
            steps = config.steps or max(1, round(60 * config.minutes / seconds))
            print(f"{name}, seed {seed}: {1e3 * seconds:.0f} ms a step, so {steps} steps", flush=True)
            record = {
                "method": name,
                "seed": seed,
                "minutes": None if config.steps else config.minutes,
                "seconds per step": seconds,
                **trained(method, settings, steps),
                "precision": config.precision,
                "options": " ".join(own_options(name, config)),
                "machine": machine(),
            }
            (folder / "time.json").write_text(json.dumps(record, indent=1) + "\n")
    records = [json.loads(file.read_text()) for file in sorted(config.out.glob("*/time.json"))]
    (config.out / "equal-minutes.json").write_text(json.dumps(records, indent=1) + "\n")


def settings_of(
    name: str, config: EqualMinutesConfig, seed: int, more: Sequence[str] = ()
) -> tuple[type[Method[Any]], Any]:
    """The class of a method, and the settings of its run. more: further options."""
    module = import_module(next(p.module for p in METHODS if p.name == name))
    words = [*f"{_SHARED} --precision {config.precision} --seed {seed} --data".split(), config.data]
    words += [*own_options(name, config), *more]
    settings = parse_training(name, named((module.demo, module.small, module.paper)), words)
    return method_in(module, name), settings


def own_options(name: str, config: EqualMinutesConfig) -> list[str]:
    """The options of a method besides those that all methods have."""
    return [word.format(**vars(config)) for word in OPTIONS[name].split()]


def scaled(settings: Any, steps: int) -> Any:
    """The settings for a run of ``steps`` steps, in which everything that is counted in steps takes the same share of
    the run."""
    names = {field.name for field in fields(settings)} & set(_SCALED)
    share = steps / settings.steps
    return replace(settings, steps=steps, **{name: round(share * getattr(settings, name)) for name in names})


def trained(method: type[Method[Any]], settings: Any, steps: int) -> dict[str, float]:
    """Trains for ``steps`` steps, and evaluates and saves once, at the end. Returns what that took."""
    settings = scaled(settings, steps)
    started = time.perf_counter(), time.process_time()
    train(method, replace(settings, eval_every=steps, show_every=steps, save_every=steps, keep=1))
    return {
        "steps": steps,
        "images": steps * settings.batch,
        "wall seconds": time.perf_counter() - started[0],
        "processor seconds": time.process_time() - started[1],
    }


def seconds_per_step(method_class: type[Method[Any]], settings: Any, threads: int, warm: int, timed: int) -> float:
    """The time of one training step, the mean of ``timed`` steps after ``warm`` others."""
    clock = time.process_time if threads == 1 else time.perf_counter
    settings = replace(scaled(settings, warm + timed), out=Path(tempfile.gettempdir()))
    with open_world(settings.device, settings.precision, settings.batch) as world:
        data = method_class.open_data(settings, True)
        method = prepared(method_class, settings, world, data)
        loader = Loader(data.train, settings.batch, settings.seed, world.rank, world.size, world.device)
        started = clock()
        with loader.iterate(0) as batches:
            for step, batch in zip(range(warm + timed), batches, strict=False):
                if step == warm:
                    wait(world.device)
                    started = clock()
                method.update(method.inputs(batch, step), step)
        wait(world.device)
    return (clock() - started) / timed


def main() -> None:
    with user_errors():
        run(parse_command(EqualMinutesConfig))


if __name__ == "__main__":
    main()
