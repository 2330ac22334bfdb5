"""The command studio and its server: for this computer only, no outside address, one line where it cannot start."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Refused

from kintsugi.apps import studio
from kintsugi.apps.studio_models import Models


def test_without_gradio_one_line_says_how_to_install_it(refused: Refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(studio, "find_spec", lambda name: None)
    line = refused(studio.main, ["--no-open"])
    assert line == "error: kintsugi studio needs gradio: run make studio, or pip install 'kintsugi[studio]'"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--port", "70000"], "error: --port must be in [0, 65535], not 70000"),
        (["--ckpt", "nowhere"], "error: no checkpoint at nowhere: train one (make help lists how), or name another"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], line: str, refused: Refused):
    pytest.importorskip("gradio")
    assert refused(studio.main, ["--no-open", *options]) == line


def test_a_port_that_is_in_use_is_refused_or_left_out(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as taken:
        taken.bind((studio.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: it is in use"):
            studio.free_port(port)
        monkeypatch.setattr(studio, "FIRST_PORT", port)
        assert port < studio.free_port(0) < port + 100


# --- the server -----------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What answers requests, without a socket."""
    pytest.importorskip("gradio")
    from starlette.testclient import TestClient

    for name, value in {**studio.PRIVATE, "GRADIO_TEMP_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    models = Models.of(tmp_path / "runs", torch.device("cpu"), None)
    with TestClient(studio.application(models, tmp_path, 7860), base_url="http://127.0.0.1:7860") as client:
        yield client


def test_the_page_has_the_tabs_and_loads_nothing_from_elsewhere(served: Any):
    page = served.get("/")
    assert page.status_code == 200
    for tab in ("Mend", "Colorize", "Upscale", "See"):
        assert f'"label":"{tab}"' in page.text.replace('": "', '":"')
    loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="([^"]*)"', page.text)
    assert loaded
    assert not [url for url in loaded if url.startswith(("http:", "https:", "//")) and "127.0.0.1" not in url]
    style = served.get("/theme.css").text
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style)


@pytest.mark.parametrize("path", ["/", "/theme.css", "/config", "/nowhere"])
def test_the_browser_may_load_only_what_this_server_sends(path: str, served: Any):
    policy = served.get(path).headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy
    assert "*" not in policy


def test_another_host_name_is_refused(served: Any):
    """A page elsewhere whose name leads to 127.0.0.1 cannot talk to the server."""
    assert served.get("/", headers={"host": "elsewhere.example:7860"}).status_code == 400


def test_nothing_is_reported(served: Any):
    config = served.get("/config").json()
    assert config["analytics_enabled"] is False
