"""Transfer of features to depth and surface normals, against random weights of the same network.

``python -m kintsugi.eval.geometry --ckpt runs/inpainting/latest --data rgbd_kitchen``

One network predicts both, as in Eigen and Fergus 2015 (arXiv:1411.4734), whose figures these are: log depth with an L1
loss, and normals with a cosine loss, each where the truth is known. Protocols and network: ``kintsugi.eval.dense``.

The frames of an RGB-D folder are one film, in the order of their names. The last fifth is held out, and the twentieth
before it is left out, so that no validation frame is a neighbor of a training frame. Both parts still show the same
place. So such a folder cannot show how well places that were never seen are predicted; the scenes can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kintsugi.data.hha import fit_normals
from kintsugi.data.rendered import labeled_scenes
from kintsugi.data.rgbd import open_rgbd
from kintsugi.eval.dense import TITLES, DenseSettings, DenseTask, Labeled
from kintsugi.eval.report import Comparison, compare
from kintsugi.eval.results import Result, Results
from kintsugi.eval.tasks import data_name
from kintsugi.losses.depth import depth_loss, normal_loss
from kintsugi.metrics.surface_errors import depth_errors, normal_errors
from kintsugi.train.compute import Compute
from kintsugi.train.config import parse_command, user_errors

SCENE_SIZE = 96
DEPTH, NORMAL = slice(0, 1), slice(1, 4)  # planes of a target
RADIUS = 1 / 80
"""Radius of the squares to which planes are fitted, as a fraction of the image's width. Of 2, 4 and 6 px at a width of
320 px, 4 gives normals that are smooth and still sharp at edges."""


class Geometry(DenseTask):
    """Predicts depth and normals.

    data: ``scenes``, with exact depth and normals, or an RGB-D folder (``kintsugi.data.rgbd.open_rgbd``), whose
    normals come from planes fitted to depth. Targets (N,4,H,W): depth in meters and unit normals towards the camera (x
    right, y down, z forward), each 0 where it is missing.

    Figures: the fraction of pixels with depth within 25 % (delta < 1.25), and with normals within 22.5 degrees.
    Details: other errors, and the errors of the baseline, ``mean_frame`` of the training images.
    """

    def __init__(self, data: str, config: DenseSettings, compute: Compute) -> None:
        train, val = open_targets(data, config.train_scenes)
        self.baseline = errors(mean_frame(train.targets).expand_as(val.targets), val.targets)
        depth = train.targets[:, DEPTH]
        self.mean_log_depth = depth[depth > 0].log().mean().item()  # what an output of 0 means
        super().__init__(f"geometry {data_name(data)}", train, val, 4, config, compute)
        # Training of all layers takes whole images: crops lack the context that distances are judged by.
        self.crop = max(train.images.shape[-2:])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        depth = depth_loss(output[:, DEPTH] + self.mean_log_depth, target[:, DEPTH])
        return depth + normal_loss(unit(output[:, NORMAL]), target[:, NORMAL])

    def predict(self, output: Tensor) -> Tensor:
        return torch.cat([(output[:, DEPTH] + self.mean_log_depth).exp(), unit(output[:, NORMAL])], 1)

    def mirror(self, targets: Tensor) -> Tensor:
        """The targets of the mirror images: x, to the right, changes its sign too."""
        return targets.flip(-1) * torch.tensor([1, -1, 1, 1])[:, None, None]

    def score(self, prediction: Tensor, protocol: str) -> Result:
        depth, normals = errors(prediction, self.val.targets)
        return Result(
            {
                f"{TITLES[protocol]} depth within 25 %": depth["within 25 %"],
                f"{TITLES[protocol]} normals within 22.5°": normals["within 22.5°"],
            },
            {
                "depth": depth,
                "normals": normals,
                "depth of the mean frame": self.baseline[0],
                "normals of the mean frame": self.baseline[1],
            },
        )

    def paint(self, targets: Tensor) -> list[Tensor]:
        """Depth on a logarithmic scale, white = near, black = missing; normals, gray = missing."""
        known = self.val.targets[:, DEPTH]
        near, far = known[known > 0].log().aminmax()
        depth = targets[:, DEPTH]
        gray = 1 - 0.9 * ((depth.clamp(min=1e-3).log() - near) / (far - near)).clamp(0, 1)
        return [torch.where(depth > 0, gray, 0).expand(-1, 3, -1, -1), (targets[:, NORMAL] + 1) / 2]


# --- data -----------------------------------------------------------------------------------------------------


def open_targets(data: str, scenes: int) -> tuple[Labeled, Labeled]:
    """Images and targets, as in ``Geometry``, for training and for validation.

    scenes: how many for training, if ``data`` is ``scenes``. Raises ValueError with one line if the data is unfit.
    """
    if data == "scenes":
        rendered = [labeled_scenes(part, scenes, SCENE_SIZE) for part in ("train", "val")]
        train, val = (Labeled(r["image"], torch.cat([r["depth"], r["normal"]], 1)) for r in rendered)
        return train, val
    root = Path(data).expanduser()
    if not root.is_dir():
        raise ValueError(f"--data {data}: no such folder; name one with rgb/, depth/ and intrinsics.txt, or scenes")
    frames = open_rgbd(root)
    held_out, gap = len(frames) // 5, max(1, len(frames) // 20)
    if held_out < 1:
        raise ValueError(
            f"--data {data}: {len(frames)} frames are too few, because a fifth is held out; use at least 5"
        )
    targets = torch.cat([frames.depth, depth_to_normals(frames.depth, frames.intrinsics)], 1)
    count = len(frames) - held_out
    parts = [Labeled(frames.images[rows], targets[rows]) for rows in (slice(count - gap), slice(count, None))]
    if not all((part.targets[:, DEPTH] > 0).any() for part in parts):
        raise ValueError(f"--data {data}: depth is 0, which means missing, in all of it; is it in millimeters?")
    return parts[0], parts[1]


def depth_to_normals(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Unit normals towards the camera (N,3,H,W) from depth (N,1,H,W) in meters; in both, 0 = missing.

    Planes are fitted to the squares around the pixels (``kintsugi.data.hha.fit_normals``). intrinsics: (3,3) in px,
    with pixel centers at integers.
    """
    radius = max(1, round(RADIUS * depth.shape[-1]))
    found = [
        -fit_normals(some, intrinsics.expand(len(some), 3, 3), some > 0, radius) * (some > 0)
        for some in depth.split(8)  # the sums over squares would be large for all frames at once
    ]
    return torch.cat(found)


