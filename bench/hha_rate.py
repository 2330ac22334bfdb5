"""Compares HHA with a picture from the authors' MATLAB code, and measures its time for a frame of 640x480 px.

Run ``python -m bench.hha_rate --data FOLDER``. The folder holds depth.png (16 bit, in units of 1e-4 m) and
hha_matlab.png.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.common import RESULTS
from kintsugi.data.hha import hha
from kintsugi.train.config import parse_command, user_errors

CAMERA = torch.tensor([[[518.858, 0, 325.582], [0, 519.470, 253.736], [0, 0, 1]]])
"""Intrinsics of the camera that took depth.png, px, (1,3,3)."""


@dataclass(frozen=True, kw_only=True)
class HhaConfig:
    """Compares HHA with a picture from the authors' code, and measures milliseconds per frame."""

    data: Path
    """Folder with depth.png (16 bit, in units of 1e-4 m) and hha_matlab.png."""
    out: Path = RESULTS
    """Folder for hha.json."""


def run(config: HhaConfig) -> None:
    depth = torch.from_numpy(np.asarray(Image.open(config.data / "depth.png")).astype(np.float32) / 1e4)[None, None]
    truth = torch.from_numpy(np.array(Image.open(config.data / "hha_matlab.png"))).permute(2, 0, 1).int()
    error = (hha(depth, CAMERA)[0].int() - truth).abs()  # (3,480,640)
    errors = {
        name: {"equal": (plane == 0).float().mean().item(), "largest": plane.max().item()}
        for name, plane in zip(("disparity", "height", "angle"), error, strict=True)
    }
    times: dict[int, list[float]] = {1: [], 2: [], 8: []}
    for batch, milliseconds in times.items():
        frames, cameras = depth.expand(batch, -1, -1, -1).contiguous(), CAMERA.expand(batch, -1, -1)
        for _ in range(12):
            start = time.perf_counter()
            hha(frames, cameras)
            milliseconds.append(1e3 * (time.perf_counter() - start) / batch)
    speed = {str(batch): round(statistics.median(each[2:]), 1) for batch, each in times.items()}
    result = {
        "against the authors' picture, levels": errors,
        "ms per frame by batch, median of 10": speed,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    text = json.dumps(result, indent=1)
    print(text)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "hha.json").write_text(text + "\n")


if __name__ == "__main__":
    with user_errors():
        run(parse_command(HhaConfig))
