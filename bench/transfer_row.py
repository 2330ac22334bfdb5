"""How long a row of the transfer table takes: frozen features of one network, by task and protocol.

``python -m bench.transfer_row --classification caltech101 --segmentation camvid --void 11``. The network has one state
for all seeds, as a pre-trained one. ``--name`` tells the result from others in ``transfer-row.json``, so that the same
command in another checkout, with the same ``--results``, adds its times to compare.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.common import RESULTS, add, machine, wait
from kintsugi.eval.classification import Protocol
from kintsugi.eval.dense import Protocol as DenseProtocol
from kintsugi.eval.tasks import FrozenFeatures
from kintsugi.eval.transfer import TransferConfig, tasks_of
from kintsugi.eval.weights import Weights
from kintsugi.nets.backbones import Backbone
from kintsugi.train.compute import Compute
from kintsugi.train.config import parse_command, user_errors


@dataclass(frozen=True, kw_only=True)
class TransferRowConfig(TransferConfig):
    """Times the tasks of a row of the transfer table, for a ResNet-18."""

    classification_protocols: tuple[Protocol, ...] = ("knn", "linear", "few", "shots")
    dense_protocols: tuple[DenseProtocol, ...] = ("frozen",)
    threads: int = 1
    """Threads. With one thread, time is the processor's, so that other programs do not count."""
    name: str = "now"
    """The name of this result."""
    results: Path = RESULTS
    """Folder of transfer-row.json, to which the result is added."""


def run(config: TransferRowConfig) -> None:
    """Measures, prints and adds the times to the results."""
    torch.set_num_threads(config.threads)
    compute = Compute.of(config.device, config.precision)
    torch.manual_seed(0)
    net = Backbone().build()
    weights = Weights("one state", net.spec.plain(), (net.state_dict(),))
    seconds: dict[str, dict[str, float]] = {}
    figures: dict[str, dict[str, float]] = {}
    for task in tasks_of(config, compute):
        seconds[task.name], figures[task.name] = {}, {}
        features = FrozenFeatures(weights, 0, compute)
        for seed in range(config.seeds):
            for protocol in task.protocols:
                started = now(compute, config.threads)
                result = task.measure(features, protocol, seed)
                spent = now(compute, config.threads) - started
                seconds[task.name][protocol] = round(seconds[task.name].get(protocol, 0.0) + spent, 2)
                if seed == 0:
                    figures[task.name] |= {name: round(value, 4) for name, value in result.figures.items()}
        print(task.name, seconds[task.name], flush=True)
    record = {
        "command": " ".join(["python -m bench.transfer_row", *sys.argv[1:]]),
        "machine": machine(),
        "precision": str(compute),
        "seeds": config.seeds,
        "seconds": seconds,
        "all seconds": round(sum(sum(each.values()) for each in seconds.values()), 1),
        "figures of seed 0": figures,
    }
    add(record, config.name, config.results, "transfer-row")
    print(f"{record['all seconds']} s for {config.seeds} seeds; written to {config.results}")


def now(compute: Compute, threads: int) -> float:
    """Seconds: of the processor with one thread, else of the clock, after the device is done."""
    wait(compute.device)
    return time.process_time() if threads == 1 and compute.device.type == "cpu" else time.perf_counter()


def main() -> None:
    with user_errors():
        run(parse_command(TransferRowConfig))


if __name__ == "__main__":
    main()