def mean_frame(targets: Tensor) -> Tensor:
    """The mean of targets (N,4,H,W) over images, at each pixel: exp of mean log depth, and mean unit normal, (4,H,W).

    Means are over known values. Where no image has any, the mean over all pixels is taken.
    """
    depth, normal = targets[:, DEPTH], targets[:, NORMAL]
    known = depth > 0
    log = torch.where(known, depth.clamp(min=1e-3).log(), 0).sum(0)  # (1,H,W)
    count, total = known.sum(0), normal.sum(0)  # (1,H,W), (3,H,W)
    log = torch.where(count > 0, log / count.clamp(min=1), log.sum() / count.sum().clamp(min=1))
    total = torch.where(total.any(0), total, total.sum((1, 2), keepdim=True))
    return torch.cat([log.exp(), normalize(total, dim=0)])


def unit(vectors: Tensor) -> Tensor:
    """Vectors (B,3,H,W) scaled to length 1. On CPUs ``normalize`` over channels takes ten times as long."""
    return vectors * vectors.square().sum(1, keepdim=True).clamp(min=1e-12).rsqrt()


def errors(prediction: Tensor, targets: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of depth and of normals over all pixels where they are known. prediction, targets: (N,4,H,W)."""
    depth = depth_errors(prediction[:, 0], targets[:, 0])
    return depth, normal_errors(prediction[:, NORMAL], targets[:, NORMAL])


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GeometryConfig(DenseSettings, Comparison):
    """Transfer of a checkpoint's encoders to depth and normals, against random weights."""

    data: str = "scenes"
    """scenes, or a folder with rgb/, depth/ (16-bit PNG, mm) and intrinsics.txt (3x3)."""


def run(config: GeometryConfig) -> Results:
    """Runs the experiments, prints the table and writes the report; returns the results."""
    return compare(config, "geometry", lambda compute, file: Geometry(config.data, config, compute))


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(GeometryConfig, argv))


if __name__ == "__main__":
    main()
