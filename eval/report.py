"""The report of a transfer: methods x tasks, over seeds, as markdown, JSON, a plot and TensorBoard."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.tensorboard import SummaryWriter

from kintsugi import table
from kintsugi.eval.cells import (
    Cell,
    Column,
    Figure,
    Machine,
    Place,
    Results,
    Row,
    RunSettings,
    Task,
    figures,
    named,
    run,
    saved_rows,
    with_random,
)
from kintsugi.train.config import to_plain


@dataclass(frozen=True, kw_only=True)
class Comparison(RunSettings):
    """What the commands are told that move one checkpoint to one task."""

    ckpt: Path = Path("runs/inpainting/latest")
    """A run's folder or a checkpoint."""
    data: str = "scenes"
    roles: tuple[str, ...] = ()
    """Which encoders: generator, discriminator, encoder; default all that the checkpoint has."""
    out: Path | None = None
    """Folder for the results; default: TASK-DATA in the run's folder."""


def compare(config: Comparison, title: str, task: Callable[[Machine, Path], Task]) -> Results:
    """All cells of a checkpoint's encoders beside random weights of the same networks, reported as by ``transfer``.

    ``task(machine, file)`` opens the data; file: the checkpoint's.
    """
    file, rows = saved_rows(config.ckpt, config.roles)
    machine = Machine.of(config)
    folder = config.out or file.parent / f"{title}-{named(config.data)}"
    tasks = [task(machine, file)]
    return transfer(with_random(rows), tasks, config.seeds, folder, machine, to_plain(config))


def transfer(
    rows: Sequence[Row], tasks: Sequence[Task], seeds: int, folder: Path, machine: Machine, settings: Mapping[str, Any]
) -> Results:
    """Runs all cells, prints the table and leaves ``report.md``, ``report.json``, ``report.png`` and TensorBoard's
    events in ``folder``. The first two are up to date after each cell."""
    started = time.time()
    sizes = f"{len(rows)} rows of weights, {len(tasks)} tasks, {seeds} seeds"
    print(f"{', '.join(task.name for task in tasks)}: {sizes}, on {machine}")
    folder.mkdir(parents=True, exist_ok=True)
    costs = {row.name: cost(row) for row in rows}
    results: Results = {}

    def write() -> str:
        record = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "machine": str(machine),
            "seconds": round(time.time() - started),
            "settings": settings,
            "cost": costs,
            "cells": [asdict(place) | asdict(cell) for place, cell in results.items()],
        }
        text = markdown(results, rows, costs)
        (folder / "report.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
        (folder / "report.md").write_text(text + "\n")
        return text

    with SummaryWriter(str(folder)) as writer:

        def done(place: Place, cell: Cell) -> None:
            results[place] = cell
            for name, value in cell.figures.items():
                writer.add_scalar(f"{place.task}, {name}/{place.row}", value, place.seed)
            write()

        run(rows, tasks, seeds, folder, machine, done)
        for task in tasks:
            for title, picture in task.pictures().items():
                writer.add_image(f"{task.name}/{title}", picture)
        text = write()
        writer.add_text("report", text)
        drawn = plot(figures(results, rows), {row.base for row in rows}, folder / "report.png")
        if drawn is not None:
            writer.add_image("report", drawn, dataformats="HWC")
    print(text)
    print(f"written to {folder}")
    return results


def markdown(results: Results, rows: Sequence[Row], costs: Mapping[str, Mapping[str, float | str]]) -> str:
    """Mean and deviation over the seeds, in per cent; in brackets the gain over random weights of the same network and
    the seeds on which it was won. Then what each row costs, and what failed."""
    lines: dict[str, dict[str, float | str]] = {row.name: {} for row in rows}
    for row, found in figures(results, rows).items():
        lines[row] = {f"{task}: {name}": said(figure) for (task, name), figure in found.items()}
    for place, cell in results.items():
        if cell.error:
            lines[place.row][f"{place.task}: {place.protocol}"] = "failed"
    seconds = {row.name: sum(c.seconds for p, c in results.items() if p.row == row.name) for row in rows}
    cost_lines = {name: {**costs[name], "seconds here": f"{seconds[name]:.0f}"} for name in costs}
    failures = [
        f"- {place.task}, {place.row}, {place.protocol}, seed {place.seed}: {cell.error}"
        for place, cell in results.items()
        if cell.error
    ]
    return "\n\n".join(
        [
            table.markdown(lines, "weights"),
            table.markdown(cost_lines, "cost"),
            *(["Failed:\n\n" + "\n".join(failures)] if failures else []),
        ]
    )


def said(figure: Figure) -> str:
    text = f"{figure.mean:.1f} ± {figure.deviation:.1f}"
    return f"{text} ({sum(figure.gains) / len(figure.gains):+.1f}, {figure.won})" if figure.gains else text


def cost(row: Row, size: int = 64) -> dict[str, float | str]:
    """Images seen in pre-training, parameters in millions, and GFLOP of one image of ``size`` px forward."""
    encoder = row.encoder(0).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        encoder(torch.zeros(1, 3, size, size))
    return {
        "images seen": f"{row.seen:,}" if row.seen else "",
        "parameters, M": sum(p.numel() for p in encoder.parameters()) / 1e6,
        f"GFLOP at {size} px": counter.get_total_flops() / 1e9,
    }


def plot(found: Mapping[str, Mapping[Column, Figure]], bases: Collection[str | None], file: Path) -> np.ndarray | None:
    """A panel for each column: a bar and its deviation for each row but the ``bases``, those of random weights, which
    are a line across the bars of their networks.

    Written as PNG and returned, uint8 (H,W,4); None where there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and needed once
    from matplotlib.figure import Figure as Canvas

    columns = list(dict.fromkeys(column for line in found.values() for column in line))
    if not columns:
        return None
    rows = [name for name, line in found.items() if line and name not in bases][::-1]
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    canvas = Canvas(figsize=(5 * across + 2, down * (0.8 + 0.26 * len(rows))), layout="constrained")
    drawn = FigureCanvasAgg(canvas)
    panels = list(canvas.subplots(down, across, squeeze=False, sharey=True).flat)
    for panel, (task, name) in zip(panels, columns, strict=False):
        for place, row in enumerate(rows):
            figure = found[row].get((task, name))
            if figure is None:
                continue
            color = "tab:blue" if figure.gains else "tab:gray"
            panel.barh(place, figure.mean, xerr=figure.deviation, color=color, height=0.7)
            if figure.base:
                base = Figure(figure.base).mean
                panel.plot([base, base], [place - 0.45, place + 0.45], color="tab:red", linewidth=2)
        panel.set_title(f"{task}: {name}, %", fontsize=9)
        panel.set_yticks(range(len(rows)), rows, fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
    for panel in panels[len(columns) :]:
        panel.set_visible(False)
    canvas.suptitle("bar: mean over seeds and deviation; red: random weights of the same network", fontsize=9)
    canvas.set_dpi(90)
    canvas.savefig(file, dpi=90)
    drawn.draw()
    return np.asarray(drawn.buffer_rgba())
