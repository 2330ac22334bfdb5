"""Races Kintsugi, lightly and stable-pretraining: kNN accuracy on held-out images against the processor's minutes.

``python -m bench.race --data cifar10 --name "SimCLR, CIFAR-10" --peers-python peers/bin/python``

Method, network, data, augmentation, batch, optimizer, learning rate and schedule are the same. Each contestant is a
process of its own with one thread, one after the other, written as the users of its library write it
(``bench.contestants``). First a few steps of each are timed; they set how many steps it makes in the given minutes, so
that its learning rate reaches 0 in time. Minutes are of the processor, so that other programs do not count. They begin
after the first step; what comes before it, such as Kintsugi's decoding of all images, which later runs find in the
cache, is reported as the start. The weights are kept at the end of each lap, and one evaluation, which does not count,
measures all of them.

Last, Kintsugi runs again, for as many images as the faster of the others saw: the comparison at equal images, with
equal schedules. A run that is finished is not made again.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from bench.common import RESULTS, add, machine
from bench.contestants.laps import RaceSettings
from kintsugi.data.image_set import Images, Split
from kintsugi.data.images import open_labeled
from kintsugi.data.store import Store
from kintsugi.eval.features import central_squares
from kintsugi.eval.tasks import evenly_spaced
from kintsugi.metrics.neighbors import accuracy
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.vit import ViT
from kintsugi.train.compute import Compute
from kintsugi.train.config import parse_command, user_errors, within
from kintsugi.train.inference import fit_batch_norms

ROOT = Path(__file__).parents[1]
MODULES = {"kintsugi": "own", "lightly": "lightly_{}", "stable-pretraining": "stable_{}"}
"""Contestant -> its module in ``bench.contestants``, with the method in place of the braces."""
NEIGHBORS = 20
TRIAL = (6, 3)
"""Steps of the timing, and its laps. All but the first lap are timed."""


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    """Races libraries: kNN accuracy against minutes."""

    data: Path
    """Folder with train/ and test/, which hold one folder for each class."""
    name: str
    """Name of this race in race.json. Races of other names stay."""
    method: Literal["simclr", "mae"] = "simclr"
    """The method."""
    contestants: tuple[str, ...] = tuple(MODULES)
    """Who races."""
    peers_python: Path = Path(sys.executable)
    """The Python that has lightly and stable-pretraining."""
    minutes: float = 15.0
    """The processor's minutes of each contestant."""
    laps: int = 5
    """Number of points of each curve."""
    seeds: tuple[int, ...] = (0,)
    """One run of each contestant for each of these seeds."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of all contestants."""
    size: int = 32
    """Side of the crops, px."""
    batch: int = 64
    """Images per step."""
    lr: float = 1e-3
    """AdamW's highest learning rate, for this batch; it falls along a cosine to 0."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    smallest_crop: float = 0.08
    """Smallest fraction of an image's area that a crop shows."""
    stem: Literal["large", "small"] = "large"
    """SimCLR: the first layer of ResNet-18."""
    temperature: float = 0.5
    """SimCLR: temperature of the loss."""
    strength: float = 0.5
    """SimCLR: strength of the color jitter."""
    patch: int = 4
    """MAE: side of a patch, px, of a ViT-Tiny."""
    decoder_width: int = 128
    """MAE: channels of the decoder."""
    decoder_depth: int = 2
    """MAE: blocks of the decoder."""
    known: int = 10_000
    """Largest number of training images among which neighbors are searched, evenly spaced."""
    queries: int = 2_000
    """Largest number of held-out images that are classified, evenly spaced."""
    runs: Path = Path("runs/race")
    """Folder for weights and times."""
    out: Path = RESULTS
    """Folder of race.json and race.png."""

    def __post_init__(self) -> None:
        within(self, minutes=0.001, laps=1, size=32, batch=2, lr=0, known=1, queries=1)
        if unknown := sorted(set(self.contestants) - set(MODULES)):
            raise ValueError(f"--contestants {unknown[0]}: choose from {', '.join(MODULES)}")


