"""The training loop: steps, logging, pictures, evaluations, checkpoints and signals.

What one step does is up to the method.
"""

from __future__ import annotations

import math
import signal
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from kintsugi import table
from kintsugi.data.loader import Loader, resident
from kintsugi.rng import derive_seed
from kintsugi.train import bf16, checkpoint, feature_quality, sharding
from kintsugi.train.ahead import inputs_ahead
from kintsugi.train.compiled import begin_step, uncompiled
from kintsugi.train.compute import deterministic
from kintsugi.train.config import TrainConfig, to_plain
from kintsugi.train.dist import World, open_world
from kintsugi.train.encoder_options import EncoderConfig
from kintsugi.train.log import Clock, Log
from kintsugi.train.method import Batch, C, Data, Method
from kintsugi.train.run_folder import open_folder, point_latest, resume

SHOWN = 8  # held-out images in each picture
_STOP_POLL = 10  # with several ranks: steps between checks whether to stop; each check costs a message


def train(method_class: type[Method[C]], config: C) -> Path:
    """Trains a method up to step ``config.steps`` and returns the run's folder, on every rank.

    On a CPU, and on a GPU with --deterministic, a resumed run ends with the weights of one that was never stopped, bit
    for bit: data order, crops, masks and dropout are functions of (seed, step), and everything else that training
    changes is in the checkpoint.

    Raises FloatingPointError if a scalar or a weight is not finite; SystemExit (130 or 143) after saving, on SIGINT or
    SIGTERM; ValueError or OSError with one line for errors that the user can fix.
    """
    if config.shard and not method_class.shardable:
        raise ValueError(f"--shard does not work with {method_class.name}: leave it out")
    with open_world(config.device, config.precision, config.batch) as world:
        if config.graph and world.device.type != "cuda":
            raise ValueError("--graph needs a GPU: leave it out")
        return _train(method_class, config, world)


def _train(method_class: type[Method[C]], config: C, world: World) -> Path:
    """As ``train``. The networks are freed at its end, before the process group."""
    folder = open_folder(method_class.name, config, world)  # first, because this check is the cheapest one
    with world.main_first():
        data = method_class.open_data(config, not world.is_main)
    method = prepared(method_class, config, world, data)
    config = replace(config, precision=world.precision)  # in the checkpoints, so that a resumed run keeps it
    start, best = resume(folder, config, method, world) if config.resume else (0, -math.inf)
    title = method.name if start == 0 else f"{method.name} from step {start}"
    with Log(folder, title, config.steps, start, config.batch, main=world.is_main) as log, _Signals() as signals:
        _Loop(config, method, world, data, folder, log, best).run(start, signals)
    return folder


def prepared(method_class: type[Method[C]], config: C, world: World, data: Data) -> Method[C]:
    """A method with fresh weights from the seed, on the device, which has taken the training data."""
    torch.manual_seed(derive_seed(config.seed))
    method = method_class.build(config, world, data)
    _choose_precision(method, config, world)
    method.to(world.device)  # its own buffers too
    sharded = config.shard and world.size > 1
    # Sharded weights cannot be stored as NHWC.
    world.place(method.children(), channels_last=config.channels_last and not sharded, compiling=config.compiling)
    if sharded:
        sharding.shard(method, method.optimizers.values(), world)
    method.on_train_data(data.train)
    return method


def _choose_precision(method: Method[C], config: C, world: World) -> None:
    """Lets the main rank measure for ``--precision auto`` which precision is faster, and says so in one line.

    The encoder of the method is measured, the first one if it has several. A resumed run keeps its precision; one that
    was saved as ``auto`` is from a version without this measurement.
    """
    encoders = list(method.encoders().values())
    if config.resume or not encoders:
        return
    side = config.encoder_side if isinstance(config, EncoderConfig) else config.size
    line = bf16.choose(world, config.precision, encoders[0], side) if world.is_main else ""
    world.bf16 = world.from_main(world.precision) == "bf16"
    if line:
        print(line, file=sys.stderr)


