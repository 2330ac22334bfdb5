"""Makes the folder that ``make gpu`` carries to a machine without a network: wheels, and data sets as tar files.

``python -m bench.gpu.pack --data cifar10.tar.xz tinyimagenet=tiny --download``: of the sets, ``cifar10`` and
``tinyimagenet`` are used; each has train/ and test/ with a folder for each class.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.carried import FOLDER, WHEELS
from kintsugi.data.decode import SUFFIXES
from kintsugi.data.folders import walk
from kintsugi.train.config import run_command, within

NEEDED = (
    "kornia kornia_rs lpips tyro docstring_parser typeguard webdataset braceexpand pycocotools lightly "
    "stable_pretraining"
).split()
"""Packages that a machine with PyTorch, torchvision, timm, torchmetrics, TensorBoard and OpenCV may lack, with those
that they need in turn. The last two serve the rates of other libraries."""
_PLATFORMS = [f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_17", "2014", "1")]


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Makes the folder to carry, and refuses one that is too large."""

    data: tuple[str, ...] = ()
    """Data sets, each a PATH or NAME=PATH: a folder with train/ and test/, which is packed, or a tar file, which is
    copied."""
    per_class: int = 0
    """The most images of each class to pack, spread evenly; of the test images half as many; 0 = all. A tar file is
    packed anew for this."""
    wheels: Path | None = None
    """Folder of wheels to copy."""
    download: bool = False
    """Get the wheels with pip, from the index that it is set up for."""
    python: str = "3.12"
    """Version of Python on the other machine, for --download."""
    limit: float = 60.0
    """The most MB that the folder may have."""
    out: Path = FOLDER
    """The folder, which is made anew."""

    def __post_init__(self) -> None:
        within(self, per_class=0, limit=0)


def main(argv: Sequence[str] | None = None) -> None:
    run_command(PackConfig, run, argv)


def run(config: PackConfig) -> int:
    """Makes the folder. Raises ValueError with one line if it is larger than the limit; the folder is removed then."""
    sets = dict(_named(spec) for spec in config.data)
    new = config.out.with_name(f"{config.out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        (new / WHEELS).mkdir(parents=True)
        for wheel in config.wheels.glob("*.whl") if config.wheels else ():
            shutil.copy(wheel, new / WHEELS)
        if config.download:
            download(new / WHEELS, config.python)
        for name, path in sets.items():
            pack(name, path, config.per_class, new)
        size = sum(file.stat().st_size for file in new.rglob("*") if file.is_file()) / 1e6
        if size > config.limit:
            raise ValueError(f"{size:.1f} MB, more than --limit {config.limit:g}: take fewer images with --per-class")
        shutil.rmtree(config.out, ignore_errors=True)
        new.rename(config.out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    for file in sorted(file for file in config.out.rglob("*") if file.is_file()):
        print(f"{file.stat().st_size / 1e6:8.2f} MB  {file}")
    print(f"{size:8.2f} MB in all, and {tracked():.1f} MB of the files that git tracks here")
    return 0


def download(folder: Path, python: str) -> None:
    """Gets the wheels with pip for Linux on x86-64. Raises OSError with one line if that fails."""
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    options = ["--quiet", "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", *options, "--dest", str(folder), *NEEDED]
    if subprocess.run(command, check=False).returncode:
        raise OSError("pip could not get the wheels, see above; give a folder of them with --wheels")


def pack(name: str, path: Path, per_class: int, into: Path) -> None:
    """Packs a set as ``into``/NAME.tar.xz; a tar file is copied as it is if all of its images are to be kept.

    Raises ValueError with one line if it is neither a tar file nor a folder with train/ and test/.
    """
    if path.is_file() and ".tar" in path.name:
        if not per_class:
            shutil.copy(path, into / f"{name}.tar{path.name.partition('.tar')[2]}")
            return
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(path) as tar:
                tar.extractall(folder, filter="data")
            pack(name, Path(folder), per_class, into)
        return
    if not all((path / part).is_dir() for part in ("train", "test")):
        raise ValueError(f"--data {path}: neither a tar file nor a folder with train/ and test/")
    with tarfile.open(into / f"{name}.tar.xz", "w:xz", preset=1) as tar:
        for file in chosen(path, per_class):
            member = tarfile.TarInfo(file)  # without times and owners
            member.size = os.path.getsize(path / file)
            with open(path / file, "rb") as content:
                tar.addfile(member, content)


def chosen(root: Path, per_class: int) -> Iterator[str]:
    """The images below ``root`` to pack, by their names there: all, or ``per_class`` of each class of train/, and half
    as many of each class of test/."""
    for part, most in (("train", per_class), ("test", (per_class + 1) // 2)):
        for folder in sorted(one for one in (root / part).iterdir() if one.is_dir()):
            names = sorted(name for name, _, _ in walk(folder, print, SUFFIXES))
            step = max(1.0, len(names) / most) if most else 1.0
            for number in range(int(len(names) / step)):
                yield f"{part}/{folder.name}/{names[int(number * step)]}"


def tracked() -> float:
    """MB of the files that git tracks in the current folder; they travel too. 0 outside a checkout."""
    found = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    files = [Path(name) for name in found.split("\0") if name]
    return sum(file.lstat().st_size for file in files if file.exists()) / 1e6


def _named(spec: str) -> tuple[str, Path]:
    """Name and path from NAME=PATH, or from PATH with its own name."""
    name, equals, path = spec.partition("=")
    return (name, Path(path)) if equals else (Path(spec).name.partition(".tar")[0], Path(spec))


if __name__ == "__main__":
    main()
