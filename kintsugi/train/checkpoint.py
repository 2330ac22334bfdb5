"""Checkpoints: files of plain tensors and plain settings, written whole or not at all, never unpickled.

A file holds ``{"format", "method", "step", "config", "state", "encoders", ...}``: everything that training changes, and
each encoder that can be transferred, as ``{"spec": plain dict, "state": tensors}``. So ``eval`` rebuilds an encoder
without importing the method.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kintsugi.nets.backbones import Encoder
from kintsugi.nets.specs import build_spec
from kintsugi.train import shipped

FORMAT = 2
LATEST = "latest"
"""Name of the pointer file in a method's folder. It holds the name of the newest run."""
_KEYS = frozenset("method step config state encoders".split())
_STEP_FILE = re.compile(r"step-(\d+)\.pt")


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint under a temporary name, flushes it to the disk and renames it.

    A crash leaves the old file or the new one, never a partial one under ``path``. Raises OSError with one line if the
    disk is full or the folder cannot be written; then no partial file is left.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        part.unlink(missing_ok=True)
        steps = newest(path.parent)
        kept = f"the last good checkpoint is {steps[0]}" if steps else "there is no checkpoint yet"
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        raise OSError(
            f"could not write {path} ({reason}): free some space, or choose another folder with --runs; {kept}"
        ) from None


def load(path: Path, method: str | None = None) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. method: the method whose checkpoint it must be; None = any.

    Raises ValueError with one line if the file is missing or damaged, is not a checkpoint, or belongs to another
    method.
    """
    if not path.is_file():
        raise _missing(path)
    if path.suffix == shipped.SUFFIX:
        return _checked(shipped.read(path), path, method)
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes the checksums of the archive, but does not check them
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        others = [p for p in newest(path.parent) if p != path]
        hint = f"use the one before it, {others[0]}" if others else "train again, or name another"
        raise ValueError(f"{path} is not a whole checkpoint ({type(error).__name__}): {hint}") from None
    format = content.get("format") if isinstance(content, dict) else None
    if format is not None and format != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {format}, this version reads {FORMAT}: use the version that wrote it"
        )
    if format is None or not content.keys() >= _KEYS:
        raise ValueError(f"{path} is not a checkpoint of this project: name a file that a train command wrote")
    return _checked(content, path, method)


def _missing(path: Path) -> ValueError:
    return ValueError(f"no checkpoint at {path}: train one (make help lists how), or name another")


def _checked(content: dict[str, Any], path: Path, method: str | None) -> dict[str, Any]:
    """Returns ``content``, unless it belongs to another method: then raises ValueError with one line."""
    if method is not None and content["method"] != method:
        raise ValueError(f"{path} is a checkpoint of {content['method']}, not of {method}: name one of {method}")
    return content


def resolve(path: Path) -> Path:
    """Replaces the pointer file ``latest`` in a path by the run that it names.

    ``runs/moco/latest/best.pt`` becomes ``runs/moco/RUN/best.pt``. A path without it is returned as it is.
    """
    for place in (path, *path.parents):
        if place.name == LATEST and place.is_file():
            return place.with_name(place.read_text().strip()) / path.relative_to(place)
    return path


def find(path: Path) -> Path:
    """The checkpoint file for a path: a file itself, or the newest undamaged file of a run's folder.

    Step files are preferred. Without any (the run ended before its first one), it is the newest other file, such as
    best.pt. Damaged files are skipped with a warning. Raises ValueError with one line if there is none.
    """
    path = resolve(path)
    return path if path.is_file() else read(path)[0]


def read(path: Path, method: str | None = None) -> tuple[Path, dict[str, Any]]:
    """The checkpoint file for a path, as in ``find``, and its content, as in ``load``."""
    path = resolve(path)
    if path.is_file():
        return path, load(path, method)
    steps = newest(path)
    others = sorted(set(path.glob("*.pt")).difference(steps), key=os.path.getmtime, reverse=True)
    for candidate in [*steps, *others]:
        try:
            content = load(candidate)
        except ValueError as error:
            print(f"warning: {error}", file=sys.stderr)
        else:
            return candidate, _checked(content, candidate, method)
    if not path.exists():
        raise _missing(path)
    raise ValueError(f"no whole checkpoint in {path}: train one (make help lists how), or name another")


def chosen(ckpt: Path | None, *methods: str, shipped_name: str = "") -> Path:
    """The checkpoint file for the option --ckpt; without the option, that of the newest run of one of the methods.

    If there is no such run, it is the file of weights that ships with this package, for the first method or under
    ``shipped_name``. Without the option, one line on stderr says which file it is. Raises ValueError with one line if
    there is no file.
    """
    if ckpt is not None:
        return find(ckpt)
    pointers = [Path("runs") / method / LATEST for method in methods]
    own = max(filter(Path.is_file, pointers), key=os.path.getmtime, default=None)
    ships = shipped.FOLDER / f"{shipped_name or methods[0]}{shipped.SUFFIX}"
    if own is None and ships.is_file():
        print(f"using {ships.name}, which ships with Kintsugi, as runs/ has no run of your own", file=sys.stderr)
        return ships
    file = find(own or pointers[0])
    print(f"using {file.resolve()}", file=sys.stderr)
    return file


def load_encoder(path: str | Path, role: str = "") -> Encoder:
    """Loads an encoder from a checkpoint (a file or a run's folder), in evaluation mode.

    role: ``encoder``, or, for a GAN, ``generator`` or ``discriminator``; default: the first one, a GAN's generator.
    Raises ValueError with one line if there is no such checkpoint or role.
    """
    return encoder_of(read(Path(path))[1], role)[1]


def encoder_of(content: dict[str, Any], role: str = "") -> tuple[str, Encoder]:
    """Builds an encoder from the content of a checkpoint (``load``). Returns its role and the encoder.

    role and errors are as in ``load_encoder``.
    """
    encoders = content["encoders"]
    role = role or next(iter(encoders), "encoder")
    if role not in encoders:
        raise ValueError(f"the checkpoint of {content['method']} has no {role}: it has {', '.join(sorted(encoders))}")
    encoder = build_spec(encoders[role]["spec"])
    encoder.load_state_dict(encoders[role]["state"])
    return role, encoder.eval()


def weights_of(content: dict[str, Any], module: str) -> dict[str, Tensor]:
    """The weights of one submodule of a method, with the submodule's own names.

    content: of a checkpoint, from ``load``. module: the submodule, such as ``average.module``.
    """
    weights = content["state"]["weights"]
    return {name.removeprefix(f"{module}."): value for name, value in weights.items() if name.startswith(f"{module}.")}


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the ``keep`` newest step files. Other files, such as best.pt, stay."""
    for old in newest(folder)[keep:]:
        old.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Deletes the partial files of processes that were killed in ``save``. No process may be writing to the folder."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def newest(folder: Path) -> list[Path]:
    """The step files of a run, newest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), p) for p in folder.iterdir() if (match := _STEP_FILE.fullmatch(p.name))]
    return [p for _, p in sorted(found, reverse=True)]
