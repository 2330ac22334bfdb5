"""The smallest run of every method that goes through all that a run does, as a person would give it on the command
line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers.command_line import ROOT
from kintsugi.catalog import METHODS, Program
from kintsugi.train.command import method_in
from kintsugi.train.method import Method

EVERY = (
    "--batch 4 --steps 4 --log-every 1 --show-every 2 --eval-every 2 --save-every 2 --eval-images 4 --device cpu "
    "--precision fp32"
)
_CLUSTERS = "--encoder alexnet --size 32 --short-side 48"
_CLIPS = "--encoder alexnet --size 32 --short-side 36 --tuples 50 --dim 16"

# Method -> its own options, and which of the fixtures' folders it is trained on.
OPTIONS: dict[str, tuple[str, str]] = {
    "inpainting": ("--encoder alexnet --size 64 --adversarial-start 2 --lpips off", "photos"),
    "mender": ("--width 4 --blocks 1 --size 64 --adversarial-start 2 --content-weights off --lpips off", "photos"),
    "colorization": ("--encoder alexnet --size 64 --hints", "photos"),
    "superresolution": ("--blocks 1 --width 8 --size 64 --adversarial-start 2 --content-weights off", "photos"),
    "splitbrain": ("--size 64", "photos"),
    "splitbrain-hha": ("--size 64 --short-side 72 --scenes 24", "scenes"),
    "mae": ("--size 32 --short-side 48 --encoder test_vit --decoder-width 32", "photos"),
    "spark": ("--size 64 --decoder-width 64 --optimizer lamb", "photos"),
    "synthetic": ("--size 64 --short-side 72 --scenes 24 --pool 6", "scenes"),
    "cpc": ("--size 32 --short-side 48 --patch 8 --dim 16", "photos"),
    "simclr": ("--size 32 --short-side 48 --optimizer lars", "photos"),
    "moco": ("--size 32 --short-side 48 --queue 10 --symmetric", "photos"),
    "byol": ("--size 32 --short-side 48 --hidden 16 --dim 8", "photos"),
    "dino": ("--size 32 --short-side 48 --local-crops 2 --outputs 16 --hidden 16 --bottleneck 8 --frozen 1", "photos"),
    "lejepa": ("--size 32 --short-side 48 --local-crops 2 --directions 16 --hidden 16 --dim 8", "photos"),
    "distill": ("--size 32 --short-side 48 --teacher-size 64 --strength 0.5", "photos"),
    "rotation": ("--size 32 --short-side 40", "photos"),
    "jigsaw": ("--size 48 --short-side 48 --tile 12 --permutations 4 --dim 8 --hidden 16", "photos"),
    "context": ("--size 48 --short-side 48 --patch 12 --gap 5 --jitter 1 --dim 8 --hidden 16", "photos"),
    "deepcluster": (f"{_CLUSTERS} --clusters 4 --components 6 --every 3 --strength 1", "photos"),
    "sela": (f"{_CLUSTERS} --clusters 4 --heads 2 --labelings 4", "photos"),
    "cliquecnn": (f"{_CLUSTERS} --cliques 4 --members 3 --group 2 --components 6 --rounds 2", "photos"),
    "frame-order": (f"{_CLIPS} --tau-max 3 --tau-min 1", "clips"),
    "odd-one-out": (f"{_CLIPS} --length 4 --within 5 --window 6 --encoding stack --fusion differences", "clips"),
    "supervised": ("--size 32 --short-side 40 --warmup 2", "labeled"),
}
TEACHER = str(ROOT / "weights/splitbrain.safetensors")
"""The weights that ship are the smallest teacher that a user may have, too."""
PROGRAMS: dict[str, Program] = {program.name: program for program in METHODS}


def module_of(method: str) -> ModuleType:
    """The file of a method."""
    return import_module(PROGRAMS[method].module)


def class_of(method: str) -> type[Method[Any]]:
    """The ``Method`` that a method's file defines."""
    return method_in(module_of(method), method)


def arguments(method: str, folders: dict[str, Path]) -> list[str]:
    """The command line of the smallest run; folders: ``photos``, ``clips`` and ``labeled``."""
    options, data = OPTIONS[method]
    words = [*options.split(), *EVERY.split()]
    if data != "scenes":
        words += ["--data", str(folders[data])]
    if "REAL" in PROGRAMS[method].takes:
        words += ["--real", str(folders["photos"])]
    if "TEACHER" in PROGRAMS[method].takes:
        words += ["--teacher", TEACHER]
    return words