class Judge:
    """Measures weights of all contestants alike: kNN accuracy on held-out images."""

    def __init__(self, config: RaceConfig) -> None:
        self.config, self.compute = config, Compute(torch.device("cpu"))
        split: Split = open_labeled(
            str(config.data.absolute()), config.size, Store(config.size, config.runs / "cache", quiet=True)
        )
        self.train, self.heldout = split.train, split.heldout

    def encoder(self, state: dict[str, Tensor] | None, seed: int = 0) -> Encoder:
        """The encoder with these weights, or with random ones. Raises RuntimeError if they are of another network."""
        config = self.config
        torch.manual_seed(seed)
        if config.method == "simclr":
            encoder: Encoder = Backbone("resnet18", stem=config.stem).build()
            if state is not None:
                encoder.load_state_dict(state)
        else:
            vit = ViT("vit_tiny_patch16_224", config.size, config.patch).build()
            vit.fix_positions()
            if state is not None:
                vit.net.load_state_dict(state)
            encoder = vit
        return encoder.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def accuracy(self, encoder: Encoder) -> float:
        """Accuracy, in per cent, of 20 nearest neighbors by the coarsest map's average, with fitted batch norms."""
        config = self.config
        fit_batch_norms(encoder, (image for image, _ in self._squares(self.train, 256)), self.compute)
        (known, labels), (queries, truth) = (
            self._features(encoder, images, count)
            for images, count in ((self.train, config.known), (self.heldout, config.queries))
        )
        return 100 * accuracy(known, labels, queries, truth, len(self.train.classes), NEIGHBORS)

    def _features(self, encoder: Encoder, images: Images, count: int) -> tuple[Tensor, Tensor]:
        found = [(encoder.vectors(image).float(), label) for image, label in self._squares(images, count)]
        return torch.cat([each for each, _ in found]), torch.cat([label for _, label in found])

    def _squares(self, images: Images, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        return central_squares(images, self.config.size, self.compute, evenly_spaced(len(images), count))


def settings_of(config: RaceConfig, out: Path, steps: int, laps: int, seed: int) -> RaceSettings:
    """The settings of one contestant's run."""
    shared = {name: value for name, value in asdict(config).items() if name in RaceSettings.__dataclass_fields__}
    own = {"data": str(config.data.absolute()), "out": str(out.absolute()), "steps": steps, "laps": laps, "seed": seed}
    return RaceSettings(**(shared | own))


def run_contestant(config: RaceConfig, name: str, settings: RaceSettings) -> dict[str, Any]:
    """Runs a contestant in a process of its own, unless its run is finished. Returns what ``Laps`` wrote."""
    out = Path(settings.out)
    file = out / "laps.json"
    if not file.is_file() or not json.loads(file.read_text())["finished"]:
        out.mkdir(parents=True, exist_ok=True)
        (out / "settings.json").write_text(json.dumps(asdict(settings), indent=1) + "\n")
        python = sys.executable if name == "kintsugi" else str(config.peers_python.absolute())
        module = f"bench.contestants.{MODULES[name].format(config.method)}"
        command = [python, "-m", module, str(out / "settings.json")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        # In its folder, because some libraries write logs where they run.
        if subprocess.run(command, cwd=out, env=environment, stdout=sys.stderr).returncode:
            raise ValueError(f"{name} failed: {' '.join(command)}")
    return json.loads(file.read_text())


def timing(config: RaceConfig, name: str) -> dict[str, float]:
    """The seconds before a contestant's first step, and those of one step, by timing a few."""
    steps, laps = TRIAL
    found = run_contestant(config, name, settings_of(config, config.runs / f"{name}-timing", steps, laps, 0))
    first, last = found["laps"][0], found["laps"][-1]
    seconds = config.batch * (last["seconds"] - first["seconds"]) / (last["images"] - first["images"])
    return {"start": round(found["start"] - seconds, 2), "step": round(seconds, 4)}


def measured(config: RaceConfig, judge: Judge, name: str, out: Path, steps: int, seed: int) -> list[dict[str, float]]:
    """The laps of a contestant: images seen, minutes of the processor, and kNN accuracy in per cent."""
    curve = []
    for lap in run_contestant(config, name, settings_of(config, out, steps, config.laps, seed))["laps"]:
        file = out / str(lap["file"])
        figure = file.with_suffix(".json")
        if not figure.is_file():
            state = torch.load(file, weights_only=True)
            figure.write_text(json.dumps(judge.accuracy(judge.encoder(state))))
        knn = round(json.loads(figure.read_text()), 2)
        curve.append({"images": lap["images"], "minutes": round(lap["seconds"] / 60, 3), "knn": knn})
        print(f"{out.name}: {curve[-1]}", flush=True)
    return curve


def run(config: RaceConfig) -> None:
    """Races, adds the result to race.json, and draws all races there."""
    judge = Judge(config)
    timings = {name: timing(config, name) for name in config.contestants}
    steps = {name: max(config.laps, round(60 * config.minutes / found["step"])) for name, found in timings.items()}
    runs = {name: (name, count) for name, count in steps.items()}  # name of a row -> contestant and its steps
    others = [name for name in steps if name != "kintsugi"]
    if others and "kintsugi" in steps:
        fastest = max(others, key=lambda name: steps[name])
        runs[f"kintsugi, as many images as {fastest}"] = ("kintsugi", steps[fastest])
    curves: dict[str, list[list[dict[str, float]]]] = {row: [] for row in runs}
    for seed in config.seeds:
        for row, (name, count) in runs.items():
            out = config.runs / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
            curves[row].append(measured(config, judge, name, out, count, seed))
    random = [round(judge.accuracy(judge.encoder(None, seed)), 2) for seed in config.seeds]
    places = ("data", "name", "contestants", "peers_python", "runs", "out")
    record = {
        "command": shlex.join(["python", "-m", "bench.race", *sys.argv[1:]]),
        "settings": {name: value for name, value in asdict(config).items() if name not in places},
        "random weights": random,
        "seconds": timings,
        "curves": curves,
        "machine": machine(),
    }
    add(record, config.name, config.out, "race")
    draw(config.out)


def draw(out: Path) -> None:
    """Draws all races of ``out``/race.json as ``out``/race.png: against minutes and, beside it, against images."""
    races = json.loads((out / "race.json").read_text())
    figure, axes = plt.subplots(len(races), 2, figsize=(11, 3.6 * len(races)), squeeze=False, layout="constrained")
    for (title, race), (by_minutes, by_images) in zip(races.items(), axes, strict=True):
        start = sum(race["random weights"]) / len(race["random weights"])
        for axis, key in ((by_minutes, "minutes"), (by_images, "images")):
            for number, (row, runs) in enumerate(race["curves"].items()):
                for seed, laps in enumerate(runs):
                    points = [(0.0, start), *((lap[key], lap["knn"]) for lap in laps)]
                    style = "--" if "as many" in row else "-"
                    label = row if seed == 0 else None
                    axis.plot(*zip(*points, strict=True), style, marker="o", color=f"C{number}", label=label)
            axis.set_title(title, fontsize=10)
            axis.set_ylabel("kNN, %")
            axis.spines[["top", "right"]].set_visible(False)
        by_minutes.set_xlabel("minutes of one core")
        by_images.set_xlabel("images seen")
        by_minutes.legend(frameon=False, fontsize=8)
    figure.savefig(out / "race.png", dpi=110)
    plt.close(figure)


def main() -> None:
    with user_errors():
        run(parse_command(RaceConfig))


if __name__ == "__main__":
    main()
