"""The command ``python -m bench.gpu``: installs the wheels that are carried, because the rest needs them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench.gpu import carried


def main() -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--carried", type=Path, default=carried.FOLDER)
    carried.install(parser.parse_known_args()[0].carried)
    from bench.gpu.parts import main as run_parts

    run_parts(begun)


if __name__ == "__main__":
    main()
