"""Tables of short trials: a method with different settings, by which its defaults were chosen or a fault was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.printing import label, load, with_source


def byol_trials() -> str:
    """Short runs of BYOL's demo with other settings: what the features find, and how the projections are spread."""

    def cells(trial: Any) -> dict[str, str]:
        after = trial["after steps"]
        found = {
            f"found after {steps}, %": f"{after[steps]['same_image']:.1f}" if steps in after else ""
            for steps in ("100", "150", "200")
        }
        spread = {"deviation": f"{after['100']['deviation']:.2f}", "rank": f"{after['100']['rank']:.0f}"}
        return found | {"loss": f"{after['100']['loss']:.2f}"} | spread

    return _trials("byol-trials", cells)


def byol_views() -> str:
    """BYOL with other views and other momenta of the target: how many directions the projections keep."""

    def cells(trial: Any) -> dict[str, str]:
        return {
            "steps": str(trial["steps"]),
            "found, %": f"{trial['same_image']:.1f}",
            **{name: f"{trial[name]:.1f}" if name in trial else "" for name in ("random weights", "pixels")},
            "loss": f"{trial['loss']:.2f}",
            "rank": f"{trial['rank']:.0f}",
            "in 3 directions, %": f"{100 * trial['in 3 directions']:.0f}",
        }

    return _trials("byol-views", cells)


def dino_trials() -> str:
    """Short runs of DINO with other settings: how evenly the teacher chooses, and what the features are worth."""

    def cells(trial: Any) -> dict[str, str]:
        entropies = trial.get("step -> entropy of the targets, entropy of their mean, nats", {})
        return {
            "steps": str(trial["steps"]),
            **{
                f"{name}, step 50": f"{entropies['50'][which]:.2f}" if entropies else ""
                for which, name in enumerate(("entropy", "of the mean"))
            },
            **{name: f"{100 * trial['trained'][name]:.1f}" for name in ("kNN", "linear")},
            **{f"{name}, random weights": f"{100 * trial['random'][name]:.1f}" for name in ("kNN", "linear")},
        }

    return _trials("tuning-dino", cells)


def context_trials() -> str:
    """Short runs of context prediction with other settings: places found, and what the features are worth."""

    def cells(trial: Any) -> dict[str, str]:
        features = trial.get("features", {})
        return {
            "steps": f"{trial['steps']}" if "steps" in trial else "",
            "right, %": f"{trial['accuracy']:.1f}" if "accuracy" in trial else "",
            "kNN": f"{features['knn']:.1f}" if features else "",
            **{f"stride {s}": f"{features[f'stride {s}']:.1f}" if features else "" for s in (32, 16, 8, 4)},
        }

    return _trials("context-trials", cells)


def context_short() -> str:
    """What the features of context prediction are worth after short runs, beside random weights measured alike."""
    result = load("context-trials")
    transfer = result["transfer"]
    rows = {label(name): {task: f"{value:.1f}" for task, value in of.items()} for name, of in transfer.items()}
    return with_source(rows, "weights", result["transfer command"], result["machine"], "One pre-training, one seed")


def _trials(name: str, cells: Callable[[Any], dict[str, str]]) -> str:
    """The table of results/NAME.json, one row for each trial; cells: trial -> column -> printed text.

    A row's name has the size of the images, where the trial has one.
    """
    result = load(name)
    rows = {
        trial["trial"] + (f" ({trial['size']} px)" if "size" in trial else ""): cells(trial)
        for trial in result["trials"]
    }
    return with_source(rows, "trial", result["command"], result["machine"], "One run each")
