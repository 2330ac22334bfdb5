"""Writes the network of a checkpoint as weights that ship: ``python -m bench.ship CKPT weights/NAME.safetensors``."""

from __future__ import annotations

import sys
from pathlib import Path

from kintsugi.train import checkpoint, shipped
from kintsugi.train.config import user_errors


def main() -> None:
    with user_errors():
        if len(sys.argv) != 3:
            raise ValueError("give a checkpoint or a run's folder, and the file to write")
        source, out = map(Path, sys.argv[1:])
        shipped.write(checkpoint.read(source)[1], out)
        print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
