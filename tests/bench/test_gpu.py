"""``make gpu`` and the folder that it carries: time limits, parts that fail, and each part at its smallest."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import tiny_folders
from helpers.command_line import ROOT, Refused, Run

from bench.gpu import carried, forked, pack, parts
from bench.gpu.record import Place, Record


def well(place: Place, record: Record) -> None:
    record.row("rates", "one", {"images/s": 5.0})


def raises(place: Place, record: Record) -> None:
    well(place, record)
    raise RuntimeError("the card fell off the bus")


def has_a_failed_figure(place: Place, record: Record) -> None:
    record.attempt("rates", "bad", partial(int, "x"))
    well(place, record)


def overruns(place: Place, record: Record) -> None:
    try:
        time.sleep(60)
    finally:
        well(place, record)


PARTS = {"tests": raises, "smoke": has_a_failed_figure, "rates": overruns, "cifar10": well, "learn": overruns}
SHARES = {"tests": 5.0, "smoke": 5.0, "rates": 1.0, "cifar10": 8.0, "learn": 1.0}


@pytest.fixture
def run_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the parts of ``PARTS`` with these names; returns how many failed, and what each left."""
    monkeypatch.setattr(parts, "PARTS", {name: parts.Planned("", share) for name, share in SHARES.items()})
    monkeypatch.setattr(parts, "_module", lambda name: SimpleNamespace(run=PARTS[name]))

    def run(minutes: float, *names: str) -> tuple[int, dict[str, dict]]:
        config = parts.GpuConfig(
            parts=names, minutes=minutes, carried=tmp_path / "none", out=tmp_path / "out", work=tmp_path / "work"
        )
        failed = parts.run(config, time.monotonic())
        return failed, {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")}

    return run


def test_a_part_that_fails_or_overruns_is_reported_and_passed_over(run_parts, tmp_path: Path):
    names = ("tests", "smoke", "rates", "cifar10")
    failed, found = run_parts(0.5, *names)
    assert failed == 3
    assert [found[name]["status"] for name in ("tests", "smoke", "cifar10")] == [
        "failed with code 1",
        "failed with code 1",
        "finished",
    ]
    assert found["rates"]["status"].startswith("stopped after")
    assert "the card fell off the bus" in found["tests"]["end of the log"]
    assert "ValueError" in found["smoke"]["notes"][0]
    for one in found.values():  # also what a part measured before it failed, or saved when it was stopped
        assert one["tables"] == {"rates": {"one": {"images/s": 5.0}}}
        assert {"device", "torch", "command", "seconds"} <= one.keys()
    report = (tmp_path / "out/report.md").read_text()
    assert all(f"# {name}: {one['status']}" in report for name, one in found.items())
    places = [report.index(f"# {name}:") for name in names]
    assert places == sorted(places)


def test_all_parts_together_keep_the_limit(run_parts):
    begun = time.monotonic()
    failed, found = run_parts(0.05, "rates", "learn")
    assert time.monotonic() - begun < 15  # 3 seconds were given; this machine may be busy; each part would take 60
    assert failed == len(found) == 2
    assert all(one["status"].startswith(("stopped after", "not begun")) for one in found.values())


def test_only_the_parts_that_are_named_run(run_parts):
    failed, found = run_parts(0.5, "cifar10")
    assert (failed, list(found)) == (0, ["cifar10"])


def test_a_job_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forked, "GRACE", 0.3)

    def stubborn() -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (tmp_path / "pid").write_text(str(child.pid))
        while True:
            with contextlib.suppress(SystemExit):
                time.sleep(60)

    found = forked.run({"stubborn": stubborn, "late": lambda: None}, tmp_path / "logs", 1.5, groups=True)
    assert found["stubborn"].status.startswith("stopped after")
    assert found["late"].status.startswith("not begun")
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_jobs_run_at_once(tmp_path: Path):
    def wait_for_all(name: str) -> None:
        (tmp_path / name).touch()
        while not all((tmp_path / other).exists() for other in "abcd"):
            time.sleep(0.02)

    found = forked.run({name: partial(wait_for_all, name) for name in "abcd"}, tmp_path / "logs", 60, at_once=4)
    assert [(name, one.status) for name, one in found.items()] == [(name, "finished") for name in "abcd"]


@pytest.mark.parametrize("names", ["tests smoke rates", pytest.param("cifar10 learn", marks=pytest.mark.slow)])
def test_the_parts_run_at_their_smallest(names: str, run: Run, tmp_path: Path):
    done = run("bench.gpu", "--tiny", "--parts", *names.split(), timeout=600)
    out = tmp_path / "runs/gpu"
    found = {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(names.split(), "finished"), done.stdout
    assert done.returncode == 0
    assert all(one["tables"] for one in found.values())
    pictures = {"cifar10.png", "learn.png"} if "learn" in names else set()
    assert {file.name for file in out.iterdir()} == {"report.md", *(f"{name}.json" for name in found), *pictures}
    assert sum(file.stat().st_size for file in out.iterdir()) < 1e6


def test_make_gpu_chooses_parts():
    made = subprocess.run(
        ["make", "--dry-run", "gpu", "PARTS=tests rates", "ARGS=--tiny"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert made.stdout.split()[1:] == "-m bench.gpu --parts tests rates --tiny".split()


# --- what is carried ------------------------------------------------------------------------------------------


def test_a_set_is_packed_and_unpacked(tmp_path: Path):
    tiny_folders.labeled(tmp_path / "set")
    config = pack.PackConfig(data=(f"some={tmp_path / 'set'}",), per_class=4, out=tmp_path / "carried")
    assert pack.run(config) == 0
    assert carried.unpack(tmp_path / "carried", "some", tmp_path / "data") == tmp_path / "data/some"
    found = sorted(str(file.relative_to(tmp_path / "data/some")) for file in (tmp_path / "data/some").rglob("*.png"))
    assert len(found) == 3 * (4 + 2)
    assert all((tmp_path / "data/some" / name).read_bytes() == (tmp_path / "set" / name).read_bytes() for name in found)
    again = pack.PackConfig(data=(str(tmp_path / "carried/some.tar.xz"),), out=tmp_path / "again")
    assert pack.run(again) == 0
    assert (tmp_path / "again/some.tar.xz").read_bytes() == (tmp_path / "carried/some.tar.xz").read_bytes()


def test_a_folder_that_is_too_large_is_refused(tmp_path: Path, refused: Refused):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/large-1-py3-none-any.whl").write_bytes(bytes(2_000_000))
    line = refused(pack.main, ["--wheels", tmp_path / "wheels", "--limit", "1", "--out", tmp_path / "out"])
    assert line == "error: 2.0 MB, more than --limit 1: take fewer images with --per-class"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.new").exists()
    line = refused(pack.main, ["--data", tmp_path / "wheels", "--out", tmp_path / "out"])
    assert "neither a tar file nor a folder with train/ and test/" in line


def test_wheels_whose_packages_are_missing_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wheels").mkdir()
    for name in ("carried_for_a_test", "torch"):  # the second is there already, and stays
        about = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(tmp_path / f"wheels/{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "figure = 7\n")
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setattr(carried.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    carried.install(tmp_path)
    import carried_for_a_test  # type: ignore[import-not-found]

    assert carried_for_a_test.figure == 7
    assert os.environ["PYTHONPATH"] == str(tmp_path / "kintsugi-gpu-site")
    assert not (tmp_path / "kintsugi-gpu-site/torch").exists()
