"""What is carried to a machine without a network: wheels, and data sets as tar files. Needs the standard library alone.

``python -m bench.gpu.pack`` makes the folder.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(".gpu")
"""Where ``make gpu`` looks for what is carried."""
WHEELS = "wheels"


def install(folder: Path) -> None:
    """Installs the wheels in ``folder``/wheels whose packages are missing here, for this process and its children.

    They go into a temporary folder at the end of Python's path; nothing that is installed is replaced.
    """
    site = Path(tempfile.gettempdir()) / "kintsugi-gpu-site"
    _add(site)
    missing = [str(wheel) for wheel in sorted((folder / WHEELS).glob("*.whl")) if not _installed(wheel)]
    if missing:
        options = "--quiet --no-index --no-deps --no-compile --no-cache-dir --target".split()
        subprocess.run([sys.executable, "-m", "pip", "install", *options, str(site), *missing], check=True)
        _add(site)  # Python forgets a folder that was not there


def unpack(folder: Path, name: str, into: Path) -> Path:
    """Unpacks NAME.tar, NAME.tar.xz or the like in ``folder`` to ``into``/NAME, if it is there and was not unpacked
    yet; returns ``into``/NAME."""
    target = into / name
    for file in folder.glob(f"{name}.tar*"):
        if not target.exists():
            part = target.with_name(f"{name}.part")
            with tarfile.open(file) as tar:
                tar.extractall(part, filter="data")
            part.rename(target)
    return target


def _installed(wheel: Path) -> bool:
    try:
        importlib.metadata.distribution(wheel.name.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _add(site: Path) -> None:
    if site.is_dir() and str(site) not in sys.path:
        sys.path.append(str(site))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(site)]))
