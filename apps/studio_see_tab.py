"""The page's tab See: what networks see in a photo."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from kintsugi.apps import studio_widgets as widgets
from kintsugi.apps.studio_features import nearest, pca_colors
from kintsugi.apps.studio_models import EVERY, SURFACES, Models
from kintsugi.apps.studio_photos import Photo, open_photo, shown
from kintsugi.data import photos

SIDE = 720  # longest side of the pictures, px
COLORS, NEIGHBORS, SURFACE = "Features as colors", "Nearest photos", "Depth, normals, contours"
CAPTIONS = ("Photo", "Depth: white is near", "Normals: x, y, z are red, green, blue", "Contours")


def see_tab(page: gr.Blocks, models: Models) -> None:
    """Adds the widgets of the tab."""
    photo = gr.State()
    drop = widgets.photo_drop()
    with gr.Column(visible=False) as work:
        with gr.Row(equal_height=True):
            what = gr.Radio([COLORS, NEIGHBORS, SURFACE], value=COLORS, show_label=False, container=False, scale=3)
            start = gr.Button("Show", variant="primary", elem_id="see", scale=1)
        folder = gr.Textbox(label="Folder of photos to search in", placeholder="/home/me/photos", visible=False)
        pictures = gr.Gallery(
            show_label=False,
            format="png",
            columns=2,
            object_fit="contain",
            height="auto",
            interactive=False,
            buttons=["fullscreen"],
            elem_id="see-pictures",
        )
    network = widgets.network(page, models, EVERY)

    def switch(what: str) -> tuple[Any, ...]:
        methods = SURFACES if what == SURFACE else EVERY
        columns = 4 if what == NEIGHBORS else 2
        return widgets.fresh(models, methods), gr.update(visible=what == NEIGHBORS), gr.Gallery([], columns=columns)

    def run(
        photo: Photo, what: str, folder: str, choice: str, progress: gr.Progress = gr.Progress()
    ) -> list[tuple[Image.Image, str]]:
        with widgets.one_line():
            progress(0.1, "looking")
            image = photos.to_tensor(shown(photo.image, SIDE))
            if what == SURFACE:
                return _captioned([image, *models.surfaces(image, choice)], CAPTIONS)
            encoder = models.encoder(choice)
            if what == COLORS:
                return _captioned([image, pca_colors(encoder, image)], ("Photo", "Its features as colors"))
            found, note = nearest(encoder, image, folder, progress)
            if note:
                gr.Info(note, title="")
            near = [(shown(open_photo(path).image, SIDE), f"{path.name}: {cosine:.2f}") for path, cosine in found]
            return [*_captioned([image], ("Your photo",)), *near]

    drop.on_open(work, lambda photo: (photo, []), [photo, pictures])
    what.change(switch, what, [network, folder, pictures], show_progress="hidden")
    start.click(run, [photo, what, folder, network], pictures, concurrency_id="net")


def _captioned(images: list[Tensor], captions: tuple[str, ...]) -> list[tuple[Image.Image, str]]:
    return [(photos.to_image(image), caption) for image, caption in zip(images, captions, strict=True)]
