"""The tables of the documentation, made from ``bench/results``, so that no figure is typed by hand.

``python -m bench.tables`` rewrites every table in a page of ``docs/`` that stands between two markers::

    <!-- table: NAME -->
    <!-- end of table -->

Each table has its command, its machine and its number of runs below it. A test fails if a page is not up to date.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bench import method_tables, race_tables, speed_tables, transfer_tables, trial_tables

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {
    "demos": method_tables.demos,
    "contrastive demos": method_tables.contrastive_demos,
    "BYOL's demo": lambda: method_tables.found("byol"),
    "LeJEPA's demo": lambda: method_tables.found("lejepa"),
    "BYOL trials": trial_tables.byol_trials,
    "BYOL, views": trial_tables.byol_views,
    "DINO trials": trial_tables.dino_trials,
    "context trials": trial_tables.context_trials,
    "context, short": trial_tables.context_short,
    "inpainting": method_tables.inpainting,
    "photo holes": method_tables.photo_holes,
    "photo holes, Caltech-101": method_tables.photo_holes_caltech,
    "colorization": method_tables.colorization,
    "colorizer": method_tables.colorizer,
    "Set5": method_tables.set5,
    "split-brain": method_tables.splitbrain,
    "MAE": lambda: method_tables.masked("mae"),
    "SparK": lambda: method_tables.masked("spark"),
    "distillation": method_tables.distill,
    "masked encoder": speed_tables.masked_encoder,
    "split-brain with depth": method_tables.splitbrain_hha,
    "HHA": speed_tables.hha,
    "synthetic to real": method_tables.synthetic,
    "domains": method_tables.domains,
    "equal minutes": transfer_tables.equal_minutes,
    "CamVid": transfer_tables.camvid,
    "CIFAR-10": transfer_tables.cifar10,
    "loaders": speed_tables.loaders,
    "steps": speed_tables.steps,
    "precision": speed_tables.precision,
    "time of a transfer row": speed_tables.transfer_row,
    "kernels": speed_tables.kernels,
    "growth": speed_tables.growth,
    "overlap": speed_tables.overlap,
    "contrastive losses": speed_tables.contrastive_losses,
    "race, SimCLR on CIFAR-10": lambda: race_tables.race("SimCLR, CIFAR-10"),
}
"""Name of a table in a marker -> the function that makes it."""


def block(name: str) -> str:
    """The table for the name in a page's marker.

    name: one of ``TABLES``; or ``transfer REPORT``, followed by the rows to show, each after a semicolon (``transfer
    report; simclr``). Raises ValueError for another name.
    """
    if name.startswith("transfer "):
        report, *rows = (word.strip() for word in name.removeprefix("transfer ").split(";"))
        return transfer_tables.transfer(report, *rows)
    if name not in TABLES:
        raise ValueError(f"no table {name!r}: use {', '.join(TABLES)} or transfer REPORT; ROW; ...")
    return TABLES[name]()


def refreshed(text: str) -> str:
    """The text of a page with all its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2])}\n{found[3]}", text)


def pages() -> list[Path]:
    """Every page of the documentation, sorted."""
    return sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)


def main() -> None:
    """Rewrites the tables of every page and prints which pages changed."""
    for page in pages():
        before = page.read_text()
        after = refreshed(before)
        if after != before:
            page.write_text(after)
            print(f"refreshed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
