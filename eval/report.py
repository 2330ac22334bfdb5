"""The report of a transfer: weights x tasks over seeds, as markdown, JSON, a plot and TensorBoard."""

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
from kintsugi.eval.results import Column, Experiment, Figure, Result, Results, figures
from kintsugi.eval.tasks import RunSettings, Task, data_name, run
from kintsugi.eval.weights import Weights, saved_weights, with_random
from kintsugi.train import bf16
from kintsugi.train.compute import Compute
from kintsugi.train.config import to_plain


@dataclass(frozen=True, kw_only=True)
class Comparison(RunSettings):
    """Options of the commands that transfer one checkpoint to one task."""

    ckpt: Path = Path("runs/inpainting/latest")
    """A run's folder or a checkpoint."""
    data: str = "scenes"
    roles: tuple[str, ...] = ()
    """Which of the checkpoint's encoders to transfer: generator, discriminator, encoder; default: all."""
    out: Path | None = None
    """Folder for the results; default: TASK-DATA in the run's folder."""


def compare(config: Comparison, title: str, task: Callable[[Compute, Path], Task]) -> Results:
    """Transfers a checkpoint's encoders and random weights of the same networks, and reports as ``transfer`` does.

    ``task(compute, file)`` opens the data; ``file`` is the checkpoint's.
    """
    file, weights = saved_weights(config.ckpt, config.roles)
    compute = opened(config, weights)
    folder = config.out or file.parent / f"{title}-{data_name(config.data)}"
    tasks = [task(compute, file)]
    return transfer(with_random(weights), tasks, config.seeds, folder, compute, to_plain(config))


def opened(config: RunSettings, weights: Sequence[Weights]) -> Compute:
    """The device and the precision for all weights of a table.

    --precision auto on a CPU: measured with the first of the weights at 64 px, and printed in one line.
    """
    compute = Compute.of(config.device, config.precision)
    if line := bf16.choose(compute, config.precision, weights[0].encoder(0), 64):
        print(line)
    return compute


