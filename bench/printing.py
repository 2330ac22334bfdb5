"""Code that the tables of the documentation share: reading results, naming rows, printing a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kintsugi import table

RESULTS = Path(__file__).parent / "results"

XEON = "one core of a two-core Xeon with AMX, bfloat16"
XEON_FP32 = "one core of a two-core Xeon, float32"
EPYC = "one core of a two-core AMD EPYC with AVX512-BF16, bfloat16"
EPYC_FP32 = "one core of a two-core AMD EPYC, float32"

LABELS = {
    "mean ab": "mean color",
    "the scenes' mean": "mean of the scenes",
    "... seamless": "context encoder, seamless",
    "colorization": "colorization",
    "splitbrain": "split-brain",
    "splitbrain-hha": "split-brain with depth",
    "mae": "MAE",
    "spark": "SparK",
    "synthetic": "synthetic to real",
    "random init": "random weights",
    "inpainting": "inpainting, generator",
    "superresolution": "super-resolution, generator",
    "superresolution, discriminator": "super-resolution, discriminator",
    "autoencoder": "plain autoencoder",
    "cpc": "CPC",
    "simclr": "SimCLR",
    "moco": "MoCo v2",
    "byol": "BYOL",
    "dino": "DINO",
    "lejepa": "LeJEPA",
    "distill": "distillation",
    "context": "context prediction",
    "deepcluster": "DeepCluster",
    "sela": "SeLa",
    "cliquecnn": "CliqueCNN",
    "frame-order": "Shuffle and Learn",
    "odd-one-out": "odd-one-out",
    "supervised": "supervised, from scratch",
    "squeezenet1_0, squeezenet1_0_imagenet.safetensors": "SqueezeNet, ImageNet labels",
}
"""Name of a row in the results -> its name in the tables."""

Rows = dict[str, dict[str, str]]
"""Row -> column -> printed text."""


def load(name: str) -> Any:
    """Reads results/NAME.json. Keys with British spelling, which the oldest files have, are changed to American
    spelling."""
    spelling = json.loads((RESULTS / "spelling.json").read_text())

    def respelled(values: dict[str, Any]) -> dict[str, Any]:
        return {spelling.get(key, key): value for key, value in values.items()}

    return json.loads((RESULTS / f"{name}.json").read_text(), object_hook=respelled)


def label(name: str) -> str:
    """The name of a row in the tables. A name without an entry in ``LABELS`` is used as it is."""
    if name.startswith("random init ("):
        return name.replace("random init", "random weights")
    return LABELS.get(name, name)


def mean_and_deviation(values: list[float], digits: int = 1, scale: float = 100) -> str:
    """Mean and standard deviation of a figure over seeds, each times ``scale``: by default in percent.

    A single figure has no deviation.
    """
    if len(values) == 1:
        return f"{scale * values[0]:.{digits}f}"
    mean, deviation = scale * statistics.fmean(values), scale * statistics.stdev(values)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def with_source(rows: Rows, corner: str, command: str, machine: str, runs: str) -> str:
    """A table in markdown and, below it, where its figures come from: command, machine, number of runs.

    corner: the head of the column of row names.
    """
    return f"{table.markdown(rows, corner)}\n\n*{command}. {machine[0].upper()}{machine[1:]}. {runs}.*"


def columns_of(figures: Mapping[str, Mapping[str, float]], columns: Mapping[str, tuple[str, str]]) -> Rows:
    """Formats figures as rows of a table.

    figures: row -> key -> value. columns: key -> printed name and format. Keys without a column are left out.
    """
    return {
        label(row): {name: format(values[key], form) for key, (name, form) in columns.items() if key in values}
        for row, values in figures.items()
    }
