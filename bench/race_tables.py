"""Tables of ``bench.race``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.printing import Rows, load, mean_and_deviation, with_source
from bench.speed_tables import machine_of

Curve = Sequence[dict[str, float]]
"""The laps of one run: images, minutes, knn."""


def race(name: str) -> str:
    """The race of this name: kNN accuracy, minutes until the others' accuracy, images seen, images per second."""
    found = load("race")[name]
    curves, seconds = found["curves"], found["seconds"]
    rows: Rows = {"random weights": {"kNN, %": mean_and_deviation(found["random weights"], scale=1)}}
    finals = {row: [run[-1] for run in runs] for row, runs in curves.items()}
    for row, laps in finals.items():
        title = row.replace("kintsugi", "Kintsugi")
        rows[title] = {
            "kNN, %": mean_and_deviation([lap["knn"] for lap in laps], scale=1),
            "minutes": f"{_mean(laps, 'minutes'):.2f}",
            "images seen": f"{_mean(laps, 'images'):,.0f}",
            "images/s": f"{_mean(laps, 'images') / (60 * _mean(laps, 'minutes')):.1f}",
        }
        if row == "kintsugi":
            for other in sorted(set(finals) & set(seconds) - {row}):
                knn = statistics.fmean(lap["knn"] for lap in finals[other])
                reached = [minutes_to(run, knn) for run in curves[row]]
                known = [each for each in reached if each is not None]
                text = "not reached" if len(known) < len(reached) else f"{statistics.fmean(known):.2f}"
                rows[title][f"minutes to {other}'s"] = text
        if row in seconds:
            rows[title]["start, s"] = f"{seconds[row]['start']:.1f}"
    seeds = len(found["settings"]["seeds"])
    return with_source(
        rows,
        name,
        f"`{found['command']}`",
        f"one of {machine_of(found)}",
        f"{seeds} runs each" if seeds > 1 else "One run each",
    )


def minutes_to(run: Curve, knn: float) -> float | None:
    """The minutes after which a run first has this accuracy, interpolated between laps; None if never.

    From the end of the first lap on.
    """
    before: dict[str, float] | None = None
    for lap in run:
        if lap["knn"] >= knn:
            if before is None:
                return lap["minutes"]
            share = (knn - before["knn"]) / (lap["knn"] - before["knn"])
            return before["minutes"] + share * (lap["minutes"] - before["minutes"])
        before = lap
    return None


def _mean(laps: Curve, key: str) -> float:
    return statistics.fmean(lap[key] for lap in laps)
