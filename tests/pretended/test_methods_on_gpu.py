"""A run of every method on a pretended GPU: no mixed devices, no float64, no waits, no more kernels than before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.pretended_gpu import OnGPU, Seen, pretended_gpu
from helpers.tiny_runs import OPTIONS, arguments, class_of, module_of
from torch import Tensor

from kintsugi.train import checkpoint

RUN = (
    "--steps 5 --log-every 5 --show-every 5 --eval-every 5 --save-every 5 --device cuda --precision bf16 --labelings 1"
)

KERNELS = {
    "inpainting": 470,
    "mender": 1040,
    "colorization": 440,
    "superresolution": 500,
    "splitbrain": 550,
    "splitbrain-hha": 440,
    "mae": 660,
    "spark": 810,
    "synthetic": 520,
    "cpc": 660,
    "simclr": 920,
    "moco": 1500,
    "byol": 1450,
    "dino": 1850,
    "lejepa": 1720,
    "distill": 930,
    "rotation": 360,
    "jigsaw": 400,
    "context": 390,
    "deepcluster": 400,
    "sela": 400,
    "cliquecnn": 390,
    "frame-order": 350,
    "odd-one-out": 370,
    "supervised": 350,
}
"""The most kernels of the fourth step of ``tiny_runs``, a tenth more than counted. If a change needs more, say why."""

FINDING = {"deepcluster", "sela", "cliquecnn"}
"""Methods whose fourth step finds clusters of all images; the second one is measured."""


PATCHES = {"cpc", "jigsaw", "context"}
"""Methods that see small patches, for which bfloat16 gradients are not always finite on the CPU that computes them."""


def gpu_arguments(method: str, folders: dict[str, Path]) -> list[str]:
    """The command line of the smallest run, on the GPU, of which only the last step is logged."""
    words, changed = arguments(method, folders), RUN.split()
    for option, value in zip(changed[::2], changed[1::2], strict=True):
        if option in words:
            words[words.index(option) + 1] = value
    if method in PATCHES:
        words[words.index("--precision") + 1] = "fp32"
    return words


@pytest.mark.parametrize("method", OPTIONS)
def test_a_run_on_a_gpu(method: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kind = class_of(method)
    plain_inputs, plain_update = kind.inputs, kind.update
    counted = [Seen() for _ in range(5)]  # of each step

    with pretended_gpu() as seen:

        def inputs(self: object, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
            seen.reset()
            found = plain_inputs(self, batch, step)
            counted[step].add(seen)
            assert all(isinstance(value, OnGPU) for value in found.values()), "an input is not on the GPU"
            return found

        def update(self: object, inputs: dict[str, Tensor], step: int) -> dict[str, Tensor]:
            seen.reset()
            scalars = plain_update(self, inputs, step)
            counted[step].add(seen)
            assert all(isinstance(value, OnGPU) for value in scalars.values()), "a scalar is not on the GPU"
            return scalars

        monkeypatch.setattr(kind, "inputs", inputs)
        monkeypatch.setattr(kind, "update", update)
        module_of(method).main([*gpu_arguments(method, folders), "--out", str(tmp_path / "run")])
    assert all(step.kernels for step in counted)
    measured = counted[1 if method in FINDING else 3]
    assert not measured.waits
    assert not measured.float64
    assert measured.kernels.total() <= KERNELS[method]
    content = checkpoint.load(tmp_path / "run/step-00000005.pt")
    assert all(type(value) is Tensor for value in content["state"]["weights"].values() if isinstance(value, Tensor))
    assert content["config"]["device"] == "cuda"
    assert torch.load(tmp_path / "run/best.pt", weights_only=True)["step"] == 5
