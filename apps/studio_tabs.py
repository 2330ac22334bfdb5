"""The page's tabs Mend, Colorize and Upscale. What they do is in the other files; here the widgets are connected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from kintsugi.apps import studio_mend
from kintsugi.apps import studio_widgets as widgets
from kintsugi.apps.mend import Detail
from kintsugi.apps.studio_models import COLORIZERS, ENLARGED, MENDERS, UPSCALERS, Models
from kintsugi.apps.studio_photos import LARGEST_TO_ENLARGE, Hint, Photo, gray, hint_layers, save_png, shown, with_points
from kintsugi.data import photos

STROKE = ("#ff2d78", 0.65)  # a color that hardly any photo has, and its opacity
ENLARGED_SHOWN = 2400  # longest side of an enlarged photo in the page, px
LEAST_SHOWN = 1000  # longest side of a photo to be colorized in the page, at least, px: so points are easy to place
DETAILS = [
    ("whichever fits better", "auto"),
    ("from patches of the photo: sharp", "patches"),
    ("from the network alone: smooth", "net"),
]
BRUSH = 1 / 24  # radius of the brush as a fraction of the photo's short side


# --- mend -----------------------------------------------------------------------------------------------------


def mend_tab(page: gr.Blocks, models: Models, folder: Path) -> None:
    """Adds the widgets of the tab. folder: for results."""
    session = gr.State()
    drop = widgets.photo_drop()
    with gr.Row(visible=False) as work:
        with gr.Column():
            editor = gr.ImageEditor(
                label="Paint over what should go",
                type="numpy",
                format="png",
                sources=None,
                transforms=None,
                layers=False,
                brush=_brush(500),
                buttons=[],
                height=widgets.HEIGHT,
                elem_id="mend-editor",
            )
            with gr.Row():
                mend = gr.Button("Mend", variant="primary", elem_id="mend")
                again = gr.Button("Try another", interactive=False, elem_id="mend-another")
                undo = gr.Button("Undo mend", interactive=False, elem_id="mend-undo")
        with gr.Column():
            slider = widgets.slider("Original | mended", "mend-slider")
            download = widgets.download("mend-download")
    network = widgets.network(page, models, MENDERS)
    with gr.Accordion("Options", open=False, elem_classes="options"):
        detail = gr.Radio(DETAILS, value=DETAILS[0][1], label="Detail in the hole")
    results = [session, editor, slider, download, again, undo]

    def update(session: studio_mend.Session) -> tuple[Any, ...]:
        mended, picture = bool(session.rounds), shown(session.current)
        pair = (shown(session.photo.image), picture) if mended else None
        file = save_png(session.result, folder, "mended") if mended else None
        enabled = gr.update(interactive=mended)
        return session, _background(picture), pair, gr.update(value=file, interactive=mended), enabled, enabled

    def load(photo: Photo) -> tuple[Any, ...]:
        session, background, *others = update(studio_mend.Session(photo, photo.image))
        short = min(background["background"].size)
        return session, gr.ImageEditor(background, brush=_brush(short), eraser=_eraser(short)), *others

    def run(
        session: studio_mend.Session,
        painted: dict[str, Any],
        choice: str,
        detail: Detail,
        progress: gr.Progress = gr.Progress(),
    ) -> tuple[Any, ...]:
        with widgets.one_line():
            layers = painted["layers"]
            mend = models.mender(choice, detail, progress)
            return update(studio_mend.next_round(session, layers, mend))

    def draw_another(
        session: studio_mend.Session, choice: str, detail: Detail, progress: gr.Progress = gr.Progress()
    ) -> tuple[Any, ...]:
        with widgets.one_line():
            drawn = studio_mend.another(session, models.mender(choice, detail, progress))
            if drawn.current.tobytes() == session.current.tobytes():
                gr.Info("This came out the same: the photo leaves no choice here", title="")
            return update(drawn)

    def take_back(session: studio_mend.Session) -> tuple[Any, ...]:
        with widgets.one_line():
            return update(studio_mend.undo(session))

    drop.on_open(work, load, results)
    chosen = [network, detail]
    mended = mend.click(run, [session, editor, *chosen], results, show_progress_on=slider, concurrency_id="net")
    drawn = again.click(draw_another, [session, *chosen], results, show_progress_on=slider, concurrency_id="net")
    undone = undo.click(take_back, session, results, show_progress_on=slider)
    # The editor's own Clear takes the photo away too.
    cleared = editor.clear(lambda session: _background(shown(session.current)), session, editor, show_progress="hidden")
    for event in (mended, drawn, undone, cleared):
        event.success(None, js="() => { strokes = 0; }")


def _background(picture: Image.Image) -> dict[str, Any]:
    """What makes the editor show a picture with nothing painted on it."""
    return {"background": picture, "layers": [], "composite": None}


def _brush(short_side: int) -> gr.Brush:
    return gr.Brush(round(BRUSH * short_side), colors=[STROKE], default_color=STROKE, color_mode="fixed")


def _eraser(short_side: int) -> gr.Eraser:
    return gr.Eraser(round(BRUSH * short_side))


# --- colorize -------------------------------------------------------------------------------------------------


def colorize_tab(page: gr.Blocks, models: Models, folder: Path) -> None:
    """Adds the widgets of the tab. folder: for results."""
    photo, grayed, hints = gr.State(), gr.State(), gr.State([])
    drop = widgets.photo_drop()
    with gr.Row(visible=False) as work:
        with gr.Column():
            points = gr.Image(
                label="Pick a color and click where it belongs, or leave the colors to the network",
                type="pil",
                format="png",
                interactive=False,
                buttons=[],
                height=widgets.HEIGHT,
                elem_id="colorize-points",
            )
            with gr.Row():
                color = gr.ColorPicker("#3b6fb6", label="Color", show_label=False, min_width=280)
                undo = gr.Button("Undo point", min_width=80)
                clear = gr.Button("Clear points", min_width=80)
            colorize = gr.Button("Colorize", variant="primary", elem_id="colorize")
        with gr.Column():
            slider = widgets.slider("Gray | colorized", "colorize-slider")
            download = widgets.download("colorize-download")
    network = widgets.network(page, models, COLORIZERS)

    def load(photo: Photo) -> tuple[Any, ...]:
        small = gray(shown(photo.image, least=LEAST_SHOWN))
        return photo, small, [], small, None, gr.update(interactive=False)

    def add(grayed: Image.Image, hints: list[Hint], color: str, where: gr.SelectData) -> tuple[Any, ...]:
        x, y = where.index
        hints = [*hints, Hint((x + 0.5) / grayed.width, (y + 0.5) / grayed.height, color)]
        return hints, with_points(grayed, hints)

    def remove(grayed: Image.Image, hints: list[Hint]) -> tuple[Any, ...]:
        return hints[:-1], with_points(grayed, hints[:-1])

    def run(
        photo: Photo, grayed: Image.Image, hints: list[Hint], choice: str, progress: gr.Progress = gr.Progress()
    ) -> tuple[Any, ...]:
        with widgets.one_line():
            progress(0.1, "colorizing")
            colors, known = hint_layers(hints, photo.image.size)
            result = photo.with_colors(photos.to_image(models.colorize(photo.tensor, colors, known, choice)))
            file = save_png(result, folder, "colorized")
            return (grayed, shown(result.image, least=LEAST_SHOWN)), gr.update(value=file, interactive=True)

    drop.on_open(work, load, [photo, grayed, hints, points, slider, download])
    points.select(add, [grayed, hints, color], [hints, points], show_progress="hidden")
    undo.click(remove, [grayed, hints], [hints, points], show_progress="hidden")
    clear.click(lambda grayed: ([], grayed), grayed, [hints, points], show_progress="hidden")
    inputs = [photo, grayed, hints, network]
    colorize.click(run, inputs, [slider, download], show_progress_on=slider, concurrency_id="net")


# --- upscale --------------------------------------------------------------------------------------------------


def upscale_tab(page: gr.Blocks, models: Models, folder: Path) -> None:
    """Adds the widgets of the tab. folder: for results."""
    photo = gr.State()
    drop = widgets.photo_drop(f"Your photo, of at most {LARGEST_TO_ENLARGE:g} megapixel")
    with gr.Column(visible=False) as work:
        slider = widgets.slider("Bicubic | network", "upscale-slider", 640)
        with gr.Row():
            start = gr.Button("Enlarge four times", variant="primary", elem_id="upscale")
            download = widgets.download("upscale-download")
    network = widgets.network(page, models, UPSCALERS)

    def run(photo: Photo, choice: str, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:
        with widgets.one_line():
            result = photo.with_colors(photos.to_image(models.upscale(photo.tensor, choice, progress)))
            size = (ENLARGED * photo.image.width, ENLARGED * photo.image.height)
            bicubic = photo.image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
            file = save_png(result, folder, "enlarged")
            return (shown(bicubic, ENLARGED_SHOWN), shown(result.image, ENLARGED_SHOWN)), gr.update(
                value=file, interactive=True
            )

    def load(photo: Photo) -> tuple[Any, ...]:
        return photo, None, gr.update(interactive=False)

    drop.on_open(work, load, [photo, slider, download], LARGEST_TO_ENLARGE)
    start.click(run, [photo, network], [slider, download], show_progress_on=slider, concurrency_id="net")
