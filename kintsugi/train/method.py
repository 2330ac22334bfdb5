"""The contract between a method and the training loop.

The method defines its networks, its optimizers and one update. The loop decides when to update, log, evaluate and save.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from kintsugi.data.loader import Indexed
from kintsugi.nets.encoder import Encoder
from kintsugi.train import optim, sharding
from kintsugi.train.config import TrainConfig
from kintsugi.train.dist import World
from kintsugi.train.encoder_options import EncoderConfig
from kintsugi.train.opening import open_data

Batch = Mapping[str, Tensor]
C = TypeVar("C", bound=TrainConfig)


class Data(Protocol):
    """Training samples and held-out samples: a ``Split`` of images, or a data set that holds more than images."""

    @property
    def train(self) -> Indexed: ...

    @property
    def heldout(self) -> Indexed: ...


class Method(nn.Module, ABC, Generic[C]):
    """Base class of every method, generic in its config.

    The constructor creates the networks as submodules, on the CPU, and fills ``optimizers``. Everything that training
    changes must be in ``state_dict`` (submodules, buffers, ``get_extra_state``) or in the optimizers. A module that is
    neither trained nor saved, such as LPIPS, must not be in ``state_dict``: keep a function that calls it, instead of
    the module.
    """

    name: ClassVar[str]
    score: ClassVar[str]
    """Name of the figure in ``evaluate`` that selects the best checkpoint; higher is better."""
    next_program: ClassVar[str] = "eval segmentation"
    """The program to suggest after a run, by its words in the catalog."""
    shardable: ClassVar[bool] = False
    """Whether it takes --shard: ``update`` has one backward pass, and computes by calling its networks as functions."""

    def __init__(self, config: C, world: World) -> None:
        super().__init__()
        self.config, self.world = config, world
        self.optimizers: dict[str, Optimizer] = {}

    # --- before training --------------------------------------------------------------------------------------

    @classmethod
    def check(cls, config: C) -> None:
        """Raises ValueError with one line for settings that cannot work. Called before anything is written.

        By default checks the encoder. A method that overrides it calls this one too.
        """
        if isinstance(config, EncoderConfig):
            config.check_encoder()

    @classmethod
    def open_data(cls, config: C, quiet: bool = False) -> Data:
        """Opens the data for training and evaluation; by default the images that ``config.data`` names."""
        return open_data(config, quiet)

    @classmethod
    def build(cls, config: C, world: World, data: Data) -> Method[C]:
        """Makes the method with fresh weights, on the CPU. Some methods need ``data`` for this, such as its classes."""
        return cls(config, world)

    def on_train_data(self, data: Indexed) -> None:
        """Takes the training data. For methods that read all of it between steps, for example to cluster it.

        Called once, after the networks are moved to the device and before a checkpoint is loaded.
        """

    # --- training ---------------------------------------------------------------------------------------------

    def inputs(self, batch: Batch, step: int) -> Batch:
        """What ``update`` computes from, on the device: random crops, for example. By default the batch itself.

        They depend on the batch, the seed and ``step``, but on nothing that training changes, because on a GPU they are
        computed while the step before trains (``kintsugi.train.ahead``). Random numbers are drawn as in ``update``.
        """
        return batch

    @abstractmethod
    def update(self, inputs: Batch, step: int) -> dict[str, Tensor]:
        """One optimization step of all networks, on this rank's share of the batch. Returns 0-d tensors to log.

        inputs: what ``self.inputs`` made of the batch. Losses are returned at every step, and their means are logged.
        Figures that cost much, and are only logged, are returned only if ``config.logs(step)``. A returned value that
        is not finite stops the run. Random numbers must come from ``kintsugi.rng.generator(seed, step, ...)``, and must
        be drawn for the global batch.
        """

    def take_step(self, name: str, step: int, clip: float = math.inf) -> dict[str, Tensor]:
        """Takes the step of an optimizer (``optim.take_step``). Returns the gradients' norm if ``step`` is logged."""
        optimizer = self.optimizers[name]
        norm = {f"grad_norm/{name}": optim.gradient_norm(optimizer)} if self.config.logs(step) else {}
        optim.take_step(optimizer, clip)
        return norm

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        """Warnings, one line each, about the means that were logged, for example if the discriminator has collapsed."""
        return []

    def milestones(self) -> dict[int, str]:
        """Checkpoints that are never deleted: step before which each is saved -> its name."""
        return {}

    # --- pictures and evaluation ------------------------------------------------------------------------------

    @abstractmethod
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures that show how well the method works: title -> (3,H,W) in [0,1]."""

    @abstractmethod
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Computes figures on held-out batches. Every call must use the same crops and masks."""

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Figures of baselines without training: name -> figures as in ``evaluate``. The table after a run has them."""
        return {}

    def rgb_images(self, batch: Batch) -> Batch:
        """The images of a held-out batch on which features are measured: ``image`` uint8 (n,3,H,W) and ``extent``.

        By default the batch itself. Methods whose batches hold other planes or several images override it.
        """
        return batch

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Features (n,D) of the batch and its images (n,3,S,S) in [0,1], for TensorBoard's projector after a run.

        None if the method has nothing to show there.
        """
        return None

    @abstractmethod
    def encoders(self) -> dict[str, Encoder]:
        """The encoders that ``eval`` transfers, by role: ``encoder``; for GANs ``generator`` and ``discriminator``."""

    # --- state ------------------------------------------------------------------------------------------------

    def training_state(self) -> dict[str, Any]:
        """Everything that training changes, for a checkpoint: weights and the optimizers' states."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {"weights": self.state_dict(), "optimizers": optimizers}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restores ``training_state``. Raises RuntimeError, ValueError or KeyError if it belongs to other networks."""
        own = dict(self.named_parameters())
        self.load_state_dict({name: sharding.fitted(value, own.get(name)) for name, value in state["weights"].items()})
        for name, optimizer in self.optimizers.items():
            saved, groups = state["optimizers"][name], optimizer.state_dict()["param_groups"]
            pairs = zip(saved["param_groups"], groups, strict=False)
            same = all(was.keys() <= now.keys() and was["params"] == now["params"] for was, now in pairs)
            if not same or len(saved["param_groups"]) != len(groups):
                raise ValueError(f"its optimizer of {name} is of another kind or has other parameters")
            # Learning rates and the like come from the config, so that --accept-changes can change them.
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            states = {
                number: {name: sharding.fitted(value, parameters[number]) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({"state": states, "param_groups": groups})
