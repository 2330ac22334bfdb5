"""Synthetic to real with and without the discriminator, over several seeds, in one table.

``python -m kintsugi.eval.domains --real ~/photos`` trains ``kintsugi.recon.synthetic`` several times: once for each
seed and each way in which the discriminator affects the encoder. It takes all options of that method. The table has the
distance between the domains and the errors of the tasks. The command can be stopped and started again: finished runs
are not trained again, others continue.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kintsugi import table
from kintsugi.recon import synthetic
from kintsugi.recon.synthetic import Synthetic, SyntheticConfig
from kintsugi.train import checkpoint
from kintsugi.train.command import named
from kintsugi.train.config import parse_training, to_plain, user_errors, within
from kintsugi.train.loop import train

Way = Literal["without", "alternate", "reversal"]
Results = dict[str, dict[str, list[float]]]
"""Way -> held-out figure -> its value for each seed."""
CLOSER = ("domain_probe", "domain_frechet")  # lower = closer domains; neither is measured by the discriminator


@dataclass(frozen=True, kw_only=True)
class DomainsConfig(SyntheticConfig):
    """Settings of every run; --seed is the first seed, and --out the folder for all runs."""

    seeds: int = 3
    """Number of runs of each way."""
    ways: tuple[Way, ...] = ("without", "alternate", "reversal")
    """How the discriminator affects the encoder. without: not at all, though it is trained; others: as --adversary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, seeds=1)

    @property
    def folder(self) -> Path:
        """The folder of all runs and of the table."""
        return self.out or self.runs / "domains"

    def of(self, way: Way, number: int) -> SyntheticConfig:
        """The settings of one run; ``number`` is added to the first seed."""
        base = {f.name: getattr(self, f.name) for f in dataclasses.fields(SyntheticConfig)}
        base |= {"seed": self.seed + number, "out": self.folder / f"{way}-seed{self.seed + number}"}
        if way == "without":
            return SyntheticConfig(**{**base, "adversarial": 0.0})
        return SyntheticConfig(**{**base, "adversary": way})


def run(config: DomainsConfig) -> Results:
    """Trains all runs. After each, the table so far is written into ``domains.md`` and ``domains.json``."""
    results: Results = {way: {} for way in config.ways}
    # Seeds are the outer loop, so that a comparison that was stopped has all ways for the same seeds.
    for number in range(config.seeds):
        for way in config.ways:
            one = config.of(way, number)
            assert one.out is not None
            if not (one.out / "quality.json").is_file():
                started = bool(checkpoint.newest(one.out))
                if started:
                    _same_settings(one, one.out)
                    precision = checkpoint.read(one.out)[1]["config"]["precision"]  # what auto has chosen
                    train(Synthetic, dataclasses.replace(one, resume=True, precision=precision))
                else:
                    train(Synthetic, one)
            _same_settings(one, one.out)
            rows = json.loads((one.out / "quality.json").read_text())
            for figure, value in rows[Synthetic.name].items():
                results[way].setdefault(figure, []).append(value)
            record = {"settings": to_plain(config), "figures": results}
            (config.folder / "domains.json").write_text(json.dumps(record, indent=1) + "\n")
            (config.folder / "domains.md").write_text(markdown(results) + "\n")
    print(markdown(results))
    print(f"written to {config.folder}; domain accuracy over time: tensorboard --logdir {config.folder}")
    return results


def _same_settings(config: SyntheticConfig, folder: Path) -> None:
    """Raises ValueError with one line if the run in ``folder`` was trained with other settings."""
    saved, now = checkpoint.read(folder)[1]["config"], to_plain(config)
    for name in (
        "data",
        "real",
        "size",
        "short_side",
        "scenes",
        "batch",
        "steps",
        "encoder",
        "norm",
        "channels",
        "adversary",
        "adversarial",
        "discriminator_norm",
        "pool",
        "depth_weight",
        "normal_weight",
        "contour_weight",
        "lr",
        "lr_discriminator",
    ):
        if saved[name] != now[name]:
            raise ValueError(
                f"{folder} was trained with --{name.replace('_', '-')} {saved[name]}, not {now[name]}: choose another "
                "--out"
            )


def markdown(results: Results) -> str:
    """The table: mean and deviation over the seeds; below it, by how much each adversary brought the domains closer."""
    spread = {way: {figure: _spread(values) for figure, values in figures.items()} for way, figures in results.items()}
    lines = [table.markdown(spread, "discriminator")]
    base = results.get("without", {})
    for way, figures in results.items():
        for figure in CLOSER if way != "without" else ():
            pairs = list(zip(figures.get(figure, []), base.get(figure, []), strict=False))
            if pairs:
                change = statistics.fmean(a - b for a, b in pairs)
                won = sum(a < b for a, b in pairs)
                lines.append(f"{way} against without: {figure} {change:+.3f}, lower in {won} of {len(pairs)} seeds")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; the mean alone if there is one value."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def main(argv: Sequence[str] | None = None) -> None:
    presets = named((synthetic.demo, synthetic.small, synthetic.paper))
    with user_errors():
        config = parse_training("domains", {name: _widened(make) for name, make in presets.items()}, argv)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # processes of torchrun can join for a single training only
            raise ValueError("the runs are trained one after another in one process: start this without GPUS=")
        if config.resume:
            raise ValueError("--resume is not needed here: the same command continues where it was stopped")
        Synthetic.check(config)
        run(config)


def _widened(preset: Callable[[], SyntheticConfig]) -> Callable[[], DomainsConfig]:
    """The preset with the options of this command added."""

    def make() -> DomainsConfig:
        base = preset()
        return DomainsConfig(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)})

    return make


if __name__ == "__main__":
    main()
