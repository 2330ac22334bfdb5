"""How much of the gradients' averaging over ranks is hidden behind the backward pass.

``torchrun --standalone --nproc-per-node=2 -m bench.overlap``. A step is an encoder's forward and backward pass on
random images, in two ways: ``World.backward``, by which messages begin while gradients are still computed, and a plain
backward pass with ``World.mean_gradients`` after it. torch's profiler shows on rank 0 when each message is under way.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from bench.common import TimingConfig, write
from kintsugi.nets.encoder_choice import chosen
from kintsugi.train.config import parse_command, user_errors
from kintsugi.train.dist import World, open_world

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class OverlapConfig(TimingConfig):
    """Measures how much of the messages between ranks lies within the backward pass. On CPUs, by gloo."""

    rounds: int = 5
    encoder: str = "resnet50"
    """The network whose gradients are averaged."""


def steps(config: OverlapConfig, world: World) -> dict[str, Step]:
    """The two ways to compute averaged gradients."""
    torch.manual_seed(0)
    encoder = chosen(config.encoder).build().train()
    world.place([encoder], channels_last=True)
    optimizers = [torch.optim.SGD(encoder.parameters(), 0.1) for _ in range(2)]
    image = torch.rand(config.batch // world.size, 3, config.size, config.size)

    def during() -> None:
        with world.autocast():
            loss = encoder.vectors(image).square().mean()
        world.backward(loss, optimizers[0])
        optimizers[0].zero_grad()

    def after() -> None:
        world.close()  # else DistributedDataParallel would average here too
        with world.autocast():
            loss = encoder.vectors(image).square().mean()
        loss.backward()
        world.mean_gradients(optimizers[1])
        optimizers[1].zero_grad()

    return {"during the backward pass": during, "after it": after}


def timeline(step: Step) -> dict[str, float]:
    """Runs a step. Milliseconds of the backward pass, of messages, and of what they last beyond it; and their number.

    Messages may overlap; the time in which several are under way counts once.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = [event for event in profiler.events() or [] if event.time_range.elapsed_us() > 0]
    computing = [e.time_range for e in events if e.name.startswith("autograd::engine::evaluate_function")]
    begin, end = min(e.start for e in computing), max(e.end for e in computing)
    messages = sorted((e.time_range.start, e.time_range.end) for e in events if e.name == "gloo:all_reduce")
    total = hidden = 0.0
    covered = begin
    for start, stop in messages:
        start, covered = max(start, covered), max(stop, covered)
        total += max(0.0, stop - start)
        hidden += max(0.0, min(stop, end) - start)
    return {
        "backward pass, ms": (end - begin) / 1e3,
        "messages, ms": total / 1e3,
        "messages after it, ms": (total - hidden) / 1e3,
        "messages": len(messages),
        "begun during it": sum(start < end for start, _ in messages),
    }


def run(config: OverlapConfig) -> None:
    """Measures; the first rank prints and writes the results."""
    with open_world("cpu", config.precision, config.batch) as world:
        ways: dict[str, dict[str, float]] = {}
        for way, step in steps(config, world).items():
            for _ in range(2):
                step()
            found = [timeline(step) for _ in range(config.rounds)]
            ways[way] = {name: round(statistics.median(each[name] for each in found), 1) for name in found[0]}
        if world.is_main:
            command = f"torchrun --nproc-per-node={world.size} -m " + " ".join(["bench.overlap", *sys.argv[1:]])
            bars = {way: {k: v for k, v in found.items() if k.endswith("ms")} for way, found in ways.items()}
            write({"command": command, "averaged": ways, "settings": asdict(config)}, bars, config.out, "overlap")


def main() -> None:
    with user_errors():
        run(parse_command(OverlapConfig))


if __name__ == "__main__":
    main()
