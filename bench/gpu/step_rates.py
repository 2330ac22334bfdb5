"""Part ``rates`` of ``make gpu``: images/s of whole steps, of the networks alone and of the views alone; of steps with
other libraries' views; scenes and HHA."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from bench.gpu import peer_rates
from bench.gpu.record import Place, Record, Row
from bench.growth import Growth, GrowthConfig, hha_job, scenes_job
from bench.steps import Steps, StepsConfig
from kintsugi.contrastive import byol, moco, simclr
from kintsugi.contrastive.views import V, ViewsConfig, ViewsMethod
from kintsugi.data.cache import Source
from kintsugi.data.image_set import Images
from kintsugi.train.compiled import Compiling
from kintsugi.train.compute import pick_device
from kintsugi.train.dist import World, keep_freed_memory

Case = tuple[Callable[[World], ViewsMethod], ViewsConfig, tuple[int, int]]
"""Builds a method, its settings, and height and width of the stored images, px."""
WAYS: dict[Compiling, str] = {"compile": "images/s, compiled", "graph": "images/s, CUDA graphs"}
"""How networks are compiled, and the titles of the tables of their steps."""
SECONDS = 5.0
"""How long the steps with another library's views are counted."""


def cases(tiny: bool) -> dict[str, Case]:
    """What is measured: ResNet-18 as on CIFAR-10, and ResNet-50 as on ImageNet. tiny: two smaller ones of SimCLR."""

    def cifar(config: V) -> V:
        batch = 2 if tiny else 512
        return replace(config, size=32, short_side=32, stem="small", blur=0.0, smallest_crop=0.08, batch=batch)

    small = replace(cifar(simclr.small()), optimizer="sgd", lr=0.12, temperature=0.5, strength=0.5)
    contrast = replace(cifar(moco.small()), symmetric=True, queue=4096)
    predict = replace(cifar(byol.small()), optimizer="sgd", lr=0.12)
    large = replace(simclr.paper(), batch=256)
    if tiny:
        small = replace(small, encoder="alexnet", stem="large")
        large = replace(large, encoder="alexnet", batch=2, size=48)
    found: dict[str, Case] = {
        "SimCLR, ResNet-18, 32 px": (partial(simclr.SimCLR, small), small, (32, 32)),
        "MoCo, ResNet-18, 32 px": (partial(moco.MoCo, contrast), contrast, (32, 32)),
        "BYOL, ResNet-18, 32 px": (partial(byol.BYOL, predict), predict, (32, 32)),
        "SimCLR, ResNet-50, 224 px": (partial(simclr.SimCLR, large), large, (256, 340)),
    }
    return {name: case for name, case in found.items() if name.startswith("SimCLR") or not tiny}


def run(place: Place, record: Record) -> None:
    keep_freed_memory()  # as in every training run
    device = pick_device("auto")
    gpu = device.type == "cuda"
    precision: Literal["fp32", "bf16"] = "bf16" if gpu else "fp32"
    rounds, repeats = (1, 1) if place.tiny else (5, 8)
    settings, world = StepsConfig(precision=precision, rounds=rounds, repeats=repeats), World(device, bf16=gpu)
    todo = cases(place.tiny)
    for name, case in todo.items():
        record.attempt("images/s", name, partial(_whole_and_alone, case, settings))
    growth = Growth(GrowthConfig(precision=precision, rounds=rounds, compile=False))
    scenes, frames = (2, 1) if place.tiny else (256, 16)
    record.attempt("other work", "scenes of 96 px", partial(_other, growth, scenes_job(scenes, 96, growth.device)))
    record.attempt("other work", "HHA of 640x480 px", partial(_other, growth, hha_job(frames, growth.device)))
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name in todo if name.startswith("SimCLR")):
            build, config, _ = todo[name]
            peers = peer_rates.Peers(Path(folder) / str(config.size), config, place.tiny)
            title = f"{name}: images/s of whole steps with the views of"
            if name in record.tables.get("images/s", {}):
                record.row(title, "Kintsugi", {"images/s": record.tables["images/s"][name]["whole"]})
            seconds = 0.1 if place.tiny else SECONDS
            for peer in peer_rates.NAMES:
                measure = partial(peers.rate, peer, build, world, seconds)
                record.attempt(title, peer, measure, needed=0 if place.tiny else 3 * seconds)
    if gpu and not place.tiny:
        for way, title in WAYS.items():
            for name, case in todo.items():
                record.attempt(title, name, partial(_whole_and_alone, case, settings, way), needed=45)


def _whole_and_alone(case: Case, settings: StepsConfig, compiling: Compiling = "no") -> Row:
    """Images/s of a case: whole steps, the update with views made beforehand, both views; and what part of the second
    the first is."""
    build, config, extent = case
    steps = Steps(replace(settings, batch=config.batch, size=config.size), random_images(4 * config.batch, *extent))
    found = steps.contrastive(build(steps.world), compiling)
    rates = {name: round(config.batch / ms * 1e3, 1) for name, ms in found.items() if name != "whole over model"}
    return {
        "whole": rates["whole step"],
        "model only": rates["model only"],
        "whole / model only": round(rates["whole step"] / rates["model only"], 3),
        "views only": rates["both views"],
        "ms of both views": found["both views"],
    }


def _other(growth: Growth, job: tuple[int, Callable[[], object]]) -> Row:
    rate = growth.rates({"": job})[""]
    return {"at once": float(job[0]), "a second": round(rate, 1), "ms each": round(1e3 / rate, 3)}


def random_images(count: int, height: int, width: int) -> Images:
    """Decoded images of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    extents = np.tile([height, width], (count, 1))
    names = [str(row) for row in range(count)]
    return Images(Source(names, lambda rows: [pixels[row].transpose(2, 0, 1) for row in rows], extents=extents))
