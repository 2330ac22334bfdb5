"""The option --init: start a training from the network of another run of the same method."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import Tensor

from kintsugi.train import checkpoint
from kintsugi.train.config import TrainConfig, from_plain

C = TypeVar("C", bound=TrainConfig)


def is_run_of(init: str, method: str) -> bool:
    """Whether ``--init`` names a run's folder, a checkpoint or shipped weights of this method."""
    if not init or not Path(init).exists():
        return False
    try:
        return checkpoint.read(Path(init))[1]["method"] == method
    except ValueError:  # weights of another origin
        return False


def initial_weights(init: str, config: C, method: str, network: str, *settings: str) -> dict[str, Tensor]:
    """The weights of a network in a run's folder, a checkpoint, or a file of weights that ships.

    init: its path. network: the submodule of the method, such as ``average.module``. settings: names of the settings
    that make the network. Raises ValueError with one line if the file is missing, of another method, or if one of these
    settings differs from ``config``'s.
    """
    file, content = checkpoint.read(Path(init), method)
    trained = from_plain(type(config), content["config"])

    def options(of: C) -> str:
        return " ".join(f"--{name} {getattr(of, name)}" for name in settings)

    if options(trained) != options(config):
        raise ValueError(f"--init {file} has {options(trained)}, this run {options(config)}: use the former")
    return checkpoint.weights_of(content, network)
