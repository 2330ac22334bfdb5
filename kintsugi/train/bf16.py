"""Whether a network runs faster in bfloat16 on this CPU: measured on the network at hand, never guessed."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.specs import fresh
from kintsugi.train.compute import Compute, Precision

FASTER = 1.1
"""bfloat16 is taken if it is at least this many times as fast as float32. A smaller gain may be noise."""
_IMAGES, _ROUNDS = 8, 2


def in_hardware() -> bool:
    """Whether the CPU has instructions for bfloat16: AMX or AVX512-BF16. False if this version of torch cannot tell."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def speedup(encoder: Encoder, side: int) -> float:
    """How many times as fast a network like ``encoder`` is in bfloat16 as in float32, on this process's CPU threads.

    Measures a copy with fresh weights: the forward and backward pass of 8 random images of ``side`` px, in training
    mode. The precisions take turns, once as a warm-up and twice for the measurement. The least time of each counts, so
    that other programs matter little. For a ResNet-18 at 64 px it takes less than a second of one core. Single layers
    would be quicker, but they mislead: a linear layer may be twice as fast, and attention not faster at all.

    Neither the encoder nor torch's global random numbers change.
    """
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global random numbers
        net = fresh(encoder, 0).train().to(memory_format=torch.channels_last)
        image = torch.rand(_IMAGES, net.planes, side, side)
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(_ROUNDS + 1):
            for bf16, found in times.items():
                started = time.perf_counter()
                with Compute(torch.device("cpu"), bf16=bf16).autocast():
                    maps = net(image)
                torch.stack([x.float().square().mean() for x in maps.values()]).sum().backward()
                found.append(time.perf_counter() - started)
                net.zero_grad(set_to_none=True)
    least = {bf16: min(found[1:]) for bf16, found in times.items()}
    return least[False] / least[True]


def choose(compute: Compute, precision: Precision, encoder: Encoder, side: int) -> str:
    """Sets ``compute.bf16`` for ``auto`` on a CPU with bfloat16 in hardware. Returns a line with what was measured.

    In all other cases, nothing is measured, ``compute`` stays as it is, and the line is empty.
    """
    if precision != "auto" or compute.device.type != "cpu" or not in_hardware():
        return ""
    gain = speedup(encoder, side)
    compute.bf16 = gain >= FASTER
    if compute.bf16:
        return f"precision: bf16 ({gain:.1f} x fp32 here)"
    return f"precision: fp32 (bf16 would be {gain:.1f} x as fast here)"
