"""Export of a checkpoint's encoder for other tools, as safetensors and ONNX.

``python -m kintsugi.eval.export --ckpt runs/simclr/latest --out encoder``

The safetensors file holds the weights. Those of a plain ResNet have the names of torchvision and timm, and only the
classifier is missing: ``torchvision.models.resnet18().load_state_dict(load_file(FILE), strict=False)``. The ONNX file
holds the whole encoder, from RGB in [0,1] on, for any number of images of any size. The metadata of both files describe
the input.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from kintsugi.nets.backbones import IMAGENET_MEAN, IMAGENET_STD
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.specs import build_spec
from kintsugi.train import checkpoint
from kintsugi.train.config import parse_command, user_errors


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Writes an encoder of a checkpoint as safetensors and ONNX."""

    ckpt: Path
    """A run's folder or a checkpoint."""
    out: Path
    """NAME.safetensors or NAME.onnx; NAME writes both."""
    role: str = ""
    """generator, discriminator or encoder; default: the checkpoint's first, a GAN's generator."""


# --- metadata -------------------------------------------------------------------------------------------------


def metadata(content: Mapping[str, Any], role: str, encoder: Encoder) -> dict[str, str]:
    """What both files record: name -> text, without empty entries. content: a checkpoint's (``checkpoint.load``)."""
    spec = encoder.spec.plain()
    images_seen = content["step"] * content["config"].get("batch", 0)
    found = {
        "library": "Kintsugi",
        "method": content["method"],
        "role": role,
        "backbone": str(spec.get("name", spec["kind"])),
        "norm": str(spec.get("norm", "")),
        "input": input_description(spec),
        "channels": json.dumps(encoder.channels),  # stride -> channels
        "spec": json.dumps(spec),
        "steps": str(content["step"]),
        "images_seen": str(images_seen or ""),
    }
    if is_torchvision(spec):
        found["loads"] = f"torchvision.models.{spec['name']} and timm's {spec['name']}, strict=False: fc is missing"
    return {name: value for name, value in found.items() if value}


def input_description(spec: Mapping[str, Any]) -> str:
    """How the encoder with this spec transforms RGB in [0,1] before its first layer. Raises ValueError if unknown."""
    kind = spec["kind"]
    if kind in ("backbone", "published", "vit"):
        return f"RGB, [0,1], then {_normalized(spec)}"
    if kind in ("discriminator", "srgan-discriminator"):
        return "RGB, [0,1], then 2 x - 1"
    if kind == "srresnet":
        return "RGB, [0,1], cropped to multiples of 16 px, then shrunk 4 times (bicubic, as MATLAB's)"
    if kind == "planes":
        planes = {"L": "three planes of L / 100", "ab": "planes .5, a / 220 + .5, b / 220 + .5"}
        normalized = _normalized(spec["backbone"])
        return f"RGB, [0,1], as Lab (CIE 1976, D65), then {planes[spec['planes']]}, then {normalized}"
    if kind == "joined":
        return "; ".join(f"part {i}: {input_description(part)}" for i, part in enumerate(spec["parts"]))
    if kind == "rgbd":
        return f"RGB and HHA, six planes, [0,1], each three then {_normalized(spec['rgb'])}"
    raise ValueError(f"the input of a {kind} has no description: export another role")


def _normalized(spec: Mapping[str, Any]) -> str:
    """How an encoder of RGB normalizes its input: timm's networks have their own mean and deviation."""
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if spec["kind"] != "backbone":
        encoder: Any = build_spec(dict(spec))
        mean, std = (tuple(round(v, 4) for v in x[0, :3, 0, 0].tolist()) for x in (encoder.mean, encoder.std))
    return f"(x - mean) / std, mean={mean}, std={std}"


def is_torchvision(spec: Mapping[str, Any]) -> bool:
    """Whether torchvision's network of the same name can load the weights unchanged."""
    return (
        spec["kind"] == "backbone"
        and spec["name"].startswith("resnet")
        and spec["norm"] in ("batch", "split")
        and spec["stem"] == "large"
        and spec["width"] == 1
    )


# --- files ----------------------------------------------------------------------------------------------------


def write_safetensors(encoder: Encoder, description: Mapping[str, str], file: Path) -> None:
    """Writes the weights and the metadata."""
    state = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    for name in [name for name in state if name.endswith("running_var")]:
        # torch's batch norm has this entry. Our split batch norm, which is the same in evaluation mode, has not.
        state.setdefault(f"{name.removesuffix('running_var')}num_batches_tracked", torch.tensor(0))
    content = save(state, {"format": "pt", **description})  # pt: the usual mark of PyTorch's weights
    _write_whole(file, lambda partial: partial.write_bytes(content))


def write_onnx(encoder: Encoder, description: Mapping[str, str], file: Path) -> None:
    """Writes the encoder and the metadata: ``image`` (batch,planes,height,width) -> ``stride_4``, ``stride_8``, ...

    Raises ValueError if onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{file} is not written, because {error.name} is missing: pip install onnx onnxscript"
        ) from None
    with warnings.catch_warnings():  # torch warns about itself
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Maps(encoder).eval(),
            (torch.zeros(2, encoder.planes, 64, 96),),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            input_names=["image"],
            output_names=[f"stride_{stride}" for stride in encoder.channels],
        )
    assert program is not None
    program.model.metadata_props.update(description)
    _write_whole(file, program.save)


class _Maps(nn.Module):
    """An encoder's maps as a tuple, fine to coarse."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(image).values())


def _write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Writes under a temporary name, then renames. Raises OSError with one line if the file cannot be written."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):  # if the folder is a file
            partial.unlink(missing_ok=True)
        reason = error.strerror or error
        raise OSError(f"could not write {file} ({reason}): name a file in another folder with --out") from None
    print(f"wrote {file}")


def run(config: ExportConfig) -> None:
    """Writes the files. Raises ValueError with one line if ``--out`` or the role cannot be used."""
    writers = {".safetensors": write_safetensors, ".onnx": write_onnx}
    suffix = config.out.suffix
    if suffix and suffix not in writers:
        raise ValueError(f"--out must end in {' or '.join(writers)}, or have no ending to write both, not {suffix}")
    if config.out.is_dir():
        raise ValueError(f"--out {config.out} is a folder: name a file in it, such as {config.out / 'encoder'}")
    content = checkpoint.read(config.ckpt)[1]
    role, encoder = checkpoint.encoder_of(content, config.role)
    description = metadata(content, role, encoder)
    for ending, write in writers.items():
        if suffix in ("", ending):
            write(encoder, description, config.out.with_suffix(ending))


def main(argv: Sequence[str] | None = None) -> None:
    with user_errors():
        run(parse_command(ExportConfig, argv))


if __name__ == "__main__":
    main()
