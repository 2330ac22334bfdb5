"""Tables of figures, as markdown and JSON: what commands print, and leave in a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

Rows = Mapping[str, Mapping[str, float | str]]
"""Row -> column -> value, or the text to print. A column that a row lacks is left empty."""


def markdown(rows: Rows, corner: str = "") -> str:
    """A table of aligned columns, readable on a terminal too; columns in the order in which rows first have them.

    corner: the head of the column of row names.
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [[corner, *columns]]
    cells += [[name, *(_figure(row.get(column)) for column in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    lines = [
        "| "
        + " | ".join([line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)])
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join(["---", *["---:"] * len(columns)]) + "|")
    return "\n".join(lines)


def write(rows: Rows, folder: Path, name: str, corner: str = "", record: object = None) -> None:
    """Writes ``NAME.md`` and ``NAME.json`` into a folder, which is made if it does not exist.

    record: what the JSON holds; default: the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(markdown(rows, corner) + "\n")
    (folder / f"{name}.json").write_text(json.dumps(rows if record is None else record, indent=1) + "\n")


def _figure(value: float | str | None) -> str:
    """About four significant digits, for values from thousandths to thousands."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.2f}" if abs(value) >= 10 or value == 0 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"
