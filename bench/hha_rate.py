"""HHA beside the picture made by the authors' MATLAB code, and milliseconds for a 640x480 frame.

``python bench/hha.py FOLDER`` with depth.png (16 bit, 1e-4 m) and hha_matlab.png; writes bench/results/hha.json.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kintsugi.data.hha import hha

CAMERA = torch.tensor([[[518.858, 0, 325.582], [0, 519.470, 253.736], [0, 0, 1]]])


def main(folder: Path) -> None:
    depth = torch.from_numpy(np.asarray(Image.open(folder / "depth.png")).astype(np.float32) / 1e4)[None, None]
    truth = torch.from_numpy(np.array(Image.open(folder / "hha_matlab.png"))).permute(2, 0, 1).int()
    miss = (hha(depth, CAMERA)[0].int() - truth).abs()  # (3,480,640)
    found = {
        name: {"equal": (plane == 0).float().mean().item(), "largest": plane.max().item()}
        for name, plane in zip(("disparity", "height", "angle"), miss, strict=True)
    }
    times: dict[int, list[float]] = {1: [], 2: [], 8: []}
    for batch, seconds in times.items():
        frames, cameras = depth.expand(batch, -1, -1, -1).contiguous(), CAMERA.expand(batch, -1, -1)
        for _ in range(12):
            start = time.perf_counter()
            hha(frames, cameras)
            seconds.append(1e3 * (time.perf_counter() - start) / batch)
    speed = {str(batch): round(statistics.median(each[2:]), 1) for batch, each in times.items()}
    result = {
        "against the authors' picture, levels": found,
        "ms per frame by batch, median of 10": speed,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "hha.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
