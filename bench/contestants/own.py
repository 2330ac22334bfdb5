"""Kintsugi in the race: its training loop as it is, with the race's settings as options."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from bench.contestants.laps import Laps, RaceSettings
from kintsugi.contrastive import simclr
from kintsugi.recon import mae
from kintsugi.train.command import named
from kintsugi.train.config import parse_training
from kintsugi.train.loop import train
from kintsugi.train.method import Batch


class RacingSimCLR(simclr.SimCLR):
    """SimCLR whose steps are counted as laps."""

    laps: ClassVar[Laps]

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        scalars = super().update(inputs, step)
        self.laps.step_done(self.encoder)
        return scalars


class RacingMAE(mae.MAE):
    """MAE whose steps are counted as laps."""

    laps: ClassVar[Laps]

    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        scalars = super().update(inputs, step)
        self.laps.step_done(self.encoder.net)
        return scalars


def options(settings: RaceSettings) -> list[str]:
    """The command line of the training. All runs of a race share a cache of decoded images."""
    each, never = settings, settings.steps + 1
    words = (
        f"--size {each.size} --short-side {each.size} --batch {each.batch} --steps {each.steps} --seed {each.seed} "
        f"--smallest-crop {each.smallest_crop} --weight-decay {each.weight_decay} --warmup 0 --eval-images 8 "
        f"--precision {each.precision} --device cpu --show-every {never} --eval-every {never} --save-every {never} "
    )
    words += {
        "simclr": f"--encoder resnet18 --stem {each.stem} --optimizer adam --lr {each.lr} "
        f"--temperature {each.temperature} --strength {each.strength} --blur 0",
        "mae": f"--norm-pix --patch {each.patch} --lr {each.lr * 256 / each.batch} "
        f"--decoder-width {each.decoder_width} --decoder-depth {each.decoder_depth}",
    }[each.method]
    out = Path(settings.out)
    paths = ["--data", f"{settings.data}/train", "--out", str(out / "run"), "--cache", str(out.parent / "cache")]
    return words.split() + paths


def race(settings: RaceSettings) -> None:
    """Trains SimCLR or MAE."""
    words = options(settings)
    if settings.method == "simclr":
        RacingSimCLR.laps = Laps(settings)
        train(RacingSimCLR, parse_training("simclr", named((simclr.demo, simclr.small, simclr.paper)), words))
    else:
        RacingMAE.laps = Laps(settings)
        train(RacingMAE, parse_training("mae", named((mae.demo, mae.small, mae.paper)), words))


if __name__ == "__main__":
    race(RaceSettings.of_command_line())
