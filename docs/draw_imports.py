"""Draws which room imports which: ``python docs/draw_imports.py`` writes ``docs/images/imports.png``.

Rooms stand on floors, as in pyproject.toml's layers. An arrow goes from a room to one that it imports; its width grows
with the number of imports. Gray arrows point down; an arrow that pointed up would be red.
"""

from __future__ import annotations

from pathlib import Path

import grimp
import tomllib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

ROOT = Path(__file__).parents[1]


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = settings["contracts"][0]["layers"]
    return [layer.replace("|", ":").split(" : ") for layer in layers if layer != "__main__"]


def counts(rooms: list[str]) -> dict[tuple[str, str], int]:
    """(room, room that it imports) -> number of imports between their modules."""
    graph = grimp.build_graph("kintsugi")
    found: dict[tuple[str, str], int] = {}
    for module in graph.modules:
        room = module.split(".")[1] if "." in module else ""
        for imported in graph.find_modules_directly_imported_by(module):
            other = imported.split(".")[1] if "." in imported else ""
            if room != other and room in rooms and other in rooms:
                found[room, other] = found.get((room, other), 0) + 1
    return found


def main() -> None:
    stories = [[room.strip() for room in story] for story in floors()]
    places = {
        room: ((i + 1) / (len(story) + 1) + 0.13 * ((level % 3) - 1) * (len(story) == 1), -level)
        for level, story in enumerate(stories)
        for i, room in enumerate(story)
    }
    figure = Figure(figsize=(9, 10), layout="constrained")
    axes = figure.subplots()
    for (room, other), number in counts(list(places)).items():
        (x, y), (to_x, to_y) = places[room], places[other]
        color = "tab:red" if to_y >= y else "0.6"
        bend = 0.12 * ((len(room) + len(other)) % 3 - 1)  # so that arrows in a column do not hide each other
        axes.add_patch(
            FancyArrowPatch(
                (x, y - 0.16),
                (to_x, to_y + 0.16),
                arrowstyle="-|>",
                mutation_scale=9,
                color=color,
                linewidth=0.4 + number**0.5 / 4,
                connectionstyle=f"arc3,rad={bend}",
                alpha=0.8,
            )
        )
    for room, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#fdf6e3", "edgecolor": "#b58900"}
        axes.text(x, y, room, ha="center", va="center", fontsize=11, bbox=box)
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(stories) + 0.4, 0.6)
    axes.axis("off")
    figure.savefig(ROOT / "docs/images/imports.png", dpi=80)


if __name__ == "__main__":
    main()
