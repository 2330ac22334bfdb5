"""What a checkpoint's features are worth for seeing depth and surface normals, against random weights.

``python -m kintsugi.eval.geometry --ckpt runs/inpainting/latest --data rgbd_kitchen``

One network says both (Eigen and Fergus 2015, arXiv:1411.4734, whose figures these are): the logarithm of depth, by L1,
and normals, by their cosine, each where it is known. Protocols and network: ``kintsugi.eval.dense``.

Frames of an RGB-D folder are of one film, in the order of their names: the last fifth of it is held out, and the
twentieth before that is left out, so that no validation frame is a neighbor of a training frame. It is the same place
nonetheless: how well places are seen that were never seen before, such a folder cannot tell; the scenes can.
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
from kintsugi.eval.cells import Cell, Machine, Results, named
from kintsugi.eval.dense import TITLES, DenseSettings, DenseTask, Labeled
from kintsugi.eval.report import Comparison, compare
from kintsugi.train.config import parse_command, user_errors

SCENE_SIZE = 96
DEPTH, NORMAL = slice(0, 1), slice(1, 4)  # of a target's planes
RADIUS = 1 / 80
"""Of the squares to which planes are fitted, of an image's width: of 2, 4 and 6 px at 320, 4 is smooth yet sharp."""


class Geometry(DenseTask):
    """data: ``scenes``, with exact depth and normals, or an RGB-D folder (``kintsugi.data.rgbd.open_rgbd``), whose
    normals are of planes fitted to depth. Targets (N,4,H,W): depth in meters and unit normals towards the camera (x
    right, y down, z forward), each 0 where it is missing.

    Figures: the part of the pixels whose depth is within 25 % (delta < 1.25), and of those whose normal is within
    22.5 degrees. Details: other errors, and all of these of the mean frame: for each pixel the mean log depth and mean
    normal of the training images.
    """

    def __init__(self, data: str, settings: DenseSettings, machine: Machine) -> None:
        train, val = opened(data, settings.train_scenes)
        self.floor = errors(mean_frame(train.targets).expand_as(val.targets), val.targets)
        depth = train.targets[:, DEPTH]
        self.level = depth[depth > 0].log().mean().item()  # the network's zero
        super().__init__(f"geometry {named(data)}", train, val, 4, settings, machine)
        # All layers see whole images: crops do not show what tells how far things are, and cost more than they give.
        self.crop = max(train.images.shape[-2:])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        depth = depth_loss(output[:, DEPTH] + self.level, target[:, DEPTH])
        return depth + normal_loss(unit(output[:, NORMAL]), target[:, NORMAL])

    def predicted(self, output: Tensor) -> Tensor:
        return torch.cat([(output[:, DEPTH] + self.level).exp(), unit(output[:, NORMAL])], 1)

    def mirrored(self, targets: Tensor) -> Tensor:
        """x, to the right, changes its sign."""
        return targets.flip(-1) * torch.tensor([1, -1, 1, 1])[:, None, None]

    def measured(self, prediction: Tensor, protocol: str) -> Cell:
        depth, normals = errors(prediction, self.val.targets)
        return Cell(
            {
                f"{TITLES[protocol]} depth within 25 %": depth["within 25 %"],
                f"{TITLES[protocol]} normals within 22.5°": normals["within 22.5°"],
            },
            {
                "depth": depth,
                "normals": normals,
                "depth of the mean frame": self.floor[0],
                "normals of the mean frame": self.floor[1],
            },
        )

    def painted(self, targets: Tensor) -> list[Tensor]:
        """Depth on a logarithmic scale, white is near and black is missing; normals, gray is missing."""
        known = self.val.targets[:, DEPTH]
        near, far = known[known > 0].log().aminmax()
        depth = targets[:, DEPTH]
        height = 1 - 0.9 * ((depth.clamp(min=1e-3).log() - near) / (far - near)).clamp(0, 1)
        return [torch.where(depth > 0, height, 0).expand(-1, 3, -1, -1), (targets[:, NORMAL] + 1) / 2]


# --- data -----------------------------------------------------------------------------------------------------


def opened(data: str, scenes: int) -> tuple[Labeled, Labeled]:
    """For training and for validation; targets as ``Geometry`` describes. ValueError of one line where it cannot be."""
    if data == "scenes":
        rendered = [labeled_scenes(part, scenes, SCENE_SIZE) for part in ("train", "val")]
        train, val = (Labeled(r["image"], torch.cat([r["depth"], r["normal"]], 1)) for r in rendered)
        return train, val
    root = Path(data).expanduser()
    if not root.is_dir():
        raise ValueError(f"--data {data}: no such folder; name one with rgb/, depth/ and intrinsics.txt, or scenes")
    frames = open_rgbd(root)
    held, gap = len(frames) // 5, max(1, len(frames) // 20)
    if held < 1:
        raise ValueError(
            f"--data {data}: {len(frames)} frames are too few, because a fifth is held out; use at least 5"
        )
    targets = torch.cat([frames.depth, normals_of(frames.depth, frames.intrinsics)], 1)
    count = len(frames) - held
    parts = [Labeled(frames.images[rows], targets[rows]) for rows in (slice(count - gap), slice(count, None))]
    if not all((part.targets[:, DEPTH] > 0).any() for part in parts):
        raise ValueError(f"--data {data}: its depth is 0, that is missing, all over; is it in millimeters?")
    return parts[0], parts[1]


