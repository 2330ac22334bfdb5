"""Nothing is unpickled, no process started, no port opened, nothing written outside its folder.

Checked in the source, and at run time by Python's audit events.
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import faulty_runs
from helpers.command_line import ROOT, TINY

SOURCES = [
    f
    for part in ("kintsugi", "apps", "recon", "contrastive", "pretext", "eval", "bench")
    for f in (ROOT / part).rglob("*.py")
]
LOADERS = ("torch.load", "torch.hub.load_state_dict_from_url")
NEVER = re.compile(
    r"eval|exec|compile|__import__|os\.(system|popen|exec\w*|spawn\w*)|torch\.jit\.load|torch\.hub\.load|yaml\.load"
    r"|(pickle|marshal|shelve|joblib|dill|cloudpickle)\.\w+"
)


def calls(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The full name and the keyword arguments of each call in a module."""
    tree = ast.parse(file.read_text())
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            full = names.get(first, first) + (f".{rest}" if rest else "")
            yield full, {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}


def test_the_source_unpickles_nothing_and_calls_no_shell():
    assert len(SOURCES) > 50
    loads = 0
    for file in [*SOURCES, ROOT / "hubconf.py"]:
        for name, options in calls(file):
            assert not NEVER.fullmatch(name), f"{file}: {name}"
            assert options.get("shell", "False") == "False", f"{file}: {name}"
            assert options.get("allow_pickle", "False") == "False", f"{file}: {name}"
            if name in LOADERS:
                assert options.get("weights_only") == "True", f"{file}: {name}"
                loads += 1
    assert loads >= 3


def test_calls_are_found_by_their_full_names(tmp_path: Path):
    (tmp_path / "a.py").write_text(
        "import pickle as p\nfrom torch import load\np.load(x)\nload(y)\neval('1')\nnet.eval()\n"
    )
    names = [name for name, _ in calls(tmp_path / "a.py")]
    assert names == ["pickle.load", "torch.load", "eval", "net.eval"]
    assert [bool(NEVER.fullmatch(name)) for name in names] == [True, False, True, False]


def test_tensorboard_listens_on_this_machine_alone():
    (line,) = re.findall(r"^\t@.*bin/tensorboard.*$", (ROOT / "Makefile").read_text(), re.M)
    assert "--host 127.0.0.1" in line


CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.symlink")


def events(module: str, args: list[str], folder: Path) -> list[tuple[str, str]]:
    """The audit events of a run: (event, its first argument)."""
    output = folder / "output"
    assert faulty_runs.finish(faulty_runs.start(module, args, output, ("audit", 0))) == 0, output.read_text()
    return re.findall(r"^audit: (\S+) (.*)$", output.read_text(), re.M)


@pytest.mark.parametrize(
    ("module", "args"),
    [("helpers.tiny_method", []), pytest.param("kintsugi.recon.inpainting", TINY, marks=pytest.mark.slow)],
)
def test_a_run_writes_into_its_folders_alone_and_starts_listens_and_unpickles_nothing(
    module: str, args: list[str], photos: Path, tmp_path: Path
):
    folder = tmp_path / "runs"
    options = ["--data", str(photos), "--cache", str(tmp_path / "cache"), "--runs", str(folder)]
    recorded = events(module, [*args, *options], tmp_path)
    recorded += events(module, ["--resume", *options, "--steps", "8"], tmp_path)
    written = [Path(path) for event, path in recorded if event in CHANGES]
    assert {"step-00000008.pt", "step-00000006.pt"} <= {path.name for path in folder.rglob("*.pt")}
    assert any(path.name == "pixels.bin" for path in written)
    assert sum(path.name.endswith(".part") for path in written) >= 4
    outside = [p for p in written if not p.is_relative_to(folder) and not p.is_relative_to(tmp_path / "cache")]
    # matplotlib, which torchmetrics imports, makes folders of its own; Python checks whether /tmp can be written.
    assert not [p for p in outside if p.name != "matplotlib" and str(p.parent) != tempfile.gettempdir()]
    assert not [(event, what) for event, what in recorded if event not in CHANGES]
