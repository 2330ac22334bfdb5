"""The device on which a program computes, and whether networks run in bfloat16 there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.utils.deterministic
from torch.nn.attention import SDPBackend, sdpa_kernel

Device = Literal["auto", "cpu", "cuda"]
"""The values of --device. auto: the GPU if there is one, else the CPU."""
Precision = Literal["auto", "fp32", "bf16"]
"""The values of --precision. auto: bfloat16 autocast on a GPU, and on a CPU where ``bf16.choose`` measures that it is
faster; else float32."""


@dataclass
class Compute:
    """A device and whether networks run in bfloat16 on it.

    ``bf16.choose`` may set ``bf16`` once, after the networks are built, because it is measured on them.
    """

    device: torch.device
    bf16: bool = field(default=False, kw_only=True)

    @staticmethod
    def of(device: Device, precision: Precision) -> Compute:
        """Resolves the options ``--device`` and ``--precision``. Raises ValueError if there is no GPU for ``cuda``.

        ``auto`` on a CPU is float32 until ``bf16.choose`` changes it.
        """
        chosen = pick_device(device)
        return Compute(chosen, bf16=precision == "bf16" or (precision == "auto" and chosen.type == "cuda"))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The context for forward passes, in bfloat16 if ``bf16``; backward passes stay outside.

        On a CPU, attention in bfloat16 is computed by plain matrix products: the gradient of torch's fused kernel
        takes four times as long in bfloat16 as in float32 (torch 2.14), a third of a ViT-Tiny's step.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if self.bf16 and self.device.type == "cpu":
                with sdpa_kernel(SDPBackend.MATH):
                    yield
            else:
                yield

    @property
    def dtype(self) -> torch.dtype:
        """The type in which features are stored."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def precision(self) -> Precision:
        """The value of --precision that gives ``bf16`` on every machine."""
        return "bf16" if self.bf16 else "fp32"

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the CPU"
        return f"{name}{' in bf16' if self.bf16 else ''}"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """If wanted, a context in which torch uses only algorithms that give the same bits in every run.

    Raises ValueError with one line if an operation has no such algorithm.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when matrices are first multiplied on a GPU
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        why = str(error).split(",")[0].split(". ")[0]
        raise ValueError(f"--deterministic does not work with this method here ({why}): leave it out") from None
    finally:
        torch.use_deterministic_algorithms(before)


def pick_device(device: Device) -> torch.device:
    """Resolves ``auto``. Raises ValueError if ``cuda`` is requested and no GPU is visible."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("--device cuda: no GPU is visible here; use --device cpu")
    return torch.device("cuda" if device != "cpu" and available else "cpu")