def normals_of(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Normals towards the camera (N,3,H,W), unit, 0 = missing, of depth (N,1,H,W) in meters, 0 = missing.

    Planes are fitted to the squares around the pixels (``kintsugi.data.hha.fit_normals``); intrinsics (3,3), px, of
    pixel centers at integers.
    """
    radius = max(1, round(RADIUS * depth.shape[-1]))
    found = [
        -fit_normals(part, intrinsics.expand(len(part), 3, 3), part > 0, radius) * (part > 0)
        for part in depth.split(8)  # sums over squares of all frames at once would be large
    ]
    return torch.cat(found)


def mean_frame(targets: Tensor) -> Tensor:
    """For each pixel the mean of what is known of it, (4,H,W): of log depth, as depth, and of normals, made unit.

    Where nothing is known in any image: as the mean over all pixels.
    """
    depth, normal = targets[:, DEPTH], targets[:, NORMAL]
    known = depth > 0
    log = torch.where(known, depth.clamp(min=1e-3).log(), 0).sum(0)  # (1,H,W)
    count, total = known.sum(0), normal.sum(0)  # (1,H,W), (3,H,W)
    log = torch.where(count > 0, log / count.clamp(min=1), log.sum() / count.sum().clamp(min=1))
    total = torch.where(total.any(0), total, total.sum((1, 2), keepdim=True))
    return torch.cat([log.exp(), normalize(total, dim=0)])


# --- losses and figures ---------------------------------------------------------------------------------------


def depth_loss(log_depth: Tensor, depth: Tensor) -> Tensor:
    """Mean absolute difference in log depth where depth is known, (B,1,H,W); depth in meters, 0 = missing."""
    known = depth > 0
    difference = torch.where(known, log_depth - depth.clamp(min=1e-3).log(), 0)
    return difference.abs().sum() / known.sum().clamp(min=1)


def normal_loss(normal: Tensor, truth: Tensor) -> Tensor:
    """Mean of 1 - cos of the angle between unit normals (B,3,H,W), where the truth is not 0."""
    known = truth.any(1)  # (B,H,W)
    cosine = (normal * truth).sum(1)
    return torch.where(known, 1 - cosine, 0).sum() / known.sum().clamp(min=1)


def unit(vectors: Tensor) -> Tensor:
    """Of length 1, (B,3,H,W). On CPUs ``normalize`` over channels takes ten times as long."""
    return vectors * vectors.square().sum(1, keepdim=True).clamp(min=1e-12).rsqrt()


def errors(prediction: Tensor, targets: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Of depth and of normals, (N,4,H,W), over all pixels where they are known.

    Depth: part with max(p/t, t/p) < 1.25, mean of abs(p - t) / t, root of the mean (p - t)^2 in m. Normals: parts
    within angles, mean and median angle in degrees.
    """
    depth, normal = targets[:, 0], targets[:, NORMAL]
    p, t = prediction[:, 0][depth > 0], depth[depth > 0]
    ratio = torch.maximum(p / t, t / p)
    of_depth = {
        "within 25 %": (ratio < 1.25).float().mean(),
        "absolute relative": ((p - t).abs() / t).mean(),
        "rms, m": (p - t).square().mean().sqrt(),
    }
    known = normal.any(1)
    cosine = (prediction[:, NORMAL] * normal).sum(1)[known]
    angle = torch.rad2deg(cosine.clamp(-1, 1).acos())
    of_normals = {
        **{f"within {limit:g}°": (angle < limit).float().mean() for limit in (11.25, 22.5, 30)},
        "mean, degrees": angle.mean(),
        "median, degrees": angle.median(),
    }
    return {k: v.item() for k, v in of_depth.items()}, {k: v.item() for k, v in of_normals.items()}


# --- the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config(DenseSettings, Comparison):
    """Transfer of a checkpoint's encoders to depth and normals, against random init."""

    data: str = "scenes"
    """scenes, or a folder with rgb/, depth/ (16-bit PNG, mm) and intrinsics.txt (3x3)."""


def run(config: Config) -> Results:
    return compare(config, "geometry", lambda machine, file: Geometry(config.data, config, machine))


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(Config, argv))


if __name__ == "__main__":
    main()
