"""Reads published weights: from a file, or from where torchvision, timm and Hugging Face publish them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

HUBS = ("torchvision", "timm", "hf")


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """The tensors of a source of weights, by name; those inside other dicts have names such as ``model.conv1.weight``.

    source: a file (.safetensors, .pth, .pt) of a state dict, or of a checkpoint of this or another project: of this
    project's, only its encoders are read. Or ``torchvision:NAME`` or ``timm:NAME``, of which NAME may have a version
    (``resnet50.IMAGENET1K_V1``, ``resnet50.a1_in1k``), or ``hf:OWNER/REPO`` or ``hf:OWNER/REPO/FILE``: these are
    downloaded once. Raises ValueError with one line.
    """
    hub, _, name = str(source).partition(":")
    if hub in HUBS and name and not Path(source).exists():
        return _downloaded(hub, name)
    return _read(Path(source).expanduser())


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"no weights at {file}: name a file of a state dict (.safetensors, .pth, .pt)")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # The options of a training, which DINO, MoCo and MAE save beside its weights: a class that only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or foreign file
        raise ValueError(
            f"{file} is not a file of tensors only ({type(error).__name__}): save the network's state_dict()"
        ) from None
    if isinstance(content, dict) and content.keys() >= {"format", "method", "encoders"}:  # a checkpoint of this project
        content = {role: encoder["state"] for role, encoder in content["encoders"].items()}
    tensors = dict(_tensors(content)) if isinstance(content, dict) else {}
    if not tensors:
        raise ValueError(f"{file} holds no state dict: save the network's state_dict()")
    return tensors


def _tensors(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{name}.")


def _downloaded(hub: str, name: str) -> dict[str, Tensor]:
    """Weights from a hub's cache, or else downloaded. Raises ValueError with one line."""
    fetch = {"torchvision": _from_torchvision, "timm": _from_timm, "hf": _from_hugging_face}[hub]
    try:
        return fetch(name)
    except Exception as error:  # an unknown name, no network, no access: each library raises its own kinds
        why = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{hub}:{name} could not be loaded ({type(error).__name__}: {why}): check the name and the network, or "
            "give a file of its weights"
        ) from None


def _from_torchvision(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights  # imported here: slow, and --help does not need it

    bare, _, version = name.partition(".")
    weights: Any = get_model_weights(bare)
    return dict(weights[version or "DEFAULT"].get_state_dict(progress=False, check_hash=True))


def _from_timm(name: str) -> dict[str, Tensor]:
    import timm  # imported here: slow, and --help does not need it

    if not timm.is_model(name):
        raise ValueError("timm has no network of this name")
    return timm.create_model(name, pretrained=True).state_dict()


def _from_hugging_face(name: str) -> dict[str, Tensor]:
    from huggingface_hub import hf_hub_download  # imported here: slow, and --help does not need it
    from huggingface_hub.errors import EntryNotFoundError

    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    if file:
        return _read(Path(hf_hub_download(f"{owner}/{repo}", file)))
    try:
        return _read(Path(hf_hub_download(f"{owner}/{repo}", "model.safetensors")))
    except EntryNotFoundError:
        return _read(Path(hf_hub_download(f"{owner}/{repo}", "pytorch_model.bin")))
