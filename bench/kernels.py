"""Kernels and waits of a training step of every method on a GPU, counted on a pretended one.

``python -m bench.kernels`` needs no GPU: see ``tests/helpers/pretended_gpu.py``. A step is the method's own, its inputs
and its update, with the settings of its demo, but few images, after a first step. It is not one that is logged. GANs
train their adversary. The figures replace those under ``--name`` in ``bench/results/kernels.json``; the others stay, to
be compared with.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bench.common import RESULTS, add
from kintsugi.catalog import METHODS
from kintsugi.data.loader import Loader
from kintsugi.train.ahead import inputs_ahead
from kintsugi.train.command import method_in
from kintsugi.train.config import TrainConfig, parse_command, user_errors
from kintsugi.train.dist import World
from kintsugi.train.loop import prepared
from kintsugi.train.method import Batch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from helpers import tiny_folders  # noqa: E402
from helpers.pretended_gpu import Seen, pretended_gpu  # noqa: E402

BATCH = 8
FEW: dict[str, object] = {
    "batch": BATCH,
    "scenes": 64,
    "adversarial_start": 0,
    "lpips": "off",
    "content_weights": "off",
    "precision": "bf16",
    "device": "cuda",
    "teacher": str(ROOT / "weights/splitbrain.safetensors"),
    "strength": 1.0,
    "clusters": 4,
    "cliques": 8,
    "permutations": 8,
    "components": 16,
    "tuples": 50,
    "symmetric": True,
    "outputs": 256,
}
"""Changes to the demos, where a method has the setting: few images, nothing downloaded, and all parts in use."""


@dataclass(frozen=True, kw_only=True)
class KernelsConfig:
    """Counts the kernels and waits of a training step on a pretended GPU."""

    name: str = "now"
    """Under which the figures are written."""
    methods: tuple[str, ...] = tuple(program.name for program in METHODS)
    """Which methods."""
    places: int = 0
    """Number of places in the code to print, those with the most kernels, and of those with waits."""
    out: Path = RESULTS
    """Folder for the results."""


def settings_of(name: str, folders: dict[str, Path]) -> TrainConfig:
    """The method's demo with few images. folders: from ``tiny_folders``, for the methods that need photos or labels."""
    (program,) = (program for program in METHODS if program.name == name)
    demo = import_module(program.module).demo()
    known = {field.name for field in fields(demo)}
    changes: dict[str, Any] = {key: value for key, value in FEW.items() if key in known}
    if "REAL" in program.takes:
        changes["real"] = str(folders["photos"])
    if name == "supervised":
        changes |= {"data": str(folders["labeled"]), "size": 32, "short_side": 40}
    return replace(demo, **changes)


def counted(config: TrainConfig, name: str, seen: Seen) -> None:
    """Trains two steps of a method on the pretended GPU. ``seen`` then has the second, with the inputs of a third."""
    (program,) = (program for program in METHODS if program.name == name)
    kind = method_in(import_module(program.module), name)
    world = World(torch.device("cuda"), bf16=config.precision == "bf16")
    data = kind.open_data(config, True)
    method = prepared(kind, config, world, data)
    loader = Loader(data.train, config.batch, config.seed, device=world.device)

    def inputs(batch: Batch, step: int) -> Batch:
        seen.reset()  # after the upload of the batch
        return method.inputs(batch, step)

    with loader.iterate(0) as batches:
        for step, made in inputs_ahead(inputs, batches, range(3), world.device):
            method.update(made, step)
            if step == 1:
                break


def run(config: KernelsConfig) -> None:
    """Counts, prints and writes the figures."""
    found: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = tiny_folders.make(Path(temporary) / "folders")
        for name in config.methods:
            with pretended_gpu() as seen:
                counted(settings_of(name, folders), name, seen)
                found[name] = {"kernels": seen.kernels.total(), "waits": seen.waits.total()}
                print(name, found[name], f"float64: {seen.float64.total()}" if seen.float64 else "", flush=True)
                by_place: dict[str, int] = {}
                for (_, where), count in seen.kernels.items():
                    by_place[where] = by_place.get(where, 0) + count
                for where, count in sorted(by_place.items(), key=lambda item: -item[1])[: config.places]:
                    print(f"  {count:5d} {where}")
                for (what, where), count in seen.waits.most_common(config.places):
                    print(f"  wait {count:5d} {what} {where}")
    add(found, config.name, config.out, "kernels")
    add({"batch": BATCH, "torch": torch.__version__}, "settings", config.out, "kernels")


def main() -> None:
    with user_errors():
        run(parse_command(KernelsConfig))


if __name__ == "__main__":
    main()
