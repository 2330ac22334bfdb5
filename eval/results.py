"""Results of experiments: the finished ones in a folder, and their figures over the seeds."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from kintsugi.eval.weights import Weights


@dataclass(frozen=True)
class Experiment:
    """One set of weights on a task, under one of its protocols, with one seed; all by name."""

    task: str
    weights: str
    protocol: str
    seed: int


@dataclass
class Result:
    """What an experiment measured.

    figures: column of the table -> value in [0, 1], higher is better; the first is the protocol's main figure. details:
    other values, in any unit. seconds: wall time. error: why the experiment failed; "" if it did not.
    """

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


Results = dict[Experiment, Result]


class FinishedResults:
    """The finished results in a folder, kept in ``results.json``, which is written after each one."""

    FILE: ClassVar[str] = "results.json"

    def __init__(self, folder: Path) -> None:
        """Reads the file if there is one. Raises ValueError if it is damaged."""
        self.file = folder / self.FILE
        self.records: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            try:
                self.records = json.loads(self.file.read_text())
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{self.file} cannot be read ({type(error).__name__}): remove it, or name another folder with --out"
                ) from None

    def get(self, key: str) -> Result | None:
        """The result that was kept under ``key``, or None."""
        return Result(**self.records[key]["result"]) if key in self.records else None

    def put(self, key: str, experiment: Experiment, result: Result) -> None:
        """Keeps a result and writes the file, first under a temporary name. Raises OSError if it cannot be written."""
        self.records[key] = {"experiment": asdict(experiment), "result": asdict(result)}
        partial = self.file.with_name(f".{self.FILE}.{os.getpid()}.part")
        try:
            partial.write_text(json.dumps(self.records, indent=1) + "\n")
            partial.replace(self.file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(f"could not write {self.file} ({error.strerror}): free some space") from None


# --- figures over seeds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure over the seeds. ``values`` and ``baseline``, that of random weights: seed -> value in [0, 1]."""

    values: Mapping[int, float]
    baseline: Mapping[int, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The mean over the seeds, per cent."""
        return 100 * statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float:
        """Standard deviation in percentage points; 0 for a single seed."""
        return 100 * statistics.stdev(self.values.values()) if len(self.values) > 1 else 0.0

    @property
    def gains(self) -> list[float]:
        """Gains over random weights in percentage points, one for each seed that both have."""
        return [100 * (self.values[seed] - self.baseline[seed]) for seed in self.values if seed in self.baseline]

    @property
    def won(self) -> str:
        """How many of the gains are positive, such as 2/3."""
        return f"{sum(gain > 0 for gain in self.gains)}/{len(self.gains)}"


Column = tuple[str, str]
"""A task and a figure of one of its protocols."""


def figures(results: Results, weights: Sequence[Weights]) -> dict[str, dict[Column, Figure]]:
    """The table: name of the weights -> column -> figure, in the order of the results."""
    baselines = {one.name: one.baseline or "" for one in weights}
    values: dict[str, dict[Column, dict[int, float]]] = {one.name: {} for one in weights}
    for experiment, result in results.items():
        for name, value in result.figures.items():
            values[experiment.weights].setdefault((experiment.task, name), {})[experiment.seed] = value
    return {
        name: {
            column: Figure(found, values.get(baselines[name], {}).get(column, {})) for column, found in columns.items()
        }
        for name, columns in values.items()
    }
