"""Tasks of transfer, and running weights on them.

An experiment is one set of weights on a task, under one of its protocols, with one seed. Experiments run one after the
other. Each result is kept as soon as it is measured, so that a run that was stopped continues where it was.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from kintsugi.eval.results import Experiment, FinishedResults, Result, Results
from kintsugi.eval.weights import Weights
from kintsugi.nets.encoder import Encoder
from kintsugi.train.compute import Compute, Device, Precision
from kintsugi.train.config import within

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Options that every command of transfer has."""

    seeds: int = 3
    """Number of seeds. A seed sets the heads, the order of images, the choice of few labels, and random weights."""
    cache: Path | None = None
    """Folder for decoded images; default $KINTSUGI_CACHE or ~/.cache/kintsugi."""
    device: Device = "auto"
    """auto: the GPU if there is one."""
    precision: Precision = "auto"
    """auto: bf16 autocast on a GPU, and on a CPU with AMX or AVX512-BF16 if a short measurement at the start finds it
    faster for the first of the networks; else fp32."""

    def __post_init__(self) -> None:
        within(self, seeds=1)


class FrozenFeatures:
    """Weights on one task with one seed, and what was computed from their frozen encoder.

    One instance serves all protocols and, if all seeds have the same weights, all seeds.
    """

    def __init__(self, weights: Weights, seed: int, compute: Compute) -> None:
        self.weights, self.seed, self.compute = weights, seed, compute
        self._kept: dict[object, object] = {}

    def encoder(self) -> Encoder:
        """A new encoder on the device. The caller may train it."""
        encoder = self.weights.encoder(self.seed)
        return encoder.to(self.compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def once(self, make: Callable[[Encoder], T]) -> T:
        """``make(encoder)``, computed at the first call and kept."""
        if make not in self._kept:
            self._kept[make] = make(self.encoder())
        return cast(T, self._kept[make])


class Task(ABC):
    """A data set and what is predicted on it. A subclass opens its data in its constructor.

    name: the task and its data, as in the table. protocols: names of the ways to measure. The constructor raises
    ValueError with one line if the data is missing or cannot be used.
    """

    name: str
    protocols: tuple[str, ...]

    @abstractmethod
    def settings(self, protocol: str) -> Mapping[str, Any]:
        """Everything that a protocol's figures depend on besides weights and seed. Finished results are reused if it is
        the same."""

    @abstractmethod
    def measure(self, features: FrozenFeatures, protocol: str, seed: int) -> Result:
        """Trains and measures. Must not change what ``features.once`` keeps."""

    def pictures(self) -> Mapping[str, Tensor]:
        """Predictions of the experiments that were run: title -> (3,H,W) in [0,1]."""
        return {}


def data_name(data: str) -> str:
    """The name of ``--data`` in titles: the last part of its path."""
    return Path(data).expanduser().resolve().name


def evenly_spaced(count: int, limit: int) -> Tensor:
    """At most ``limit`` indices below ``count``, int64, evenly spaced: neighbors are often frames of one film."""
    return torch.arange(min(count, limit)) * count // min(count, limit)


# --- running them ---------------------------------------------------------------------------------------------


def run(
    weights: Sequence[Weights],
    tasks: Sequence[Task],
    seeds: int,
    folder: Path,
    compute: Compute,
    done: Callable[[Experiment, Result], None] = lambda experiment, result: None,
) -> Results:
    """Runs all experiments; finished ones in ``folder`` are not run again. ``done`` is called after each.

    An experiment that fails is printed, has its error in the results, and is not kept in the folder.
    """
    for one in weights:
        if len(one.states) > 1 and len(one.states) != seeds:
            raise ValueError(
                f"{one.name} has {len(one.states)} pre-trainings, one for each seed: use --seeds {len(one.states)}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    finished, results = FinishedResults(folder), Results()
    for task in tasks:
        for one in weights:
            for_all_seeds = FrozenFeatures(one, 0, compute)
            for seed in range(seeds):
                features = for_all_seeds if len(one.states) == 1 else FrozenFeatures(one, seed, compute)
                for protocol in task.protocols:
                    experiment = Experiment(task.name, one.name, protocol, seed)
                    key = _key(task, one, protocol, seed, compute)
                    result = finished.get(key)
                    if result is None:
                        result = _attempt(task, features, protocol, seed)
                        if not result.error:
                            finished.put(key, experiment, result)
                        print(_line(experiment, result), flush=True)
                    results[experiment] = result
                    done(experiment, result)
    return results


def _key(task: Task, weights: Weights, protocol: str, seed: int, compute: Compute) -> str:
    """A hash of everything that a result depends on."""
    settings = dict(task.settings(protocol))
    parts = [task.name, settings, weights.digest, protocol, seed, compute.device.type, compute.bf16]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _attempt(task: Task, features: FrozenFeatures, protocol: str, seed: int) -> Result:
    """Measures, and adds the wall time. If anything fails, prints the traceback and returns the error as the result."""
    started = time.perf_counter()
    try:
        result = task.measure(features, protocol, seed)
    except Exception as error:  # any error: the other experiments should still run
        traceback.print_exc(file=sys.stderr)
        return Result(error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    result.seconds = round(time.perf_counter() - started, 2)
    return result


def _line(experiment: Experiment, result: Result) -> str:
    """The line that is printed for a result."""
    values = ", ".join(f"{name} {100 * value:.1f}" for name, value in result.figures.items())
    where = f"{experiment.task} | {experiment.weights} | {experiment.protocol} | seed {experiment.seed}"
    return f"{where}: {values or f'failed: {result.error}'} ({result.seconds:.1f} s)"
