"""What a person sees of a run: a progress bar, TensorBoard, and one line for each thing worth saying."""

from __future__ import annotations

import contextlib
import sys
import threading
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
    """The TensorBoard tag of a scalar. TensorBoard groups tags by what stands before the first slash: held-out figures,
    losses, pictures, training (what a method logs besides), training health (norms, learning rates, speed)."""
    group, _, rest = name.partition("/")
    if group in _PANELS:
        return f"{_PANELS[group]}/{rest}"
    if group in _HEALTH:
        return f"training health/{name}"
    return f"training/{rest if group == 'train' else name}"


class Log:
    """Progress bar and TensorBoard of the main rank; the other ranks' calls do nothing.

    Training does not depend on TensorBoard: where its files can no longer be written, that is said once, and the calls
    do nothing from then on.
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
        self.report = threading.excepthook
        threading.excepthook = self._report
        if self.main:
            from torch.utils.tensorboard import SummaryWriter  # here: --help need not wait for it

            with self._writing():
                # purge_step hides what an interrupted run had logged past the checkpoint it continues from.
                self.writer = SummaryWriter(str(self.folder), purge_step=self.start or None)
        return self

    def _report(self, args: threading.ExceptHookArgs) -> None:
        """Of an OSError in the writer's thread nothing is printed there, because it is raised in the next call."""
        if not issubclass(args.exc_type, OSError):
            self.report(args)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            with self._writing():
                self.writer.close()
        threading.excepthook = self.report
        self.bar.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # the disk is full, say, or the folder gone
            self.writer = None
            self.say(
                f"warning: TensorBoard's files cannot be written ({error.strerror or error}): "
                "training goes on without them"
            )

    def stepped(self) -> None:
        self.bar.update(self.batch)

    def say(self, line: str) -> None:
        if not self.bar.disable:
            self.bar.write(line, file=sys.stderr)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if self.writer is not None:
            with self._writing():
                for name, value in values.items():
                    self.writer.add_scalar(panel(name), value, step)

    def images(self, pictures: Mapping[str, Tensor], step: int) -> None:
        """Pictures (3,H,W) in [0,1]; flushed at once, so that a person waiting for the first one sees it."""
        if self.writer is not None:
            with self._writing():
                for name, picture in pictures.items():
                    self.writer.add_image(f"pictures/{name}", picture.float().clamp(0, 1).cpu(), step)
                self.writer.flush()

    def embedding(self, features: Tensor, images: Tensor, labels: list[int] | None, step: int) -> None:
        """Features (n,D) for the projector, each with its image (n,3,S,S) as a thumbnail and its label."""
        if self.writer is not None:
            small = interpolate(images.float(), (32, 32), mode="bilinear", antialias=True).clamp(0, 1)
            with self._writing():
                self.writer.add_embedding(features.float().cpu(), labels, small.cpu(), step, "features")

    def settings(self, config: Mapping[str, object], figures: Mapping[str, float]) -> None:
        """The run's settings beside its final figures, in TensorBoard's HParams tab."""
        if self.writer is not None:
            plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in config.items()}
            with self._writing():
                self.writer.add_hparams(plain, {f"final/{k}": v for k, v in figures.items()}, run_name=".")
