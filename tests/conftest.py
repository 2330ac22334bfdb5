from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import tiny_folders
from helpers.command_line import ROOT, TINY, Refused, Run
from helpers.tiny_runs import arguments


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # two pytest workers share two cores


@pytest.fixture(autouse=True, scope="session")
def _one_precision() -> Iterator[None]:
    """``--precision auto`` is float32 in this process, on every CPU; other processes get ``--precision fp32``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kintsugi.train.bf16.in_hardware", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache; tests of one worker share one, as runs of one user do."""
    os.environ["KINTSUGI_CACHE"] = str(tmp_path_factory.getbasetemp() / "kintsugi-cache")
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that are marked gpu where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 JPEGs, see ``tiny_folders``."""
    folder = tmp_path_factory.mktemp("photos")
    tiny_folders.photos(folder)
    return folder


@pytest.fixture(scope="session")
def folders(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``photos``, ``clips`` and ``labeled``, see ``tiny_folders``."""
    root = tmp_path_factory.mktemp("folders")
    for name, fill in (("clips", tiny_folders.clips), ("labeled", tiny_folders.labeled)):
        (root / name).mkdir()
        fill(root / name)
    return {"photos": photos, "clips": root / "clips", "labeled": root / "labeled"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A checkpoint of the inpainter after one step on ``photos``, 64 px, for commands that read one."""
    from kintsugi.recon.inpainting import main

    folder = tmp_path_factory.mktemp("trained") / "run"
    main([*TINY, "--data", str(photos), "--steps", "1", "--adversarial", "0", "--out", str(folder)])
    (file,) = folder.glob("step-*.pt")
    return file


@pytest.fixture(scope="session")
def upscaler(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run of super-resolution on ``photos``, two steps of each phase, for commands that enlarge."""
    from kintsugi.recon.superresolution import main

    folder = tmp_path_factory.mktemp("upscaler") / "run"
    main([*arguments("superresolution", {"photos": photos}), "--out", str(folder)])
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs ``python -m MODULE ARGS`` as a person does, in an empty folder."""

    def call(module: str, *args: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs ``main(args)`` in this process, which is faster than ``run``; returns the error line, like ``refusal``."""
    monkeypatch.chdir(tmp_path)

    def call(main: Callable[[list[str]], None], args: list[str | Path]) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        assert stop.value.code == 2
        return line

    return call