class _Loop:
    """One run: its steps, and everything that is done between them."""

    def __init__(
        self, config: TrainConfig, method: Method, world: World, data: Data, folder: Path, log: Log, best: float
    ) -> None:
        self.config, self.method, self.world = config, method, world
        self.data, self.folder, self.log = data, folder, log
        self.pending: list[tuple[int, dict[str, Tensor]]] = []  # steps whose scalars are still on the device
        self.values: dict[str, list[float]] = {}  # scalars that were read but not logged yet
        self.weight_norms: dict[str, float] = {}  # after the last step that was checked
        self.own_figures: dict[str, float] = {}  # what ``method.evaluate`` returned; ``figures`` has more
        self.figures: dict[str, float] = {}
        self.best = best

    def run(self, start: int, signals: _Signals) -> None:
        """Trains from step ``start`` to the last one, or until a signal arrives."""
        config, world, steps = self.config, self.world, self.config.steps
        milestones, how = self.method.milestones(), config.compiling
        if start == 0:
            with uncompiled(how):
                self._show(0)
        images = resident(self.data.train, world.device, config.device_gb)
        loader = Loader(images, config.batch, config.seed, world.rank, world.size, world.device)
        clock, wanted = Clock(start), deterministic(config.deterministic)
        with loader.iterate(start) as batches:
            for step, inputs in inputs_ahead(wanted(self.method.inputs), batches, range(start, steps), world.device):
                if step in milestones:
                    self._save(step, f"{milestones[step]}.pt")
                torch.manual_seed(derive_seed(config.seed, step, world.rank))  # dropout and the like
                begin_step(how)
                self.pending.append((step, wanted(self.method.update)(inputs, step)))
                self.log.step_done()
                done = step + 1
                last = done == steps
                if config.logs(step):
                    self._log(done, clock)
                with clock.paused(), uncompiled(how):
                    if last or done % config.show_every == 0:
                        self._show(done)
                    if last or done % config.eval_every == 0:
                        self._evaluate(done)
                    if last or done % config.save_every == 0:
                        self._save(done, f"step-{done:08d}.pt")
                polled = world.size == 1 or done % _STOP_POLL == 0
                if polled and not last and world.any(signals.caught is not None):
                    self._save(done, f"step-{done:08d}.pt")
                    self.log.print(f"stopped at step {done} and saved: continue with --resume --out {self.folder}")
                    raise SystemExit(128 + (signals.caught or signal.SIGTERM))
        self.log.settings(to_plain(config), self.figures)
        with uncompiled(how):
            self._conclude()

    def _log(self, done: int, clock: Clock) -> None:
        """Logs the means of all scalars since the last time, with speed, norms of weights and learning rates.

        Of figures that a method returns only at logged steps, the mean is that of this step.
        """
        self._check_steps(done)
        means = {name: statistics.fmean(values) for name, values in self.values.items()}
        self.values.clear()
        means["speed/images_per_second"] = clock.rate(done) * self.config.batch
        means |= self.weight_norms
        for name, optimizer in self.method.optimizers.items():
            means[f"lr/{name}"] = optimizer.param_groups[0]["lr"]
        self.log.scalars(means, done)
        for warning in self.method.warnings(means):
            self.log.print(f"warning: step {done}: {warning}")

    def _show(self, done: int) -> None:
        """Logs the method's pictures of the first held-out images."""
        if self.world.evaluates:
            batch = self._heldout(0, min(SHOWN, len(self.data.heldout)))
            self.log.images(self.method.show(batch), done)

    def _evaluate(self, done: int) -> None:
        """Evaluates after ``done`` steps. Saves best.pt if the score is the best so far."""
        self._check_steps(done)
        if not self.world.evaluates:
            return
        self.figures = self.method.evaluate(self._heldout_batches())
        self.own_figures = dict(self.figures)
        self.figures |= feature_quality.quality(self.method, self._heldout_batches(), self.figures)
        self.log.scalars({f"heldout/{name}": value for name, value in self.figures.items()}, done)
        self.log.print(f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items()))
        score = self.figures[self.method.score]
        better = score > self.best
        if self.world.sharded:  # all write together, so the first rank decides
            better = self.world.any(better and self.world.is_main)
        if better:
            self.best = score
            self._write(done, "best.pt")

    def _heldout_batches(self) -> Iterator[Batch]:
        """The held-out images for evaluation, in batches of up to 64."""
        count = min(self.config.eval_images, len(self.data.heldout))
        for first in range(0, count, 64):
            yield self._heldout(first, min(first + 64, count))

    def _conclude(self) -> None:
        """Writes and prints a table with the figures of the method and of its baselines.

        Then logs features for TensorBoard's projector.
        """
        if not self.world.evaluates:
            return
        rows = self.method.baselines(self._heldout_batches())
        rows = feature_quality.baselines(self.method, self._heldout_batches(), rows, self.own_figures)
        if rows and self.world.is_main:
            rows = {**rows, self.method.name: self.figures}
            table.write(rows, self.folder, "quality", "held-out images")
            print(table.markdown(rows, "held-out images"))
        self._embed()

    def _embed(self) -> None:
        """Logs the features of the held-out images for TensorBoard's projector, if the method has any."""
        features, images, labels = [], [], []
        for batch in self._heldout_batches():
            found = self.method.embed(batch)
            if found is None:
                return
            features.append(found[0])
            images.append(found[1])
            labels += batch["label"].tolist() if "label" in batch else []
        self.log.embedding(torch.cat(features), torch.cat(images), labels or None, self.config.steps)

    def _heldout(self, first: int, last: int) -> Batch:
        """The held-out images from ``first`` up to ``last``, exclusive, on the device."""
        batch = self.data.heldout.batch(torch.arange(first, last))
        return {name: value.to(self.world.device) for name, value in batch.items()}

    def _save(self, done: int, name: str) -> None:
        """Saves a checkpoint, unless a scalar or a weight is not finite, and deletes old ones."""
        self._check_steps(done)
        if self.world.evaluates:
            self._write(done, name)
        if self.world.is_main:
            checkpoint.prune(self.folder, self.config.keep)

    def _write(self, done: int, name: str) -> None:
        """Writes a checkpoint after ``done`` steps. Unless --out is given, makes ``latest`` point to this run."""
        state = self.method.training_state()
        encoders = self.method.encoders()
        weights = {role: encoder.state_dict() for role, encoder in encoders.items()}
        if self.world.sharded:
            state = sharding.gathered(state, keep=self.world.is_main)
            names = {module: name for name, module in self.method.named_modules()}
            for role, encoder in encoders.items():  # the gathered tensors: the file holds them once
                weights[role] = checkpoint.weights_of({"state": state}, names[encoder])
            if not self.world.is_main:
                return
        checkpoint.save(
            self.folder / name,
            {
                "method": self.method.name,
                "config": to_plain(self.config),
                "step": done,
                "score": self.best,
                "ranks": self.world.size,
                "state": state,
                "encoders": {r: {"spec": each.spec.plain(), "state": weights[r]} for r, each in encoders.items()},
            },
        )
        if not self.config.out:
            # Only now, because a run that fails before its first checkpoint must not hide the run before it.
            point_latest(self.folder)

    def _check_steps(self, done: int) -> None:
        """Reads the scalars of the last steps, and the norms of the weights after ``done`` steps, unless they are read.

        Raises FloatingPointError if one is not finite. The norms show a gradient that is not finite, of a finite loss,
        even if its step is not logged.
        """
        if self.weight_norms and not self.pending:
            return
        self._read_pending()
        self.weight_norms = {
            f"weight_norm/{name}": sharding.whole(nn.utils.get_total_norm(list(net.parameters()))).item()
            for name, net in self.method.named_children()
        }
        for name, norm in self.weight_norms.items():
            self._check(done - 1, name, norm)

    def _read_pending(self) -> None:
        """Reads the scalars of the last steps from the device and averages them over the ranks.

        They are read together, because each read waits for the device. Raises FloatingPointError if one is not finite.
        """
        if not self.pending:
            return
        keys = [(step, name) for step, scalars in self.pending for name in scalars]
        flat = torch.stack([value.detach().float() for _, scalars in self.pending for value in scalars.values()])
        self.pending.clear()
        for (step, name), value in zip(keys, self.world.mean(flat).tolist(), strict=True):
            self._check(step, name, value)
            self.values.setdefault(name, []).append(value)

    def _check(self, step: int, name: str, value: float) -> None:
        """Raises FloatingPointError if a value of a step is not finite."""
        if not math.isfinite(value):
            kept = checkpoint.newest(self.folder)
            good = f"the last good checkpoint is {kept[0]}" if kept else "there was no checkpoint yet"
            raise FloatingPointError(
                f"step {step}: {name} is {value}; training stopped, {good}: "
                "try a lower learning rate, or --precision fp32"
            )


class _Signals:
    """Remembers the first SIGINT or SIGTERM, which the loop handles after the current step.

    A second one ends the process at once.
    """

    kinds = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.caught: int | None = None

    def __enter__(self) -> _Signals:
        self.before = {kind: signal.signal(kind, self._note) for kind in self.kinds}
        return self

    def _note(self, kind: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            print("stopped at once, without saving: --resume continues from the last checkpoint", file=sys.stderr)
            raise SystemExit(128 + kind)
        self.caught = kind

    def __exit__(self, *exception: object) -> None:
        for kind, handler in self.before.items():
            signal.signal(kind, handler)
