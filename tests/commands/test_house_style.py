"""The checks of `make check` find what they are for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import house_style
import pytest
from helpers.command_line import ROOT
from house_style import check, main, project


def test_a_violation_ends_with_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    texts = {"a.md": "gray\n"}
    monkeypatch.setattr(house_style, "project", lambda: texts)
    assert main() == 0
    texts["a.md"] = "gray\ngrey\n"
    assert main() == 1
    assert "a.md:2: grey: write gray\n" in capsys.readouterr().out


def test_all_files_are_read():
    assert {"recon/inpainting.py", "kintsugi/rng.py", "README.md", "Makefile", "pyproject.toml"} <= set(project())


@pytest.mark.parametrize(
    ("rule", "texts"),
    [
        ("length", {"a.py": "x = 1\n" * 351}),
        ("stem", {"recon/a.py": "", "eval/a.py": ""}),
        ("class", {"a.py": "class A: ...", "b.py": "def f():\n    class A: ..."}),
        ("fmt", {"a.py": "x = (1)  # fmt: skip"}),
        ("fmt", {"a.py": "#fmt:off"}),
        ("phrase", {"a.md": "The method hears of the data."}),
        ("phrase", {"a.py": "# what the method hears\n    # of the data"}),
        ("spelling", {"a.md": "Grey is a colour."}),
        ("spelling", {"a.py": "MEAN_COLOUR = 1"}),
        ("spelling", {"a.py": "class MeanColour: ..."}),
        ("spelling", {"a.py": "neighbours2d = 1"}),
    ],
)
def test_a_violation_is_found(rule: str, texts: dict[str, str]):
    found = check(texts)
    assert {violation.rule for violation in found} == {rule}


def test_what_is_right_is_not_reported():
    texts = {
        "a.py": "x = 1\n" * 350,
        "b.py": "class A: ...  # colors of neighbors, fmt",
        "recon/__init__.py": "",
        "eval/__init__.py": "",
        "a.md": "What it is, of which kind, is said once.",
    }
    assert not check(texts)


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("kintsugi/data/order.py", "import kintsugi.train.loop", "layers below its own"),
        ("kintsugi/data/order.py", "import kintsugi.recon.inpainting", "layers below its own"),
        ("recon/another.py", "import kintsugi.contrastive.simclr", "layers below its own"),
        ("eval/transfer.py", "from kintsugi.recon import mae", "imports no method"),
        ("kintsugi/unknown.py", "", "layers below its own"),
        ("recon/another.py", "import kintsugi.recon.third", "No circles"),
    ],
)
def test_the_layers_are_held(file: str, line: str, contract: str, tmp_path: Path):
    """On a skeleton of the project in which one import is wrong."""
    pytest.importorskip("importlinter")
    for room in "apps eval recon contrastive pretext".split():
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
    (tmp_path / "kintsugi").mkdir()
    for room in "train metrics losses fill nets augment data scenes".split():
        (tmp_path / "kintsugi" / room).mkdir()
        (tmp_path / "kintsugi" / room / "__init__.py").touch()
    for link in "apps eval recon contrastive pretext".split():
        (tmp_path / "kintsugi" / link).symlink_to(f"../{link}")
    for name in "__init__ __main__ rng upload color table pictures catalog train/loop data/order".split():
        (tmp_path / f"kintsugi/{name}.py").touch()
    for name in "transfer classification segmentation geometry detection export".split():
        (tmp_path / f"eval/{name}.py").touch()
    for name in ("recon/inpainting", "recon/mae", "contrastive/simclr"):
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "recon/third.py").write_text("import kintsugi.recon.another" if "third" in line else "")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def lint() -> str:
        command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    if "third" not in line:
        assert "Contracts: 3 kept, 0 broken." in lint()
    with (tmp_path / file).open("a") as opened:
        opened.write(f"{line}\n")
    broken = [text for text in lint().splitlines() if text.endswith("BROKEN")]
    assert [text for text in broken if contract in text], lint()
