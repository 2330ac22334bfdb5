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

T = TypeVar("T")
C = TypeVar("C", bound="TrainConfig")

Preset = Literal["demo", "small", "paper"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training run can be told. Methods add their own fields and set their presets."""

    preset: Preset = "demo"
    """demo: minutes on two cores; small: one GPU, tens of minutes; paper: the paper's own recipe."""

    data: str = "scenes"
    """scenes, a folder of images, cifar10, stl10, voc2012, imagenet:PATH, or webdataset's shards:SET-{000..099}.tar (a
    path or a URL) and shards:FOLDER."""
    scenes: int = 4096
    """How many built-in scenes to render (once; they are cached)."""
    size: int = 64
    """Side of the training crops, px."""
    short_side: int = 0
    """Short side to which images are stored, px; 0 = 1.5 times --size."""
    cache: Path | None = None
    """Where decoded images are kept; default $KINTSUGI_CACHE or ~/.cache/kintsugi."""
    cache_gb: float = 8.0
    """Largest decoded data set to keep on disk; beyond it images are decoded at each use."""
    device_gb: float = -1
    """Largest decoded data set to keep on the GPU as well, padded to its largest image; -1 = a quarter of the GPU's
    free memory, 0 = none."""

    steps: int = 2000
    """Optimization steps."""
    batch: int = 64
    """Images per step, over all ranks together."""
    seed: int = 0
    """Everything random follows from it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU, fp32 elsewhere. bf16 also pays on CPUs with AMX."""
    channels_last: bool = True
    """Keep activations as NHWC, which convolutions like on GPU and CPU."""
    compile: bool = False
    """torch.compile the networks."""

    runs: Path = Path("runs")
    """Folder under which METHOD/DATE-TIME is made for each run."""
    out: Path | None = None
    """This run's own folder, instead of a new one under --runs."""
    resume: bool = False
    """Go on from the newest checkpoint of --out (default: of the latest run), with its settings."""
    accept_changes: bool = False
    """With --resume: take options that differ from the run's own, though they change what is trained."""

    log_every: int = 20
    """Steps between scalars."""
    show_every: int = 250
    """Steps between pictures."""
    eval_every: int = 500
    """Steps between held-out measurements."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 3
    """How many of the newest checkpoints to keep (the best is kept besides)."""
    eval_images: int = 256
    """Held-out images measured at each --eval-every."""

    def __post_init__(self) -> None:
        counts = "scenes size batch steps log_every show_every eval_every save_every keep eval_images".split()
        within(self, **dict.fromkeys(counts, 1))
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{_flag(name)} must be a number, not nan")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")


def within(settings: object, **ranges: float | tuple[float, float]) -> None:
    """ValueError of one line for the first setting below its least value, or outside its two ends, which are in."""
    for name, allowed in ranges.items():
        least, most = allowed if isinstance(allowed, tuple) else (allowed, math.inf)
        value = getattr(settings, name)
        if not least <= value <= most:
            limits = f"at least {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
            raise ValueError(f"{_flag(name)} must be {limits}, not {value:g}")


# What may differ between a run and its continuation without changing what is trained.
_FREE_AT_RESUME = frozenset(
    "steps device runs out resume accept_changes cache cache_gb device_gb log_every show_every eval_every save_every "
    "keep eval_images".split()
)


def parse_training(method: str, presets: Mapping[Preset, Callable[[], C]], argv: Sequence[str] | None = None) -> C:
    """The settings of a training run: preset, then the checkpoint's at --resume, then the command line's.

    Raises ValueError where --resume finds nothing or would silently change what is trained.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    kind = type(presets["demo"]())
    where = _resumed(argv)
    if where is None:
        return parse_command(kind, argv, default=presets[_preset(argv)]())
    saved_from, content = checkpoint.read(where.out or where.runs / method / checkpoint.LATEST, method)
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
        print(f"note: the run goes on with other settings: {', '.join(changed)}", file=sys.stderr)
    return now


def parse_command(config: type[T], argv: Sequence[str] | None = None, *, default: T | None = None) -> T:
    """Reads ``config`` from the command line. A mistake is a ValueError of one line, naming the nearest option."""
    argv = list(sys.argv[1:] if argv is None else argv)
    known = {*_flags(config), "--help", "-h"}
    if any(word.startswith("--tyro-") for word in argv):  # tyro's own options, which write files
        raise ValueError("options that begin with --tyro- are not for use here: see --help")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            value, unknown = tyro.cli(config, args=argv, default=default, return_unknown_args=True)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise ValueError(_one_line(said.getvalue())) from None
    if unknown:
        option = unknown[0].split("=")[0]
        near = difflib.get_close_matches(option.replace("_", "-"), sorted(known), n=1)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        raise ValueError(f"unknown option {option}: {hint}")
    return typing.cast(T, value)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns what a user can mend into one line on stderr: exit code 2, or 1 where training itself broke down."""
    try:
        yield
    except (FloatingPointError, ConnectionError) as error:
        _fail(str(error), 1)
    except (ValueError, OSError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:  # before training, which has its own way of stopping
        _fail("stopped", 130)


def run_command(config: type[T], run: Callable[[T], int], argv: Sequence[str] | None = None) -> None:
    """A command on a person's files: ends with code 1 where ``run`` returns that some have failed."""
    with user_errors():
        failed = run(parse_command(config, argv))
    sys.exit(1 if failed else 0)


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass as numbers, strings and lists, fit for a checkpoint that loads with weights_only."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_plain(config: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of ``to_plain``; unknown fields (of another version) are a ValueError."""
    hints = typing.get_type_hints(config)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"the checkpoint has settings this version does not know: {', '.join(unknown)}")

    def typed(name: str, value: Any) -> Any:
        kinds = {hints[name], *typing.get_args(hints[name])}
        if isinstance(value, str) and Path in kinds:
            return Path(value)
        return tuple(value) if isinstance(value, list) else value

    return config(**{name: typed(name, value) for name, value in values.items()})


def _resumed(argv: Sequence[str]) -> _Run | None:
    """What is said of the run to go on with; None where a new one is asked for.

    Read before everything else: options given with --resume are to fit the run's own settings, not a preset's.
    """
    if not any(word.partition("=")[0] in ("--resume", "--no-resume") for word in argv):
        return None
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        found, _ = tyro.cli(
            _Run, args=[word for word in argv if word not in ("-h", "--help")], return_unknown_args=True
        )
        return found if found.resume else None
    return None


@dataclass(frozen=True)
class _Run:
    runs: Path = Path("runs")
    out: Path | None = None
    resume: bool = False


def _preset(argv: Sequence[str]) -> Preset:
    """The preset is read before everything else, because it sets every other default."""
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
    """A field's option is called like it, unless ``tyro.conf.arg(name=...)`` says otherwise (``in`` is a keyword)."""
    hints = typing.get_type_hints(config, include_extras=True)
    renamed = {
        field: note.name
        for field, hint in hints.items()
        for note in getattr(hint, "__metadata__", ())
        if getattr(note, "name", None)
    }
    return [_flag(renamed.get(f.name, f.name)) for f in dataclasses.fields(config)]


def _one_line(box: str) -> str:
    """tyro explains a mistake in a framed box: title, message, rule, help. Only the message is kept.

    Where the locale is ASCII, there is no frame, and a rule below the title too.
    """
    lines = [re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]|^ *-+ *$", "", line).strip() for line in box.splitlines()]
    message = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines[1:]))
    return " ".join(message) or "the command line could not be read: see --help"


def _fail(line: str, code: int) -> None:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)
