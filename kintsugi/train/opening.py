"""Opens the data that a training configuration names."""

from __future__ import annotations

from typing import Any

from kintsugi.data.images import Split, open_images
from kintsugi.train.compute import pick_device
from kintsugi.train.config import TrainConfig


def open_data(config: TrainConfig, quiet: bool = False) -> Split:
    """The images that a configuration names, split into training and held-out ones."""
    return open_images(config.data, config.size, **storage(config, quiet))


def storage(config: TrainConfig, quiet: bool) -> dict[str, Any]:
    """Where and how decoded images are stored."""
    return {
        "short_side": config.short_side,
        "scenes": config.scenes,
        "cache_dir": config.cache,
        "cache_gb": config.cache_gb,
        "device": pick_device(config.device).type,
        "quiet": quiet,
    }
