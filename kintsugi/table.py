"""Tables of figures, as markdown and JSON, which commands print and write into a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

Rows = Mapping[str, Mapping[str, float | str]]
"""Row -> column -> value, or printed text. The cell of a column that a row lacks is empty."""


def markdown(rows: Rows, corner: str = "") -> str:
    """A markdown table with aligned columns, so that it is readable on a terminal too.

    Columns are in the order in which they first occur in the rows. corner: the head of the column of row names.
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
    """Writes NAME.md and NAME.json into a folder, which is created if needed.

    record: the content of the JSON; default: the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(markdown(rows, corner) + "\n")
    (folder / f"{name}.json").write_text(json.dumps(rows if record is None else record, indent=1) + "\n")


def _figure(value: float | str | None) -> str:
    """The text of a cell. Numbers from thousandths to thousands get about four significant digits."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.2f}" if abs(value) >= 10 or value == 0 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"
