"""What all protocols of transfer share. A table has rows (weights), columns (a task under a protocol) and seeds; a cell
is one of each. Cells are run one by one, kept as soon as they are done, and not run again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import statistics
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from kintsugi.nets.encoder import Encoder
from kintsugi.nets.specs import build_spec
from kintsugi.rng import derive_seed
from kintsugi.train import checkpoint
from kintsugi.train.config import within
from kintsugi.train.dist import Device, pick_device

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every command of transfer can be told."""

    seeds: int = 3
    """How many times each cell is run; they set heads, orders, which labels are few, and random weights."""
    cache: Path | None = None
    """Where decoded images are kept; default $KINTSUGI_CACHE or ~/.cache/kintsugi."""
    device: Device = "auto"
    """auto: the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU, fp32 elsewhere. bf16 also pays on CPUs with AMX or AVX512-BF16."""

    def __post_init__(self) -> None:
        within(self, seeds=1)


@dataclass(frozen=True)
class Machine:
    """Where and how cells are computed."""

    device: torch.device
    bf16: bool

    @staticmethod
    def of(settings: RunSettings) -> Machine:
        place = pick_device(settings.device)
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and place.type == "cuda")
        return Machine(place, bf16)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def dtype(self) -> torch.dtype:
        """In which features are kept."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the CPU"
        return f"{name}{' in bf16' if self.bf16 else ''}"


# --- rows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Weights whose worth is measured: an encoder's spec and its state, or None for random weights, which a seed sets.

    ``base`` is the name of the row of random weights of the same network. ``seen``: images of pre-training.
    """

    name: str
    spec: Mapping[str, Any]
    state: Mapping[str, Tensor] | None = None
    base: str | None = None
    seen: int | None = None

    def encoder(self, seed: int) -> Encoder:
        """On the CPU."""
        torch.manual_seed(derive_seed(seed, 1))
        encoder = build_spec(dict(self.spec))
        if self.state is not None:
            encoder.load_state_dict(self.state)
        return encoder

    @functools.cached_property
    def digest(self) -> str:
        """Tells weights apart: cells of others are not reused."""
        found = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode())
        for name, value in sorted((self.state or {}).items()):
            found.update(name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


def saved_rows(ckpt: Path, roles: Sequence[str] = (), name: str = "") -> tuple[Path, list[Row]]:
    """A checkpoint's file and a row for each of its encoders of RGB; ``roles`` = none: all of them.

    Rows are called as the method, or ``name``, and a discriminator's by its role too.
    """
    file, content = checkpoint.read(ckpt)
    encoders = content["encoders"]
    of_rgb = [role for role, saved in encoders.items() if build_spec(saved["spec"]).planes == 3]
    if unknown := sorted(set(roles) - set(of_rgb)):
        raise ValueError(f"{file} has no {unknown[0]} that sees RGB alone: it has {', '.join(of_rgb)}")
    name = name or content["method"]
    seen = content["step"] * content["config"].get("batch", 0) or None
    return file, [
        Row(
            name if role != "discriminator" else f"{name}, {role}",
            encoders[role]["spec"],
            encoders[role]["state"],
            seen=seen,
        )
        for role in roles or of_rgb
    ]


def with_random(rows: Sequence[Row]) -> list[Row]:
    """The rows, each followed by random weights of its network; networks that several rows share, once."""
    bases: dict[str, str] = {}
    result: list[Row] = []
    for row in rows:
        known = json.dumps(row.spec, sort_keys=True)
        fresh = known not in bases
        if fresh:
            called = f"random init ({_network(row.spec)})"
            alike = sum(base.startswith(called[:-1]) for base in bases.values())
            bases[known] = called if called not in bases.values() else f"{called[:-1]}, net {alike + 1})"
        result.append(Row(row.name, row.spec, row.state, bases[known], row.seen))
        if fresh:
            result.append(Row(bases[known], row.spec))
    return result


def _network(spec: Mapping[str, Any]) -> str:
    """What a person calls the network of a spec."""
    if spec.get("kind") == "joined":
        return "two halves"
    inner = spec.get("backbone", spec)
    parts = [str(inner.get("name", inner.get("kind")))]
    parts += [str(spec["planes"])] if "planes" in spec else []
    parts += ["32-px stem"] if inner.get("stem") == "small" else []
    parts += [f"{inner['norm']} norm"] if inner.get("norm", "batch") != "batch" else []
    return ", ".join(parts)


@torch.no_grad()
def settle_statistics(encoder: Encoder, batches: Iterable[Tensor], machine: Machine) -> None:
    """Batch norms take the training images' statistics: random weights have none of their own, and a frozen encoder
    of pre-training has another data set's. Done for both alike. batches: some of the images, (n,3,H,W) in [0,1]."""
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        momentum = norms[0].momentum
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        encoder.train()
        for images in batches:
            with machine.autocast():
                encoder(images.to(machine.device))
        for norm in norms:
            norm.momentum = momentum
    encoder.eval()


def spaced(count: int, most: int) -> Tensor:
    """Up to ``most`` indices below ``count``, evenly spaced: neighbors are often frames of one film."""
    return torch.arange(min(count, most)) * count // min(count, most)


def warmed(step: int, steps: int) -> float:
    """Part of the highest learning rate: a tenth of the steps upwards, then down a cosine to 0."""
    warm = max(1, steps // 10)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


# --- tasks ----------------------------------------------------------------------------------------------------


class Subject:
    """A row under a task and a seed. What is computed of its frozen encoder is kept for all protocols and, of weights
    that no seed sets, for all seeds."""

    def __init__(self, row: Row, seed: int, machine: Machine) -> None:
        self.row, self.seed, self.machine = row, seed, machine
        self._kept: dict[object, object] = {}

    def encoder(self) -> Encoder:
        """A fresh one, on the device, which the caller may train."""
        encoder = self.row.encoder(self.seed)
        return encoder.to(self.machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def once(self, make: Callable[[Encoder], T]) -> T:
        """``make(encoder)``, computed at the first call."""
        if make not in self._kept:
            self._kept[make] = make(self.encoder())
        return cast(T, self._kept[make])


def named(data: str) -> str:
    """What a person calls the data of ``--data``."""
    return Path(data).expanduser().resolve().name


class Task(ABC):
    """A data set and what is asked of features there. A subclass opens its data in its constructor, where a user's
    mistakes are a ValueError of one line."""

    name: str
    """As in the table: the task and its data."""
    protocols: tuple[str, ...]

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """All on which figures depend beside weights and seed: cells of other settings are not reused."""

    @abstractmethod
    def cell(self, subject: Subject, protocol: str, seed: int) -> Cell:
        """Trains and measures one cell; must not change what ``subject.once`` keeps."""

    def pictures(self) -> Mapping[str, Tensor]:
        """Of what was predicted in the cells that were run: title -> (3,H,W) in [0,1]."""
        return {}


@dataclass
class Cell:
    """What came of a cell. ``figures``: column -> value in [0, 1], higher is better, the first the protocol's own;
    ``details``: other numbers of interest, in any unit; ``error``: why there are none."""

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


# --- running them ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a cell stands in the table."""

    task: str
    row: str
    protocol: str
    seed: int


class Store:
    """The finished cells of a folder, in ``cells.json``, written anew after each. Failed ones are not kept."""

    FILE: ClassVar[str] = "cells.json"

    def __init__(self, folder: Path) -> None:
        self.file = folder / self.FILE
        self.cells: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            try:
                self.cells = json.loads(self.file.read_text())
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{self.file} cannot be read ({type(error).__name__}): remove it, or name another folder with --out"
                ) from None

    @staticmethod
    def key(task: Task, row: Row, protocol: str, seed: int, machine: Machine) -> str:
        said = [task.name, dict(task.settings()), row.digest, protocol, seed, str(machine.device.type), machine.bf16]
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:24]

    def get(self, key: str) -> Cell | None:
        return Cell(**self.cells[key]["cell"]) if key in self.cells else None

    def put(self, key: str, place: Place, cell: Cell) -> None:
        self.cells[key] = {"place": asdict(place), "cell": asdict(cell)}
        part = self.file.with_name(f".{self.FILE}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(self.cells, indent=1) + "\n")
            part.replace(self.file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(f"could not write {self.file} ({error.strerror}): free some space") from None


Results = dict[Place, Cell]


def run(
    rows: Sequence[Row],
    tasks: Sequence[Task],
    seeds: int,
    folder: Path,
    machine: Machine,
    done: Callable[[Place, Cell], None] = lambda place, cell: None,
) -> Results:
    """All cells, those that are kept in ``folder`` from there. One that fails is reported and leaves its place empty.

    ``done`` hears of each cell in its turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store, results = Store(folder), Results()
    for task in tasks:
        for row in rows:
            fixed = Subject(row, 0, machine)
            for seed in range(seeds):
                subject = fixed if row.state is not None else Subject(row, seed, machine)
                for protocol in task.protocols:
                    place = Place(task.name, row.name, protocol, seed)
                    key = Store.key(task, row, protocol, seed, machine)
                    cell = store.get(key)
                    if cell is None:
                        cell = _attempt(task, subject, protocol, seed)
                        if not cell.error:
                            store.put(key, place, cell)
                        print(_line(place, cell), flush=True)
                    results[place] = cell
                    done(place, cell)
    return results


def _attempt(task: Task, subject: Subject, protocol: str, seed: int) -> Cell:
    started = time.perf_counter()
    try:
        cell = task.cell(subject, protocol, seed)
    except Exception as error:  # whatever it is, the other cells are worth having
        traceback.print_exc(file=sys.stderr)
        return Cell(error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    cell.seconds = round(time.perf_counter() - started, 2)
    return cell


def _line(place: Place, cell: Cell) -> str:
    said = ", ".join(f"{name} {100 * value:.1f}" for name, value in cell.figures.items()) or f"failed: {cell.error}"
    return f"{place.task} | {place.row} | {place.protocol} | seed {place.seed}: {said} ({cell.seconds:.1f} s)"


# --- figures over seeds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """Seed -> value, and that of random weights of the same network; what is said of them is in per cent."""

    values: Mapping[int, float]
    base: Mapping[int, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return 100 * statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float:
        return 100 * statistics.stdev(self.values.values()) if len(self.values) > 1 else 0.0

    @property
    def gains(self) -> list[float]:
        """Over random weights, of each seed that both have."""
        return [100 * (self.values[seed] - self.base[seed]) for seed in self.values if seed in self.base]

    @property
    def won(self) -> str:
        return f"{sum(gain > 0 for gain in self.gains)}/{len(self.gains)}"


Column = tuple[str, str]
"""A task and a figure of one of its protocols."""


def figures(results: Results, rows: Sequence[Row]) -> dict[str, dict[Column, Figure]]:
    """Row -> column -> figure, in the order in which they came."""
    base = {row.name: row.base or "" for row in rows}
    values: dict[str, dict[Column, dict[int, float]]] = {row.name: {} for row in rows}
    for place, cell in results.items():
        for name, value in cell.figures.items():
            values[place.row].setdefault((place.task, name), {})[place.seed] = value
    return {
        row: {column: Figure(found, values.get(base[row], {}).get(column, {})) for column, found in columns.items()}
        for row, columns in values.items()
    }
