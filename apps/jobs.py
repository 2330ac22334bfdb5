"""What the programs for photos share: a file or a folder in, PNG out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro
from tqdm import tqdm

from kintsugi.data.decode import SUFFIXES
from kintsugi.data.photos import images_in


@dataclass(frozen=True, kw_only=True)
class PhotosConfig:
    """Options of every program for photos."""

    source: Annotated[Path, tyro.conf.arg(name="in")]
    """A photo, or a folder of photos."""
    out: Path
    """A .png file, or a folder."""
    ckpt: Path | None = None
    """A run's folder or a checkpoint; default: the newest run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""


@dataclass(frozen=True)
class PhotoJob:
    """A photo to read and the PNG to write."""

    photo: Path
    out: Path


J = TypeVar("J", bound=PhotoJob)


def find_jobs(source: Path, out: Path) -> list[PhotoJob]:
    """The jobs for --in and --out: one photo to one PNG, or each photo of a folder to a PNG in a folder.

    Raises ValueError with one line if the paths do not fit together.
    """
    if not source.exists():
        raise ValueError(f"--in {source}: no such file or folder")
    many = source.is_dir()
    photos = images_in(source) if many else [source]
    if not photos:
        raise ValueError(f"--in {source}: there are no images in this folder ({', '.join(sorted(SUFFIXES))})")
    if many and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder, because --in is a folder")
    to_folder = many or out.is_dir()
    if not to_folder and out.suffix.lower() != ".png":
        raise ValueError(
            f"--out {out}: results are written as PNG, which is lossless; name it {out.with_suffix('.png').name}"
        )
    outs = [out / f"{photo.stem}.png" if to_folder else out for photo in photos]
    if len(set(outs)) < len(outs):
        twice = next(path for path in outs if outs.count(path) > 1)
        raise ValueError(f"--in {source}: several photos would be written to {twice}; rename all but one of them")
    refuse_overwriting(outs, photos)
    return [PhotoJob(*paths) for paths in zip(photos, outs, strict=True)]


def refuse_overwriting(outs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raises ValueError with one line if a result would overwrite one of the inputs."""
    originals = {path.resolve() for path in inputs}
    for out in outs:
        if out.resolve() in originals:
            raise ValueError(f"--out would overwrite {out}: name another file or folder")


@contextlib.contextmanager
def progress(name: str) -> Iterator[Callable[[float], object]]:
    """A context with a function that takes the fraction that is done, and shows it.

    name: of the photo. Shown only on terminals, and only if the work takes more than a second.
    """
    with tqdm(
        total=1, desc=name, delay=1, leave=False, disable=None, bar_format="{l_bar}{bar}| {elapsed}<{remaining}"
    ) as bar:
        yield lambda done: bar.update(done - bar.n)


def run_jobs(jobs: Sequence[J], do: Callable[[J], str], *, stop: bool) -> int:
    """Does each job and prints the name of the file that it wrote. Returns how many jobs failed.

    do: does one job and returns a note to print after the file's name, or "". stop: raise the first failure, instead of
    printing it and going on.
    """
    failed = 0
    for job in jobs:
        try:
            note = do(job)
        except (ValueError, OSError) as error:
            if stop:
                raise
            failed += 1
            print(f"failed: {error}", file=sys.stderr)
        else:
            print(f"{job.out}" + (f" ({note})" if note else ""))
    if failed:
        print(f"{failed} of {len(jobs)} photos failed", file=sys.stderr)
    return failed
