"""Settings as typed frozen dataclasses, read from the command line in this one place (tyro)."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from kintsugi.train import checkpoint
from kintsugi.train.compiled import Compiling

T = TypeVar("T")
C = TypeVar("C", bound="TrainConfig")

Preset = Literal["demo", "small", "paper"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of every training run. Methods add their own fields and set their presets."""

    preset: Preset = "demo"
    """demo: minutes on two cores; small: tens of minutes on one GPU; paper: the paper's settings."""

    data: str = "scenes"
    """scenes, a folder of images, cifar10, stl10, voc2012, imagenet:PATH, or WebDataset shards: shards:FOLDER or
    shards:SET-{000..099}.tar (a path or a URL)."""
    scenes: int = 4096
    """Number of built-in scenes to render. They are rendered once and cached."""
    size: int = 64
    """Side of the training crops, px."""
    short_side: int = 0
    """Short side of the stored images, px; 0 = 1.5 times --size."""
    cache: Path | None = None
    """Folder for decoded images; default: $KINTSUGI_CACHE or ~/.cache/kintsugi."""
    cache_gb: float = 8.0
    """Largest decoded data set to keep on disk, GB; images of a larger one are decoded at each use."""
    device_gb: float = -1
    """Keep the decoded data set in GPU memory too if it takes at most this many GB there, with all images padded to the
    largest one; -1 = a quarter of the free GPU memory, 0 = never."""

    steps: int = 2000
    """Optimization steps."""
    batch: int = 64
    """Images per step, on all ranks together."""
    seed: int = 0
    """Seed of all random numbers."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU, and on a CPU with AMX or AVX512-BF16 if a short measurement at the start finds it
    faster for this network; else fp32. A resumed run keeps its precision."""
    channels_last: bool = True
    """Store activations as NHWC, in which convolutions are faster, on GPUs and CPUs."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    graph: bool = False
    """On a GPU: compile the networks with torch.compile into CUDA graphs, which start many kernels at once. Meant for
    networks with many short kernels, as for small images."""
    shard: bool = False
    """On several GPUs: each keeps only its share of weights, gradients and optimizer state, for networks that are too
    large otherwise."""
    deterministic: bool = False
    """On a GPU: train with algorithms that give the same bits in every run, which are slower, so that a stopped and
    resumed run ends as one that was never stopped. On a CPU this is always so."""

    runs: Path = Path("runs")
    """Folder in which each run makes its own folder, METHOD/DATE-TIME."""
    out: Path | None = None
    """This run's own folder, instead of a new one in --runs."""
    resume: bool = False
    """Continue the run in --out (default: the latest run) from its newest checkpoint, with its settings."""
    accept_changes: bool = False
    """With --resume: accept options that differ from the run's and so change what is trained."""

    log_every: int = 20
    """Steps between logged scalars."""
    show_every: int = 250
    """Steps between logged pictures."""
    eval_every: int = 500
    """Steps between evaluations on held-out images."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 3
    """Number of newest checkpoints to keep. The best one is kept in addition."""
    eval_images: int = 256
    """Number of held-out images in each evaluation."""

    def __post_init__(self) -> None:
        counts = "scenes size batch steps log_every show_every eval_every save_every keep eval_images".split()
        within(self, **dict.fromkeys(counts, 1))
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{_flag(name)} must be a number, not nan")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")
        if self.shard and self.compiling != "no":
            raise ValueError(f"--shard does not work with {_flag(self.compiling)}: leave one of them out")

    @property
    def compiling(self) -> Compiling:
        """How the networks are compiled; --graph includes --compile."""
        return "graph" if self.graph else "compile" if self.compile else "no"

    def logs(self, step: int) -> bool:
        """Whether scalars are logged after a step: every ``log_every`` steps, and after the last one."""
        return (step + 1) % self.log_every == 0 or step + 1 == self.steps


def within(settings: object, **ranges: float | tuple[float, float]) -> None:
    """Checks that settings are in their ranges: name of a setting -> least value allowed, or least and largest.

    Raises ValueError with one line for the first setting outside its range.
    """
    for name, allowed in ranges.items():
        least, most = allowed if isinstance(allowed, tuple) else (allowed, math.inf)
        value = getattr(settings, name)
        if not least <= value <= most:
            limits = f"at least {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
            raise ValueError(f"{_flag(name)} must be {limits}, not {value:g}")


# Options that may change at --resume, because they do not change what is trained.
_FREE_AT_RESUME = frozenset(
    "steps device shard runs out resume accept_changes cache cache_gb device_gb log_every show_every eval_every "
    "save_every keep eval_images".split()
)


def parse_training(method: str, presets: Mapping[Preset, Callable[[], C]], argv: Sequence[str] | None = None) -> C:
    """Reads the settings of a training run from the command line.

    Options that are not given have the values of the preset; with --resume, those in the run's checkpoint. Raises
    ValueError with one line for a mistake, if --resume finds no checkpoint, or if options would change what a resumed
    run trains and --accept-changes is not given.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    kind = type(presets["demo"]())
    resumed = _resumed_run(argv)
    if resumed is None:
        return parse_command(kind, argv, default=presets[_preset(argv)]())
    saved_from, content = checkpoint.read(resumed.out or resumed.runs / method / checkpoint.LATEST, method)
    before = from_plain(kind, content["config"])
    default = dataclasses.replace(before, out=saved_from.parent, accept_changes=False)
    now = parse_command(kind, argv, default=default)
    changed = [
        f"{_flag(f.name)} {getattr(before, f.name)} -> {getattr(now, f.name)}"
        for f in dataclasses.fields(now)
        if f.name not in _FREE_AT_RESUME and getattr(before, f.name) != getattr(now, f.name)
    ]
    if changed and not now.accept_changes:
        raise ValueError(
            f"--resume continues a run with its own settings, but these differ: {', '.join(changed)}; "
            "leave them out, start a new run without --resume, or add --accept-changes"
        )
    if changed and int(os.environ.get("RANK", 0)) == 0:
        print(f"note: the run continues with other settings: {', '.join(changed)}", file=sys.stderr)
    return now


