"""What is built and installed: one name, `kintsugi`, with its command. Built without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.command_line import ROOT

from kintsugi import __version__
from kintsugi.catalog import PROGRAMS

FILES = (
    "pyproject.toml README.md LICENSE MANIFEST.in CHANGELOG.md CITATION.cff constraints.txt "
    "kintsugi recon contrastive pretext eval apps weights"
).split()


def modules() -> set[str]:
    """All of the project's modules, as files in a package."""
    inside = {p.relative_to(ROOT).as_posix() for p in (ROOT / "kintsugi").rglob("*.py")}
    linked = {
        f"kintsugi/{p.relative_to(ROOT).as_posix()}"
        for room in ("recon", "contrastive", "pretext", "eval", "apps")
        for p in (ROOT / room).rglob("*.py")
    }
    return inside | linked


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel that is built from it, out of a copy of the checkout."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in FILES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source], capture_output=True, check=True
    )
    return dist


@pytest.mark.slow
def test_the_wheel_installs_one_name(built: Path):
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"kintsugi-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"kintsugi", f"kintsugi-{__version__}.dist-info"}
    assert {name for name in names if name.endswith(".py")} == modules()
    assert {"kintsugi/py.typed", "kintsugi/weights/mender.safetensors"} <= set(names)


@pytest.mark.slow
def test_the_source_archive_has_files_in_place_of_links(built: Path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if not (member.isfile() or member.isdir())]
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert {*modules(), "kintsugi/weights/mender.safetensors"} <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "constraints.txt"} <= names


@pytest.mark.slow
def test_the_installed_command_runs_away_from_the_checkout(built: Path, tmp_path: Path):
    """A fresh environment, whose other packages are those of this one."""
    env = tmp_path / "env"
    venv.create(env, with_pip=True)
    (wheel,) = built.glob("*.whl")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    subprocess.run([env / "bin/python", "-I", *pip], check=True)  # -I: whatever PYTHONPATH has
    (site,) = env.glob("lib/python*/site-packages")
    assert not {"core", "eval", "recon", "contrastive", "pretext", "apps", "tests", "bench"} & set(os.listdir(site))
    others = [path for path in sys.path if path.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(others))

    def run(*command: str) -> str:
        done = subprocess.run(
            [env / "bin" / command[0], *command[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"]},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = run("kintsugi", "--help")
    assert all(program.summary in text for program in PROGRAMS)
    assert run("kintsugi", "train", "rotation", "--help").startswith("usage: kintsugi train rotation")
    where = run("python", "-c", "import kintsugi.recon.inpainting as m; print(m.__file__)")
    assert where.strip() == str(site / "kintsugi/recon/inpainting.py")
    run("kintsugi", "scenes", "--count", "2", "--size", "32")
    assert (tmp_path / "scenes.png").exists()


def test_the_changelog_knows_the_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [Unreleased]: {__version__}\n" in text or f"## {__version__}" in text
