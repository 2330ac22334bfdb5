"""The studio as a person uses it, in a real browser: a photo, a stroke, a download; and no request to elsewhere.

Needs Debian's Chromium, gradio and playwright.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import python_path
from helpers.untrained_runs import untrained
from PIL import Image, ImageDraw

from kintsugi.apps.studio import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

SIZE = (1700, 680)  # of the photo; the page shows it smaller
DISC, RADIUS = (1290, 230), 24  # what the person wants to be gone: a red disc; its center and radius, px of the photo
MARGIN = 6  # px of the photo, two of the screen: how exactly the test places its stroke
SECONDS = 120
Box = tuple[float, float, float, float]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of gray and green noise with a red disc."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(60, 200, (60, 90, 3), dtype=np.uint8)).resize(SIZE)
    pixels = np.asarray(coarse).astype(int) + random.integers(-20, 20, (SIZE[1], SIZE[0], 1))
    pixels[..., 0] = np.minimum(pixels[..., 0], pixels[..., 1])
    image = Image.fromarray(pixels.clip(0, 200).astype(np.uint8))
    x, y = DISC
    ImageDraw.Draw(image).ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=(255, 0, 0))
    file = tmp_path_factory.mktemp("photo") / "garden.png"
    image.save(file)
    return file


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running studio. At the end: it reached no other computer, and left no file."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("studio")
    for method in ("inpainting", "colorization", "superresolution", "simclr"):
        untrained(method, folder / "runs")
    (folder / "tmp").mkdir()
    output = folder / "output"
    port = free_port(0)
    with output.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "helpers.watched_studio", "--runs", "runs", "--no-open", "--port", str(port)],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": python_path(), "TMPDIR": str(folder / "tmp")},
        )
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, output.read_text()
                assert time.monotonic() < until, "the studio did not start"
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(30)
    assert server.returncode == 0
    text = output.read_text()
    assert "reached:" not in text
    assert "Traceback" not in text
    assert not list((folder / "tmp").glob("kintsugi-studio-*"))


@pytest.fixture
def page(url: str, tmp_path: Path) -> Iterator[Any]:
    """The studio's page in a new browser. At the end: all that the browser requested was from 127.0.0.1."""
    playwright = pytest.importorskip("playwright.sync_api")
    log, requested = tmp_path / "net.json", []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                f"--log-net-log={log}",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # for the browser's own requests
            ],
        )
        context = browser.new_context(viewport={"width": 1360, "height": 900})
        context.set_default_timeout(1000 * SECONDS)
        context.on("request", lambda request: requested.append(request.url))
        opened = context.new_page()
        opened.on("websocket", lambda socket: requested.append(socket.url))
        opened.goto(url)
        yield opened
        browser.close()
    assert requested
    assert not [place for place in requested if not place.startswith((f"{url}/", "data:", "blob:"))]
    logged = _by_the_page(log, url)
    assert f"{url}/theme.css" in {place.partition("?")[0] for place in logged}
    assert not [place for place in logged if not place.startswith((f"{url}/", "data:", "blob:"))]


def _by_the_page(log: Path, url: str) -> set[str]:
    """The requests in the browser's own log of its network that the page made; those of the browser itself, such as
    for updates, have no such initiator."""
    params = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return {one["url"] for one in params if "url" in one and one.get("initiator", "").startswith(url)}


def open_photo(page: Any, tab: str, photo: Path) -> None:
    page.get_by_role("tab", name=tab).click()
    page.locator(".drop:visible input[type=file]").set_input_files(photo)


def red_box(page: Any, within: str) -> Box:
    """Where the red disc is in the page, px: left, top, right, bottom."""
    place = page.locator(within).bounding_box()
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
    x, y = round(place["x"]), round(place["y"])
    part = shot[y : y + round(place["height"]), x : x + round(place["width"])]
    rows, columns = np.nonzero((part[..., 0] > 200) & (part[..., 1] < 60) & (part[..., 2] < 60))
    assert len(rows), "the photo is not in the editor"
    return x + int(columns.min()), y + int(rows.min()), x + int(columns.max()) + 1, y + int(rows.max()) + 1


def wait_for_disc(page: Any, within: str) -> Box:
    """As ``red_box``, when the photo has come to rest in the editor."""
    last: Box | None = None
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        page.wait_for_timeout(700)
        try:
            now = red_box(page, within)
        except AssertionError:
            continue
        if now == last:
            return now
        last = now
    raise AssertionError("the photo did not appear in the editor")


def paint(page: Any, box: Box) -> float:
    """Paints one stroke over the box, from left to right through its middle. Returns its half length, px."""
    left, top, right, bottom = box
    middle = (top + bottom) / 2
    page.mouse.move(left, middle)
    page.mouse.down()
    page.mouse.move(right, middle, steps=12)
    page.mouse.up()
    page.wait_for_timeout(500)
    return (right - left) / 2


