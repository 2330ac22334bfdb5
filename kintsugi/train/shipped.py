"""Trained weights that ship: a network in half precision, in one safetensors file that reads like a checkpoint.

``python -m bench.ship CKPT OUT.safetensors`` writes one. The file holds the averaged network of a run (or
its colorizer, or its first encoder) without what only training needs. Its header says what the network is, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "weights"
"""The weights that ship: in a checkout a link to the folder weights/ at its top."""
SUFFIX = ".safetensors"
_KEY = "kintsugi"  # the header's entry
_PLACES = frozenset("data real init teacher out runs cache content_weights lpips".split())
"""Settings that name places on the machine of the training; whoever reads the file gets their defaults."""
_NETWORKS = ("average.module", "colorizer")  # the submodule of a method that is used after training


def write(content: dict[str, Any], path: Path) -> None:
    """Writes the network of a checkpoint's content to ``path``, floats in half precision where they fit.

    For a method without a network to use, such as SimCLR, it is the encoder alone.
    """
    weights = content["state"]["weights"]
    network = next((name for name in _NETWORKS if any(key.startswith(f"{name}.") for key in weights)), "")
    role, encoder = next(iter(content["encoders"].items()))
    prefix = f"{network}.encoder." if network else "encoder."
    kept = {key: value for key, value in weights.items() if network and key.startswith(f"{network}.")}
    kept |= {prefix + key: value for key, value in encoder["state"].items()}
    about = {"method": content["method"], "step": content["step"], "score": content["score"], "ranks": 1}
    about |= {"config": {name: value for name, value in content["config"].items() if name not in _PLACES}}
    about |= {"encoder": {"role": role, "spec": encoder["spec"], "prefix": prefix}}
    half = {key: _half(value).contiguous() for key, value in kept.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_file(half, part, {_KEY: json.dumps(about)})
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """The content of a file that ``write`` wrote, as of a checkpoint without optimizers; floats in float32.

    Raises ValueError with one line if the file is damaged or another kind of file.
    """
    with _opened(path) as (file, about):
        weights = {key: _float(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118  (no dict)
        encoder = about.pop("encoder")
        prefix = encoder["prefix"]
        state = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    about["state"] = {"weights": weights, "optimizers": {}}
    about["encoders"] = {encoder["role"]: {"spec": encoder["spec"], "state": state}}
    return about


def method_of(path: Path) -> str:
    """The method of a file that ``write`` wrote, from its header alone. Raises as ``read``."""
    with _opened(path) as (_, about):
        return about["method"]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A context with the open file and what its header says. Errors of reading it become one line, as in ``read``."""
    try:
        with safe_open(path, "pt") as file:
            yield file, json.loads((file.metadata() or {})[_KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold this project's weights ({type(error).__name__}): name a checkpoint, or a file "
            "from weights/"
        ) from None


def _half(value: torch.Tensor) -> torch.Tensor:
    """The tensor in half precision, unless it is of integers or has values that are too large for that."""
    fits = value.is_floating_point() and bool((value.abs() <= torch.finfo(torch.half).max).all())
    return value.half() if fits else value


def _float(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value
