"""What a part of ``make gpu`` measures: settings of a part, and a record that is on disk after every figure."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Row = Mapping[str, float | str]
"""Column -> figure, or text."""


@dataclass
class Record:
    """The figures of a part, as tables: title -> row -> column -> figure; and notes, one line each.

    The file is written anew after each figure, so that a part that is stopped leaves what it has measured.
    """

    file: Path
    deadline: float
    """When the part must have ended, in seconds of ``time.monotonic``."""
    tables: dict[str, dict[str, Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: bool = False

    @property
    def left(self) -> float:
        """Seconds that are left to the part."""
        return self.deadline - time.monotonic()

    def row(self, title: str, name: str, values: Row) -> None:
        """Adds a row to a table, or columns to a row."""
        table = self.tables.setdefault(title, {})
        table[name] = {**table.get(name, {}), **values}
        self._write()

    def note(self, line: str, failed: bool = False) -> None:
        """Adds a note, and prints it. failed: the part counts as failed."""
        print(line, flush=True)
        self.notes.append(line)
        self.failed |= failed
        self._write()

    def attempt(self, title: str, name: str, measure: Callable[[], Row], needed: float = 0) -> None:
        """Adds the row that ``measure`` returns. What it raises becomes a note, and the part goes on; ImportError does
        not count as a failure.

        needed: seconds; if fewer are left, nothing is measured.
        """
        if self.left < needed:
            self.note(f"{title}, {name}: left out, no time was left")
            return
        try:
            self.row(title, name, measure())
        except ImportError as error:  # something optional, such as another library
            self.note(f"{title}, {name}: skipped: {error}")
        except Exception as error:  # any error: the other figures should still be taken
            traceback.print_exc()
            text = " ".join(str(error).split())[:300]
            self.note(f"{title}, {name}: failed: {type(error).__name__}: {text}", failed=True)

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"tables": self.tables, "notes": self.notes}, indent=1)
        new = self.file.with_suffix(".new")
        new.write_text(text + "\n")
        new.replace(self.file)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part finds its data and puts its files."""

    carried: Path
    """Folder of the data sets that were carried, as tar files."""
    out: Path
    """Folder for results."""
    work: Path
    """Folder for runs, unpacked data and logs, which need not be kept."""
    tiny: bool = False
    """The smallest sizes, to try the command on a CPU."""
