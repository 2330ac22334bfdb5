"""``make docs``: Sphinx builds every page, and a warning is an error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import ROOT


@pytest.mark.slow
def test_the_documentation_is_built_without_warnings_and_needs_no_network(tmp_path: Path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ("index", "quickstart", "methods/moco", "api/kintsugi.losses"):
        text = (tmp_path / f"{page}.html").read_text()
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+"', text)
    assert "info_nce" in (tmp_path / "api/kintsugi.losses.html").read_text()