def transfer(
    weights: Sequence[Weights],
    tasks: Sequence[Task],
    seeds: int,
    folder: Path,
    compute: Compute,
    settings: Mapping[str, Any],
) -> Results:
    """Runs all experiments and prints the table.

    Writes ``report.md`` and ``report.json`` into ``folder`` after each experiment, and at the end ``report.png`` and
    TensorBoard's events. ``settings``: what ``report.json`` records of the command.
    """
    started = time.time()
    sizes = f"{len(weights)} sets of weights, {len(tasks)} tasks, {seeds} seeds"
    print(f"{', '.join(task.name for task in tasks)}: {sizes}, on {compute}")
    folder.mkdir(parents=True, exist_ok=True)
    costs = {one.name: cost(one) for one in weights}
    results: Results = {}

    def write() -> str:
        record = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "machine": str(compute),
            "seconds": round(time.time() - started),
            "settings": settings,
            "cost": costs,
            "results": [asdict(experiment) | asdict(result) for experiment, result in results.items()],
        }
        text = markdown(results, weights, costs)
        (folder / "report.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
        (folder / "report.md").write_text(text + "\n")
        return text

    with SummaryWriter(str(folder)) as writer:

        def done(experiment: Experiment, result: Result) -> None:
            results[experiment] = result
            for name, value in result.figures.items():
                writer.add_scalar(f"{experiment.task}, {name}/{experiment.weights}", value, experiment.seed)
            write()

        run(weights, tasks, seeds, folder, compute, done)
        for task in tasks:
            for title, picture in task.pictures().items():
                writer.add_image(f"{task.name}/{title}", picture)
        text = write()
        writer.add_text("report", text)
        drawn = plot(figures(results, weights), {one.baseline for one in weights}, folder / "report.png")
        if drawn is not None:
            writer.add_image("report", drawn, dataformats="HWC")
    print(text)
    print(f"written to {folder}")
    return results


def markdown(results: Results, weights: Sequence[Weights], costs: Mapping[str, Mapping[str, float | str]]) -> str:
    """The table of figures (``formatted``), the table of costs, and a list of failures."""
    lines: dict[str, dict[str, float | str]] = {one.name: {} for one in weights}
    for name, found in figures(results, weights).items():
        lines[name] = {f"{task}: {title}": formatted(figure) for (task, title), figure in found.items()}
    for experiment, result in results.items():
        if result.error:
            lines[experiment.weights][f"{experiment.task}: {experiment.protocol}"] = "failed"
    seconds = {one.name: sum(r.seconds for e, r in results.items() if e.weights == one.name) for one in weights}
    cost_lines = {name: {**costs[name], "seconds here": f"{seconds[name]:.0f}"} for name in costs}
    failures = [
        f"- {e.task}, {e.weights}, {e.protocol}, seed {e.seed}: {result.error}"
        for e, result in results.items()
        if result.error
    ]
    return "\n\n".join(
        [
            table.markdown(lines, "weights"),
            table.markdown(cost_lines, "cost"),
            *(["Failed:\n\n" + "\n".join(failures)] if failures else []),
        ]
    )


def formatted(figure: Figure) -> str:
    """Mean and deviation over the seeds in per cent, such as 41.9 ± 0.3 (+9.9, 3/3); in brackets, the mean gain over
    random weights, and for how many seeds there is a gain."""
    text = f"{figure.mean:.1f} ± {figure.deviation:.1f}"
    return f"{text} ({sum(figure.gains) / len(figure.gains):+.1f}, {figure.won})" if figure.gains else text


def cost(weights: Weights, size: int = 64) -> dict[str, float | str]:
    """Images seen in pre-training, parameters in millions, and GFLOP of the forward pass of one ``size`` px image."""
    encoder = weights.encoder(0).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        encoder(torch.zeros(1, 3, size, size))
    return {
        "images seen": f"{weights.images_seen:,}" if weights.images_seen else "",
        "parameters, M": sum(p.numel() for p in encoder.parameters()) / 1e6,
        f"GFLOP at {size} px": counter.get_total_flops() / 1e9,
    }


def plot(
    found: Mapping[str, Mapping[Column, Figure]], baselines: Collection[str | None], file: Path
) -> np.ndarray | None:
    """Draws one panel per column: a bar with its deviation for each set of weights.

    Random weights, those named in ``baselines``, have no bar; they are a line across the bars of their network. Writes
    a PNG and returns it, uint8 (H,W,4); None if there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: slow to import
    from matplotlib.figure import Figure as Canvas

    columns = list(dict.fromkeys(column for line in found.values() for column in line))
    if not columns:
        return None
    names = [name for name, line in found.items() if line and name not in baselines][::-1]
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    canvas = Canvas(figsize=(5 * across + 2, down * (0.8 + 0.26 * len(names))), layout="constrained")
    drawn = FigureCanvasAgg(canvas)
    panels = list(canvas.subplots(down, across, squeeze=False, sharey=True).flat)
    for panel, (task, title) in zip(panels, columns, strict=False):
        for place, name in enumerate(names):
            figure = found[name].get((task, title))
            if figure is None:
                continue
            color = "tab:blue" if figure.gains else "tab:gray"
            panel.barh(place, figure.mean, xerr=figure.deviation, color=color, height=0.7)
            if figure.baseline:
                baseline = Figure(figure.baseline).mean
                panel.plot([baseline, baseline], [place - 0.45, place + 0.45], color="tab:red", linewidth=2)
        panel.set_title(f"{task}: {title}, %", fontsize=9)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
    for panel in panels[len(columns) :]:
        panel.set_visible(False)
    canvas.suptitle("bar: mean over seeds and deviation; red: random weights of the same network", fontsize=9)
    canvas.set_dpi(90)
    canvas.savefig(file, dpi=90)
    drawn.draw()
    return np.asarray(drawn.buffer_rgba())
