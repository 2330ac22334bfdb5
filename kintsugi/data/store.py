"""Settings of how data sets are stored (size, cache and its limit), and reports while they are opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAMED = 3
"""Number of skipped files that a report names."""


@dataclass(frozen=True)
class Store:
    """The settings that every function that opens data takes, besides the name of the set and the size of the crops."""

    short_side: int = 0
    """Short side of stored images, px; 0 = 1.5 times the crop's size."""
    cache: Path | None = None
    """Folder for decoded images and downloads; None = $KINTSUGI_CACHE or ~/.cache/kintsugi."""
    limit_gb: float = 8.0
    """Largest decoded set to keep in the cache, GB. Images of a larger set are decoded at each use."""
    device: str = "cpu"
    """Device on which built-in scenes are rendered, with torch's name."""
    quiet: bool = False
    """Show no progress bars and report nothing; set on all ranks but the first."""

    @property
    def root(self) -> Path:
        """The cache's folder. It may not exist yet."""
        return (self.cache or Path(os.environ.get("KINTSUGI_CACHE") or "~/.cache/kintsugi")).expanduser()

    @property
    def downloads(self) -> Path:
        """The folder in which torchvision keeps the sets that it downloads."""
        return self.root / "torchvision"

    def side_for(self, size: int) -> int:
        """Short side of stored images, px, for crops of ``size`` px. Raises ValueError if it is less than ``size``."""
        side = self.short_side or round(1.5 * size)
        if side < size:
            raise ValueError(f"--short-side {side} is less than --size {size}: images must hold the crop")
        return side

    def report(self, line: str) -> None:
        """Prints one line to stderr, unless quiet."""
        if not self.quiet:
            print(line, file=sys.stderr)

    def report_skipped(
        self, where: str, skipped: Sequence[str], count: int, kind: str, listed: Path | None = None
    ) -> None:
        """Reports in one line that the items ``skipped`` were left out, and names the first three.

        where: the set. count: number of all items. kind: what they are, in the plural. listed: a file that names all
        skipped items, if there is one.
        """
        more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        if more and listed is not None:
            more += f", listed in {listed}"
        self.report(f"{where}: skipped {len(skipped)} of {count} {kind}: {', '.join(skipped[:NAMED])}{more}")
