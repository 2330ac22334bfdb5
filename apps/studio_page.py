"""The page as a whole: its look, its tabs, and how a server gets it."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from kintsugi.apps.studio_models import Models
from kintsugi.apps.studio_see_tab import see_tab
from kintsugi.apps.studio_tabs import colorize_tab, mend_tab, upscale_tab

TITLE = "Kintsugi Studio"
FONTS = ["system-ui", "sans-serif"]  # the system's: gradio's own themes load theirs from the network
CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
.bar { align-items: center; }
.form:has(> .network), .options { max-width: 420px; }
.block.options { margin: 0 auto 0 0 !important; }
#see-pictures .grid-wrap { max-height: none; }
#see-pictures .thumbnail-lg { aspect-ratio: auto; }
[data-testid="status-tracker"]:has(.error) { display: none !important; }
footer, #mend-editor button[aria-label="Color"] { display: none !important; }
"""

HEAD = """
<script>
// gradio's Undo goes back beyond the first stroke, and takes the photo away. Here it stops when no stroke is left.
let strokes = 0;
const editor = "#mend-editor ";
const tool = '#mend-editor .highlight:is([aria-label="Brush"], [aria-label="Erase"])';
addEventListener("pointerdown", (event) => {
  if (event.target.closest(editor + "canvas") && document.querySelector(tool)) strokes += 1;
}, true);
addEventListener("click", (event) => {
  if (event.target.closest(editor + '[aria-label="Redo"]:not([disabled])')) strokes += 1;
  if (!event.target.closest(editor + '[aria-label="Undo"]')) return;
  if (strokes === 0) event.stopImmediatePropagation();
  strokes = Math.max(0, strokes - 1);
}, true);
</script>
"""


def mount(app: FastAPI, models: Models, folder: Path, port: int) -> FastAPI:
    """Adds the page to an ASGI application. folder: for results, as PNG."""
    return gr.mount_gradio_app(
        app,
        build(models, folder),
        "/",
        server_name="127.0.0.1",
        server_port=port,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        max_file_size="300mb",
        theme=gr.themes.Base(primary_hue="amber", neutral_hue="stone", font=FONTS, font_mono=FONTS),
        css=CSS,
        head=HEAD,
    )


def build(models: Models, folder: Path) -> gr.Blocks:
    """The page, with a tab for each thing that a person does."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nYour photos stay on this computer.")
        with gr.Tab("Mend"):
            mend_tab(page, models, folder)
        with gr.Tab("Colorize"):
            colorize_tab(page, models, folder)
        with gr.Tab("Upscale"):
            upscale_tab(page, models, folder)
        with gr.Tab("See"):
            see_tab(page, models)
    return page
