"""A page in the browser: mend, colorize and enlarge photos, and look at what networks see in them.

``make studio`` or ``kintsugi studio``. The page is made with gradio, an optional extra. It is served to this computer
only (127.0.0.1), and neither the page nor the server sends a request to any other: gradio's analytics are off, fonts
are the system's, and the page's content security policy forbids the browser to load anything from elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kintsugi.apps.studio_models import Models
from kintsugi.train.compute import Device, pick_device
from kintsugi.train.config import run_command, within

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST = "127.0.0.1"
FIRST_PORT = 7860
PRIVATE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment of gradio: nothing is reported, and nothing is looked up."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "media-src 'self' data: blob:; object-src 'none'; frame-ancestors 'none'"
)
"""What the browser may load: only what this server sends, and what the page makes itself."""


@dataclass(frozen=True, kw_only=True)
class StudioConfig:
    """Opens a page in the browser: paint a hole and mend it, colorize, enlarge, and see what networks see."""

    runs: Path = Path("runs")
    """Folder of the runs whose checkpoints can be chosen."""
    ckpt: Path | None = None
    """A run's folder or a checkpoint that can be chosen too; it comes first."""
    port: int = 0
    """Port of the page; 0 = the first free one from 7860 on."""
    open: bool = True
    """Open the page in the browser."""
    device: Device = "auto"
    """auto: the GPU if there is one."""


def run(config: StudioConfig) -> int:
    """Serves the page until Ctrl-C. Raises ValueError with one line if gradio is missing."""
    within(config, port=(0, 65535))
    if find_spec("gradio") is None:
        raise ValueError("kintsugi studio needs gradio: run make studio, or pip install 'kintsugi[studio]'")
    models = Models.of(config.runs, pick_device(config.device), config.ckpt)
    port = free_port(config.port)
    with tempfile.TemporaryDirectory(prefix="kintsugi-studio-") as folder:  # photos do not outlive the page
        os.environ.update(PRIVATE, GRADIO_TEMP_DIR=folder)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # also leaves by KeyboardInterrupt, and so cleans up
        with contextlib.suppress(KeyboardInterrupt):
            serve(models, Path(folder), port, show=config.open)
    return 0


def serve(models: Models, folder: Path, port: int, *, show: bool) -> None:
    """Serves the page until Ctrl-C. folder: for uploaded photos and results. show: open it in the browser."""
    import uvicorn

    url = f"http://{HOST}:{port}"
    app = application(models, folder, port)
    print(f"Kintsugi Studio: {url} (Ctrl-C stops it)", flush=True)
    if show and _has_screen():
        threading.Timer(1.5, webbrowser.open, [url]).start()
    # Its own log shows a traceback whenever a page is closed during an upload; gradio prints what fails in a tab.
    uvicorn.run(app, host=HOST, port=port, log_level="critical", ws="none")


def application(models: Models, folder: Path, port: int) -> FastAPI:
    """What answers the browser's requests: the page, for this computer only. folder: for results."""
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from kintsugi.apps.studio_page import mount

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.add_middleware(Policy)
    return mount(app, models, folder, port)


class Policy:
    """ASGI middleware that adds the content security policy to each answer."""

    def __init__(self, app) -> None:  # type: ignore[no-untyped-def]
        self.app = app

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        async def send_with_policy(message) -> None:  # type: ignore[no-untyped-def]
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def free_port(wanted: int) -> int:
    """The port itself, or, for 0, the first free one from 7860 on. Raises ValueError if there is none."""
    ports = [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + 100)
    for port in ports:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                trial.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ValueError(f"--port {ports[0]}: it is in use, or not allowed; name another one")


def _has_screen() -> bool:
    """Whether a browser would have a window. Without one, a text browser could take over the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def main(argv: Sequence[str] | None = None) -> None:
    run_command(StudioConfig, run, argv)


if __name__ == "__main__":
    main()
