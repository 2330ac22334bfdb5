"""Opens the data that the config of a training run names."""

from __future__ import annotations

from kintsugi.data.image_set import Split
from kintsugi.data.images import open_images
from kintsugi.data.store import Store
from kintsugi.train.compute import pick_device
from kintsugi.train.config import TrainConfig


def open_data(config: TrainConfig, quiet: bool = False) -> Split:
    """Opens the images that a config names, split into training and held-out ones. quiet: see ``Store``."""
    return open_images(config.data, config.size, store_of(config, quiet), scenes=config.scenes)


def store_of(config: TrainConfig, quiet: bool = False) -> Store:
    """The ``Store`` with the settings of a config."""
    device = pick_device(config.device).type
    return Store(config.short_side, config.cache, config.cache_gb, device, quiet)
