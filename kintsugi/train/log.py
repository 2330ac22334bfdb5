"""The output of a run for the user: a progress bar, TensorBoard, and lines on the terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


_PANELS = {"heldout": "held-out figures", "loss": "losses"}
_HEALTH = ("grad_norm", "weight_norm", "lr", "speed")


def panel(name: str) -> str:
    """The TensorBoard tag of a scalar. TensorBoard groups tags by the words before the first slash.

    The groups of scalars are: held-out figures, losses, training health (norms, learning rates, speed), and training,
    for everything else that a method logs.
    """
    group, _, rest = name.partition("/")
    if group in _PANELS:
        return f"{_PANELS[group]}/{rest}"
    if group in _HEALTH:
        return f"training health/{name}"
    return f"training/{rest if group == 'train' else name}"


class Log:
    """The progress bar and TensorBoard log of the main rank. On the other ranks all methods do nothing.

    Training does not depend on TensorBoard: if its files cannot be written, one warning is printed, and nothing more is
    logged there.
    """

    def __init__(self, folder: Path, title: str, steps: int, start: int, batch: int, *, main: bool) -> None:
        self.writer: SummaryWriter | None = None
        # Counted in images, so that tqdm shows images/s and the time left.
        self.bar = tqdm(
            total=steps * batch,
            initial=start * batch,
            unit="img",
            unit_scale=True,
            desc=title,
            disable=not main,
            dynamic_ncols=True,
            smoothing=0.1,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
        )
        self.folder, self.start, self.batch, self.main = folder, start, batch, main

    def __enter__(self) -> Log:
        self.previous_hook = threading.excepthook
        threading.excepthook = self._ignore_writer_errors
        if self.main:
            from torch.utils.tensorboard import SummaryWriter  # imported here: slow, and --help does not need it

            with self._writing():
                # purge_step hides what an interrupted run logged after the checkpoint from which this one continues.
                self.writer = SummaryWriter(str(self.folder), purge_step=self.start or None)
        return self

    def _ignore_writer_errors(self, args: threading.ExceptHookArgs) -> None:
        """Hides an OSError in the writer's thread; the next call of the writer raises it again."""
        if not issubclass(args.exc_type, OSError):
            self.previous_hook(args)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            with self._writing():
                self.writer.close()
        threading.excepthook = self.previous_hook
        self.bar.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A context that turns an OSError of the writer into a warning, and ends logging to TensorBoard then."""
        try:
            yield
        except OSError as error:  # the disk is full or the folder gone, for example
            self.writer = None
            self.print(
                f"warning: TensorBoard's files cannot be written ({error.strerror or error}): "
                "training goes on without them"
            )

    def step_done(self) -> None:
        """Advances the progress bar by one step."""
        self.bar.update(self.batch)

    def print(self, line: str) -> None:
        """Prints a line to stderr, above the progress bar."""
        if not self.bar.disable:
            self.bar.write(line, file=sys.stderr)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs scalars, grouped by ``panel``."""
        if self.writer is not None:
            with self._writing():
                for name, value in values.items():
                    self.writer.add_scalar(panel(name), value, step)

    def images(self, pictures: Mapping[str, Tensor], step: int) -> None:
        """Logs pictures (3,H,W) in [0,1], and writes them to disk at once, so that they can be seen without delay."""
        if self.writer is not None:
            with self._writing():
                for name, picture in pictures.items():
                    self.writer.add_image(f"pictures/{name}", picture.float().clamp(0, 1).cpu(), step)
                self.writer.flush()

    def embedding(self, features: Tensor, images: Tensor, labels: list[int] | None, step: int) -> None:
        """Logs features (n,D) for TensorBoard's projector.

        images: (n,3,S,S) in [0,1], the thumbnail of each. labels: the label of each; None if there are none.
        """
        if self.writer is not None:
            small = interpolate(images.float(), (32, 32), mode="bilinear", antialias=True).clamp(0, 1)
            with self._writing():
                self.writer.add_embedding(features.float().cpu(), labels, small.cpu(), step, "features")

    def settings(self, config: Mapping[str, object], figures: Mapping[str, float]) -> None:
        """Logs the run's settings with its final figures, for TensorBoard's HParams tab."""
        if self.writer is not None:
            plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in config.items()}
            with self._writing():
                self.writer.add_hparams(plain, {f"run summary/{k}": v for k, v in figures.items()}, run_name=".")


class Clock:
    """Measures steps per second of training alone, without pictures, evaluations and checkpoints."""

    def __init__(self, step: int) -> None:
        self.step, self.since = step, time.perf_counter()

    def rate(self, done: int) -> float:
        """Steps per second since the last call."""
        now = time.perf_counter()
        rate = (done - self.step) / (now - self.since)
        self.step, self.since = done, now
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        begun = time.perf_counter()
        yield
        self.since += time.perf_counter() - begun
