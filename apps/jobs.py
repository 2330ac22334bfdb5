"""What the commands on a person's photos share: a file or a folder in, PNG out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from kintsugi.data.decode import SUFFIXES
from kintsugi.data.photos import images_in


@dataclass(frozen=True, kw_only=True)
class PhotosConfig:
    """What every command on photos is told."""

    source: Annotated[Path, tyro.conf.arg(name="in")]
    """A photo, or a folder of photos."""
    out: Path
    """A .png, or a folder."""
    ckpt: Path | None = None
    """A run's folder or a checkpoint; default: the method's newest run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class Job:
    photo: Path
    out: Path


J = TypeVar("J", bound=Job)


def find_jobs(source: Path, out: Path) -> list[Job]:
    """What --in and --out ask for: one photo into a PNG, or each photo of a folder into a folder.

    ValueError of one line where the paths make no sense.
    """
    if not source.exists():
        raise ValueError(f"--in {source}: no such file or folder")
    many = source.is_dir()
    photos = images_in(source) if many else [source]
    if not photos:
        raise ValueError(f"--in {source}: the folder holds no images ({', '.join(sorted(SUFFIXES))})")
    if many and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder, as --in is one")
    to_folder = many or out.is_dir()
    if not to_folder and out.suffix.lower() != ".png":
        raise ValueError(
            f"--out {out}: only PNG is written, which loses nothing; name it {out.with_suffix('.png').name}"
        )
    outs = [out / f"{photo.stem}.png" if to_folder else out for photo in photos]
    if len(set(outs)) < len(outs):
        twice = next(path for path in outs if outs.count(path) > 1)
        raise ValueError(f"--in {source}: several photos would become {twice}; rename all but one")
    refuse_overwriting(outs, photos)
    return [Job(*paths) for paths in zip(photos, outs, strict=True)]


def refuse_overwriting(outs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """ValueError of one line where a result would replace what it is made from."""
    originals = {path.resolve() for path in inputs}
    for out in outs:
        if out.resolve() in originals:
            raise ValueError(f"--out would overwrite {out}: name another file or folder")


def run_jobs(jobs: Sequence[J], do: Callable[[J], str], *, stop: bool) -> int:
    """Does each job and prints its result and what ``do`` says of it; returns how many failed.

    stop: the first failure raises, as it should for a single file; else failures are named and counted.
    """
    failed = 0
    for job in jobs:
        try:
            said = do(job)
        except (ValueError, OSError) as error:
            if stop:
                raise
            failed += 1
            print(f"failed: {error}", file=sys.stderr)
        else:
            print(f"{job.out}" + (f" ({said})" if said else ""))
    if failed:
        print(f"{failed} of {len(jobs)} photos failed", file=sys.stderr)
    return failed