def downloaded(page: Any, button: str) -> np.ndarray:
    page.locator(f"{button}:not([disabled])").wait_for()
    with page.expect_download() as waiting:
        page.locator(button).click()
    assert waiting.value.suggested_filename.endswith(".png")
    with Image.open(waiting.value.path()) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def distance_to_stroke(half: float) -> np.ndarray:
    """Distance, px of the photo, of each pixel from the horizontal line through the disc's center."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    beyond = (np.abs(x - DISC[0]) - half).clip(min=0)
    return np.hypot(beyond, y - DISC[1])


def is_red(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)


def test_only_what_the_brush_covers_changes_and_the_disc_is_gone(page: Any, photo: Path):
    open_photo(page, "Mend", photo)
    box = wait_for_disc(page, "#mend-editor")
    paint(page, box)
    page.locator("#mend").click()
    before = np.asarray(Image.open(photo)).astype(int)
    after = downloaded(page, "#mend-download")
    assert after.shape == before.shape
    changed = (after != before).any(2)
    distance = distance_to_stroke(RADIUS)
    brush = round(640 / 24) * SIZE[0] / 1600  # the page shows 1600x640 px
    assert distance[changed].max() < brush + MARGIN
    assert changed[distance < brush - MARGIN].mean() > 0.95
    assert not is_red(after).any()

    # The mended photo is the one to paint on now, with no stroke on it.
    page.wait_for_timeout(1500)
    page.locator("#mend").click()
    page.get_by_text("Nothing is painted yet").first.wait_for()

    # Another draws the same hole again, and nothing else.
    page.locator("#mend-another").click()
    page.wait_for_timeout(1000)
    page.locator("#mend-another:not([disabled])").wait_for()
    page.wait_for_timeout(1000)
    again = downloaded(page, "#mend-download")
    assert distance[(again != before).any(2)].max() < brush + MARGIN
    assert not is_red(again).any()


def test_the_editors_undo_and_clear_take_strokes_away_and_not_the_photo(page: Any, photo: Path):
    open_photo(page, "Mend", photo)
    box = wait_for_disc(page, "#mend-editor")
    for button, presses in (("Undo", 3), ("Clear canvas", 1)):
        paint(page, box)
        page.mouse.move(5, 5)
        with pytest.raises(AssertionError, match="not in the editor"):
            red_box(page, "#mend-editor")  # the stroke covers the disc
        for _ in range(presses):
            page.locator(f'#mend-editor button[aria-label="{button}"]').click(force=True)
            page.wait_for_timeout(500)
        assert wait_for_disc(page, "#mend-editor") == box


def test_upscale_and_see_show_their_pictures(page: Any, photos: Path):
    small = photos / "photo03.jpg"
    open_photo(page, "Upscale", small)
    page.locator("#upscale").click()
    assert downloaded(page, "#upscale-download").shape == (4 * 72, 4 * 96, 3)

    open_photo(page, "See", small)
    page.get_by_text("Features as colors").click()
    page.wait_for_timeout(1000)
    page.locator("#see").click()
    page.get_by_text("Its features as colors").wait_for()
    page.get_by_text("Nearest photos").click()
    page.get_by_label("Folder of photos to search in").fill(str(photos))
    page.locator("#see").click()
    page.get_by_text("photo03.jpg: 1.00").wait_for()


def test_a_file_that_is_no_photo_is_one_line_in_the_page(page: Any, photo: Path, tmp_path: Path):
    wrong = tmp_path / "notes.png"
    wrong.write_text("no photo")
    open_photo(page, "Mend", wrong)
    toast = page.locator(".toast-body, [data-testid=toast-body]").first
    toast.wait_for()
    assert "notes.png cannot be read as an image" in toast.inner_text()
    open_photo(page, "Mend", photo)
    wait_for_disc(page, "#mend-editor")
    page.locator("#mend").click()
    page.get_by_text("Nothing is painted yet").wait_for()


def test_a_point_is_where_the_person_clicked(page: Any, photo: Path):
    tall = photo.with_name("tall.png")
    with Image.open(photo) as image:
        image.transpose(Image.Transpose.ROTATE_90).resize((400, 600)).save(tall)
    open_photo(page, "Colorize", tall)
    picture = page.locator("#colorize-points img")
    picture.wait_for()
    page.wait_for_timeout(1500)
    place = page.locator("#colorize-points").bounding_box()
    middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    clicks = [(middle[0] + 60, middle[1] - 90), (middle[0] - 80, middle[1] + 120)]
    for x, y in clicks:
        page.mouse.click(x, y)
        page.wait_for_timeout(1500)
    page.mouse.move(5, 5)
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
    blue = np.abs(shot - np.array([0x3B, 0x6F, 0xB6])).max(2) < 12
    for x, y in clicks:
        assert blue[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].all()
    page.locator("#colorize").click()
    result = downloaded(page, "#colorize-download")
    assert result.shape == (600, 400, 3)
    assert np.ptp(result, axis=2).max() > 0
