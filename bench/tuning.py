"""Short trainings of one method with different options, compared on held-out training images.

``python -m bench.tuning --data tiny/train --method dino --trials lr=5e-4 lr=2e-3,outputs=256 --minutes 3`` trains the
method with the options of each trial, besides those of ``bench.equal_minutes``. A tenth of the images of each class is
kept out. The other nine tenths train the method, and then classify the held-out tenth by frozen features of the last
map, beside random weights of the same network. Test images are not used. A trial that the folder of runs has is not
made again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from bench.common import RESULTS, add, machine
from bench.equal_minutes import EqualMinutesConfig, seconds_per_step, settings_of, trained
from kintsugi.data.decode import SUFFIXES
from kintsugi.eval.classification import Classification, ClassificationSettings, SplitFeatures
from kintsugi.eval.linear import probe
from kintsugi.eval.tasks import FrozenFeatures
from kintsugi.eval.weights import Weights, saved_weights
from kintsugi.metrics.neighbors import accuracy
from kintsugi.train.compute import Compute
from kintsugi.train.config import parse_command, user_errors, within

HELD_OUT = 10  # every tenth image of a class
NEIGHBORS = 20


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Compares options of a method by short trainings."""

    data: Path
    """A folder with one folder of images for each class."""
    method: str
    """Name of the method."""
    trials: tuple[str, ...] = ("",)
    """Options of each trial, such as lr=1e-3,outputs=256; an empty one has none."""
    teacher: str = ""
    """The teacher of distill, as its option --teacher."""
    minutes: float = 3.0
    """Minutes of each training, of one thread's processor time."""
    size: int = 64
    """Side of the crops, px; smaller ones are quicker."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: networks run in bfloat16 autocast."""
    seed: int = 0
    """The seed of all trainings."""
    out: Path = Path("runs/tuning")
    """Folder of the runs."""
    results: Path = RESULTS
    """Folder of tuning.json, to which the results are added."""

    def __post_init__(self) -> None:
        within(self, minutes=0.001, size=8)


def run(config: TuningConfig) -> None:
    """Trains and measures what is missing, prints each result, and adds it to ``tuning.json``."""
    torch.set_num_threads(1)
    images = split(config.data, config.out / "images")
    same = EqualMinutesConfig(
        data=str(images / "train"), methods=(config.method,), teacher=config.teacher, precision=config.precision
    )
    compute = Compute.of("auto", config.precision)
    task = Classification(str(images), config.size, ClassificationSettings(pooled_features=1), compute)
    for trial in config.trials:
        name = f"{config.method} {trial}".strip()
        folder = config.out / name.replace(" ", "-").replace("/", "-")
        record = folder / "tuning.json"
        if not record.is_file():
            method, settings = settings_of(
                config.method, same, config.seed, ["--size", str(config.size), *words(trial)]
            )
            settings = replace(settings, out=folder)
            seconds = seconds_per_step(method, settings, threads=1, warm=2, timed=8)
            steps = max(1, round(60 * config.minutes / seconds))
            print(f"{name}: {1e3 * seconds:.0f} ms a step, so {steps} steps", flush=True)
            spent = trained(method, settings, steps)
            spent["minutes"] = spent["processor seconds"] / 60
            weights = saved_weights(folder)[1][0]
            figures = {"trained": measure(task, weights), "random": measure(task, Weights("random", weights.spec))}
            record.write_text(json.dumps({**spec(config, trial), **spent, **figures, "machine": machine()}, indent=1))
        found = json.loads(record.read_text())
        print(f"{name}: {found['trained']}, random weights {found['random']}", flush=True)
        add(found, name, config.results, "tuning")


def words(trial: str) -> list[str]:
    """``lr=1e-3,outputs=256`` as words of a command."""
    pairs = (option.partition("=") for option in trial.split(",") if option)
    return [word for name, _, value in pairs for word in (f"--{name}", value)]


def spec(config: TuningConfig, trial: str) -> dict[str, object]:
    """What was asked of a trial."""
    return {
        "method": config.method,
        "options": trial,
        "size": config.size,
        "precision": config.precision,
        "seed": config.seed,
    }


def split(data: Path, out: Path) -> Path:
    """A folder with train/ and test/, which hold links to the images of ``data``: every tenth of a class is in test/.

    Raises ValueError if ``data`` has no folders of images.
    """
    if not out.is_dir():
        for folder in sorted(path for path in data.iterdir() if path.is_dir()):
            files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
            for number, file in enumerate(files):
                link = out / ("test" if number % HELD_OUT == 0 else "train") / folder.name / file.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
    if not out.is_dir():
        raise ValueError(f"--data {data}: no folders of images in this folder")
    return out


def measure(task: Classification, weights: Weights) -> dict[str, float]:
    """Accuracies on the held-out images, in [0,1], by the mean of the last map: kNN, and a linear classifier."""
    found: SplitFeatures = FrozenFeatures(weights, 0, task.compute).once(task.features)
    train, test = found.train, found.test
    knn = accuracy(train.vector, train.labels, test.vector, test.labels, int(train.labels.max()) + 1, NEIGHBORS)
    linear = probe(found.vector, train.labels, test.labels, 0, task.config.steps_linear, task.config.batch_linear)[0]
    return {"kNN": round(knn, 4), "linear": round(linear, 4)}


def main() -> None:
    with user_errors():
        run(parse_command(TuningConfig))


if __name__ == "__main__":
    main()
