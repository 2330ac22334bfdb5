"""What MAE gains because its encoder computes visible patches only: time compared with that of all patches.

``python -m bench.masked_encoder``. A step is the encoder's forward and backward pass on random images. If time were
proportional to the number of tokens, it would be 1 / (1 - r) times as fast with a fraction r of masked patches. Jobs
that are compared with each other take turns. Figures are medians.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bench.common import Job, TimingConfig, milliseconds, write
from kintsugi.recon import mae
from kintsugi.train.compute import pick_device
from kintsugi.train.config import parse_command, user_errors
from kintsugi.train.dist import World, keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class MaskedEncoderConfig(TimingConfig):
    """Compares the time of MAE's encoder on visible patches with that on all patches."""

    rounds: int = 5
    ratios: tuple[float, ...] = (0.5, 0.75, 0.9)
    """Fractions of masked patches, for the demo's network."""
    paper: bool = True
    """Also measure the paper's ViT-B/16 at 224 px, with an eighth of the batch."""


def measured(config: mae.MAEConfig, bench: MaskedEncoderConfig, ratios: tuple[float, ...]) -> dict[str, float]:
    """Milliseconds of a step of the encoder on all patches, and on the visible ones for each ratio; and the gains."""
    world = World(pick_device(bench.device), bf16=bench.precision == "bf16")
    encoder = config.vit.build().train()
    world.place([encoder], channels_last=True)
    image = torch.rand(config.batch, 3, config.size, config.size, device=world.device)

    def step(kept: Tensor | None) -> None:
        with world.autocast():
            tokens = encoder.tokens(image, kept)
        tokens.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)

    noise = torch.rand(config.batch, config.patches, device=world.device)
    jobs: dict[str, Job] = {"all patches": lambda: step(None)}
    for ratio in ratios:
        kept, _ = mae.shuffled(noise, replace(config, mask_ratio=ratio).visible)
        jobs[f"{ratio:g} masked"] = partial(step, kept)
    found = milliseconds(jobs, bench.rounds, world.device)
    gains = {f"{ratio:g} masked, times as fast": found["all patches"] / found[f"{ratio:g} masked"] for ratio in ratios}
    return found | {name: round(gain, 2) for name, gain in gains.items()}


def run(config: MaskedEncoderConfig) -> None:
    """Measures, prints and writes the results."""
    if pick_device(config.device).type == "cpu":
        keep_freed_memory()
    demo = replace(mae.demo(), size=config.size, batch=config.batch)
    networks = {"ViT-Ti/8": measured(demo, config, config.ratios)}
    if config.paper:
        paper = replace(mae.paper(), batch=max(1, config.batch // 8))
        networks["ViT-B/16, 224 px"] = measured(paper, config, (paper.mask_ratio,))
    gains = {name: {k: v for k, v in found.items() if k.endswith("fast")} for name, found in networks.items()}
    command = " ".join(["python -m bench.masked_encoder", *sys.argv[1:]])
    write(
        {"command": command, "encoder, ms": networks, "settings": asdict(config)}, gains, config.out, "masked-encoder"
    )


def main() -> None:
    with user_errors():
        run(parse_command(MaskedEncoderConfig))


if __name__ == "__main__":
    main()
