"""Run under torchrun: trainings of two ranks with and without --shard, and how much of the state a rank then holds."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from helpers.one_step import CASES
from helpers.tiny_runs import OPTIONS
from kintsugi.contrastive import dino
from kintsugi.train import sharding
from kintsugi.train.dist import open_world

RUN = (
    "--steps 2 --batch 4 --log-every 1 --show-every 9 --eval-every 9 --save-every 1 --keep 9 --eval-images 4 "
    "--device cpu --precision fp32 --data photos"
)
# It has a moving average, crops of two sizes, and a gradient that is clipped. No batch norms, which differ over ranks.
DINO = f"{OPTIONS['dino'][0]} --encoder timm:test_vit --no-head-norm --clip 0.1"


def train(run: str, *more: str) -> None:
    dino.main([*DINO.split(), *RUN.split(), "--out", run, *more])


def separate_groups() -> None:
    """Lets each process group of this process meet under names of its own, instead of those of the group before it."""
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    store, numbers, init = dist.TCPStore(os.environ["MASTER_ADDR"], port), itertools.count(), dist.init_process_group

    def init_separately(backend: str, timeout: timedelta) -> None:
        prefixed = dist.PrefixStore(f"group {next(numbers)}", store)
        init(backend, timeout=timeout, store=prefixed, rank=rank, world_size=size)

    dist.init_process_group = init_separately


def local(tensor: Tensor) -> int:
    """The elements that this rank holds."""
    return tensor.to_local().numel() if hasattr(tensor, "to_local") else tensor.numel()


def held() -> dict[str, float]:
    """The fractions of the weights and of the optimizer's state that this rank holds after a step."""
    with open_world("cpu", "fp32", 8) as world:
        build, batch = CASES["mae"]
        method = build(world)
        world.place(method.children(), channels_last=False)
        sharding.shard(method, method.optimizers.values(), world)
        mine = {name: world.slice(value) for name, value in batch.items()}
        method.update(method.inputs(mine, 0), 0)
        weights = list(method.parameters())
        states = [value for state in method.optimizers["both"].state.values() for value in state.values()]
        return {
            "weights": sum(map(local, weights)) / sum(p.numel() for p in weights),
            "optimizer": sum(map(local, states)) / sum(s.numel() for s in states),
        }


def resume(run: str, to: str, *more: str) -> None:
    """Continues a run from its first step, in another folder."""
    with open_world("cpu", "fp32", 2) as world, world.main_first():
        if world.is_main:
            Path(to).mkdir()
            shutil.copy(Path(run, "step-00000001.pt"), to)
    dino.main(["--resume", "--out", to, *more])


if __name__ == "__main__":
    separate_groups()
    train("averaged")
    train("sharded", "--shard")
    resume("sharded", "resumed")
    resume("averaged", "averaged_then_sharded", "--shard")
    Path(f"held{os.environ['RANK']}.json").write_text(json.dumps(held()))