def parse_command(config: type[T], argv: Sequence[str] | None = None, *, default: T | None = None) -> T:
    """Reads a dataclass of settings from the command line.

    default: the values of options that are not given; None = the dataclass's defaults. Raises ValueError with one line
    for a mistake; the message for an unknown option names the most similar one. ``--help`` prints the help and raises
    SystemExit.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    known = {*_flags(config), "--help", "-h"}
    _refuse_own_options_of_tyro(argv)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            value, unknown = tyro.cli(config, args=argv, default=default, return_unknown_args=True)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise ValueError(_one_line(message.getvalue())) from None
    if unknown:
        option = unknown[0].split("=")[0]
        near = difflib.get_close_matches(option.replace("_", "-"), sorted(known), n=1)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        raise ValueError(f"unknown option {option}: {hint}")
    return typing.cast(T, value)


def _refuse_own_options_of_tyro(argv: Sequence[str]) -> None:
    """Raises ValueError with one line for tyro's own options, which write files."""
    if any(word.startswith("--tyro-") for word in argv):
        raise ValueError("options that begin with --tyro- are not supported: see --help")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors that a user can fix into one line on stderr.

    The exit code is 2 for ValueError and OSError (bad input), 1 for FloatingPointError and ConnectionError (training
    failed), and 130 for Ctrl-C.
    """
    try:
        yield
    except BrokenPipeError:  # the program that reads our output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush does not fail
        raise SystemExit(1) from None
    except (FloatingPointError, ConnectionError) as error:
        _fail(str(error), 1)
    except (ValueError, OSError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:  # before training; the training loop handles signals itself
        _fail("stopped", 130)


def run_command(config: type[T], run: Callable[[T], int], argv: Sequence[str] | None = None) -> None:
    """Runs a command on a user's files. The exit code is 1 if any of them failed.

    run: does the work and returns how many files failed.
    """
    with user_errors():
        failed = run(parse_command(config, argv))
    sys.exit(1 if failed else 0)


def to_plain(config: Any) -> dict[str, Any]:
    """Converts a dataclass to a dict of numbers, strings and lists, which a checkpoint can hold (``weights_only``)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_plain(config: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of ``to_plain``. Raises ValueError for unknown fields, which come from another version."""
    hints = typing.get_type_hints(config)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"the checkpoint has settings this version does not know: {', '.join(unknown)}")

    def typed(name: str, value: Any) -> Any:
        kinds = {hints[name], *typing.get_args(hints[name])}
        if isinstance(value, str) and Path in kinds:
            return Path(value)
        return tuple(value) if isinstance(value, list) else value

    return config(**{name: typed(name, value) for name, value in values.items()})


def _resumed_run(argv: Sequence[str]) -> _ResumedRun | None:
    """The options that name the run to resume; None for a new run.

    Read before everything else, because options given with --resume must fit the run's own settings, not a preset's.
    """
    if not any(word.partition("=")[0] in ("--resume", "--no-resume") for word in argv):
        return None
    _refuse_own_options_of_tyro(argv)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        found, _ = tyro.cli(
            _ResumedRun, args=[word for word in argv if word not in ("-h", "--help")], return_unknown_args=True
        )
        return found if found.resume else None
    return None


@dataclass(frozen=True)
class _ResumedRun:
    """The options that name the run to resume."""

    runs: Path = Path("runs")
    out: Path | None = None
    resume: bool = False


def _preset(argv: Sequence[str]) -> Preset:
    """The preset that the command line names. Read before everything else, because it sets all defaults."""
    for i, word in enumerate(argv):
        value = word.partition("=")[2] if word.startswith("--preset=") else None
        if word == "--preset" and i + 1 < len(argv):
            value = argv[i + 1]
        for preset in typing.get_args(Preset):
            if value == preset:
                return preset
    return "demo"


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _flags(config: type) -> list[str]:
    """All options of a config, with their dashes.

    They are named like the fields, unless ``tyro.conf.arg(name=...)`` renames one (``in`` is a keyword of Python).
    """
    hints = typing.get_type_hints(config, include_extras=True)
    renamed = {
        field: note.name
        for field, hint in hints.items()
        for note in getattr(hint, "__metadata__", ())
        if getattr(note, "name", None)
    }
    return [_flag(renamed.get(f.name, f.name)) for f in dataclasses.fields(config)]


def _one_line(box: str) -> str:
    """The message in tyro's text about a mistake: a framed box with a title, the message, a line, and a hint.

    In an ASCII locale there is no frame, only a line below the title.
    """
    lines = [re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]|^ *-+ *$", "", line).strip() for line in box.splitlines()]
    message = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines[1:]))
    return re.sub(r"^Error parsing \w+: ", "", " ".join(message)) or "the command line could not be read: see --help"


def _fail(line: str, code: int) -> None:
    """Prints an error in one line to stderr, and ends the program with this exit code."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)
