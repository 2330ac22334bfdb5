"""The built-in scenes: ``render`` and ``render_clip`` make pictures of furnished rooms, with exact ground truth."""

from kintsugi.scenes.classes import CLASSES
from kintsugi.scenes.rendering import SOURCE_FILES, render, render_clip

__all__ = ["CLASSES", "SOURCE_FILES", "render", "render_clip"]
