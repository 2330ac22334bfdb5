"""Part ``smoke`` of ``make gpu``: three steps of every method at its smallest, with pictures, evaluation and resuming.

The command lines are those of the project's tests (``tests/helpers/tiny_runs.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial

import torch

from bench.gpu import forked
from bench.gpu.record import Place, Record
from bench.gpu.sets import tiny_folders, tiny_runs

MORE = {
    "simclr, CUDA graphs": ("simclr", "--graph"),
    "inpainting, CUDA graphs": ("inpainting", "--graph"),
    "simclr, compiled": ("simclr", "--compile"),
    "simclr, images not kept on the device": ("simclr", "--device-gb", "0"),
    "inpainting, spectral norm": ("inpainting", "--discriminator-norm", "spectral", "--gan", "hinge"),
}
"""Further cases: name -> method and options. Those that take longest are first."""
AT_ONCE = 8
TINY = ("inpainting",)


def run(place: Place, record: Record) -> None:
    folders = tiny_folders.make(place.work / "tiny-data")
    shutil.rmtree(place.work / "smoke", ignore_errors=True)
    cases = {**MORE, **{method: (method,) for method in tiny_runs.OPTIONS}}
    if place.tiny:
        cases = {name: cases[name] for name in TINY}
    arguments = {
        name: tiny_runs.arguments(method, folders) + list(more) + ["--out", str(place.work / "smoke" / str(number))]
        for number, (name, (method, *more)) in enumerate(cases.items())
    }
    jobs = {name: partial(train_and_resume, cases[name][0], words) for name, words in arguments.items()}
    outcomes = forked.run(jobs, place.work / "logs", record.left, at_once=1 if place.tiny else AT_ONCE)
    for name, outcome in outcomes.items():
        record.row("method", name, {"three steps and one more": outcome.status, "seconds": outcome.seconds})
        if not outcome.finished:
            record.note(f"{name}: {outcome.status}: {outcome.end.strip()}", failed=True)


def train_and_resume(method: str, words: Sequence[str]) -> None:
    """Three steps, then a fourth with --resume. words: the command line; its last word is the run's folder.

    Of options that are given twice the last counts.
    """
    main = tiny_runs.module_of(method).main
    on_gpu = ["--device", "cuda", "--precision", "bf16"] if torch.cuda.is_available() else []
    main([*words, *on_gpu, "--steps", "3"])
    main(["--resume", "--out", words[-1], "--steps", "4"])
