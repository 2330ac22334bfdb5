"""The command line of every method's training program."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from kintsugi.catalog import command_line, see_runs
from kintsugi.train.config import Preset, parse_training, user_errors
from kintsugi.train.loop import train
from kintsugi.train.method import C, Method


def run_method(method: type[Method[C]], presets: Sequence[Callable[[], C]], argv: Sequence[str] | None = None) -> None:
    """Reads the command line, trains, and prints what to do next.

    presets: the functions ``demo``, ``small`` and ``paper`` of the method's file. A mistake of the user is printed in
    one line, with exit code 2.
    """
    with user_errors():
        config = parse_training(method.name, named(presets), argv)
        method.check(config)
        folder = train(method, config)
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"next: {see_runs()}; {command_line(method.next_program, folder)}")


def named(presets: Sequence[Callable[[], C]]) -> dict[Preset, Callable[[], C]]:
    """The presets by name. The name of a preset is the name of its function."""
    return {preset.__name__: preset for preset in presets}  # type: ignore[misc]


def method_in(module: ModuleType, name: str) -> type[Method[Any]]:
    """The class of the method ``name`` that its file defines."""
    classes = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Method))
    (found,) = (one for one in classes if getattr(one, "name", "") == name)
    return found
