"""Widgets that the page's tabs share: opening a photo, comparing two pictures, download, choice of a network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from kintsugi.apps.studio_models import Models, none_yet
from kintsugi.apps.studio_photos import LARGEST, Photo, open_photo

HEIGHT = 500  # of the editor and of the sliders, px of the page


class PhotoDrop(NamedTuple):
    """A place to drop a photo. When one is open, there is a line with its name instead, and a button for another."""

    drop: gr.File
    bar: gr.Row
    name: gr.Markdown
    other: gr.UploadButton

    def on_open(
        self,
        work: gr.Row | gr.Column,
        load: Callable[[Photo], tuple[Any, ...]],
        outputs: Sequence[gr.components.Component],
        largest: float = LARGEST,
    ) -> None:
        """Shows ``work`` when a photo of at most ``largest`` megapixels is opened, and gives ``outputs`` new values."""

        def opened(path: str) -> tuple[Any, ...]:
            with one_line():
                photo = open_photo(path, largest)
                title = f"**{photo.name}**, {photo.image.width} × {photo.image.height} px"
                return gr.update(visible=False), gr.update(visible=True), title, gr.update(visible=True), *load(photo)

        shown = [self.drop, self.bar, self.name, work, *outputs]
        for source in (self.drop, self.other):
            event = source.upload(opened, source, shown, show_progress_on=[self.drop, self.name], concurrency_limit=1)
            event.success(None, js="() => { strokes = 0; }")
            event.failure(lambda: None, None, self.drop, show_progress="hidden")


def photo_drop(label: str = "Your photo") -> PhotoDrop:
    """Adds a ``PhotoDrop`` here."""
    drop = gr.File(label=label, file_types=["image"], height=220, elem_classes="drop")
    with gr.Row(visible=False, equal_height=True, elem_classes="bar") as bar:
        name = gr.Markdown(container=False)
        other = gr.UploadButton("Open another photo", file_types=["image"], size="sm", scale=0, min_width=180)
    return PhotoDrop(drop, bar, name, other)


def slider(label: str, name: str, height: int | None = HEIGHT) -> gr.ImageSlider:
    """Adds a picture before and after, with a handle between them. name: its id in the page."""
    return gr.ImageSlider(
        label=label,
        type="pil",
        format="png",
        interactive=False,
        buttons=["fullscreen"],
        height=height,
        max_height=height or HEIGHT,
        elem_id=name,
    )


def download(name: str) -> gr.DownloadButton:
    """Adds a button that downloads a result; it is enabled when there is one. name: its id in the page."""
    return gr.DownloadButton("Download PNG", interactive=False, elem_id=name)


def network(page: gr.Blocks, models: Models, methods: tuple[str, ...]) -> gr.Dropdown:
    """Adds the choice of a checkpoint of some methods. Its list is made anew whenever the page is loaded."""
    box = gr.Dropdown([], label="Network", filterable=False, elem_classes="network")
    page.load(lambda: fresh(models, methods), None, box, show_progress="hidden")
    return box


def fresh(models: Models, methods: tuple[str, ...]) -> gr.Dropdown:
    """The choice with the checkpoints that are there now; the first one is chosen.

    Where there is none, a line says how to get one.
    """
    choices = models.choices(methods)
    if not choices:
        return gr.Dropdown(choices=[("none", "")], value="", info=none_yet(methods))
    return gr.Dropdown(choices=choices, value=choices[0][1], info="")


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Shows a mistake that a person can mend as one line in the page, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(" ".join(str(error).split()), title="", print_exception=False) from None
