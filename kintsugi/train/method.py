"""The contract between a method and the loop: the method owns its networks, optimizers and one update; the loop owns
time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from kintsugi.data.loader import Indexed
from kintsugi.nets.encoder import Encoder
from kintsugi.train.config import TrainConfig
from kintsugi.train.dist import World
from kintsugi.train.opening import open_data

Batch = Mapping[str, Tensor]
C = TypeVar("C", bound=TrainConfig)


class Data(Protocol):
    """Training samples and held-out samples: a ``Split`` of images, or something richer."""

    @property
    def train(self) -> Indexed: ...

    @property
    def heldout(self) -> Indexed: ...


class Method(nn.Module, ABC, Generic[C]):
    """Base class of every method, generic in its config.

    The constructor creates the networks as submodules, on the CPU, and fills ``optimizers``. Everything that training
    changes is then in ``state_dict`` (submodules, buffers, ``get_extra_state``) and in the optimizers. A module that is
    not trained and not saved, such as LPIPS, is kept out of ``state_dict``: hold a function that calls it.
    """

    name: ClassVar[str]
    score: ClassVar[str]
    """The held-out figure of ``evaluate`` that selects the best checkpoint; higher is better."""
    next_step: ClassVar[str] = "transfer its features: make eval-segmentation CKPT={folder}"
    """What a person may do with a finished run; ``{folder}`` becomes the run's folder."""

    def __init__(self, config: C, world: World) -> None:
        super().__init__()
        self.config, self.world = config, world
        self.optimizers: dict[str, Optimizer] = {}

    # --- before training --------------------------------------------------------------------------------------

    @classmethod
    def check(cls, config: C) -> None:
        """Called before anything is written. ValueError of one line for settings that cannot work in this run."""

    @classmethod
    def open_data(cls, config: C, quiet: bool = False) -> Data:
        """The data to train on and to measure on; by default the images that ``config.data`` names."""
        return open_data(config, quiet)

    @classmethod
    def build(cls, config: C, world: World, data: Data) -> Method[C]:
        """The method with fresh weights, on the CPU; ``data`` for methods that need to know it, such as its classes."""
        return cls(config, world)

    def on_train_data(self, data: Indexed) -> None:
        """Receives the training data once, when the networks are on the device and before a checkpoint is loaded. For
        methods that read all of it between steps (clustering)."""

    # --- training ---------------------------------------------------------------------------------------------

    @abstractmethod
    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One optimization step of all its networks. Returns 0-d tensors to log; in a healthy run all are finite.

        Random numbers come from ``kintsugi.rng.generator(seed, step, ...)``, drawn for the global batch.
        """

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        """Lines to print about these logged means, for example that the discriminator has collapsed."""
        return []

    def milestones(self) -> dict[int, str]:
        """Steps before which a checkpoint is saved under this name and never deleted."""
        return {}

    # --- looking and measuring --------------------------------------------------------------------------------

    @abstractmethod
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures by which a person judges the method: title -> (3,H,W) in [0,1]."""

    @abstractmethod
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Held-out figures, with the same crops and masks at every call."""

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """What needs no training, by name, in the figures of ``evaluate``: rows of the table at the end of a run."""
        return {}

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """For TensorBoard's projector at the end of a run: features (n,D) of held-out images, and the images (n,3,S,S)
        in [0,1]. None: this method shows no projector."""
        return None

    @abstractmethod
    def encoders(self) -> dict[str, Encoder]:
        """The encoders that ``eval`` transfers, by role: ``generator``, ``discriminator`` (GANs) or ``encoder``."""

    # --- state ------------------------------------------------------------------------------------------------

    def training_state(self) -> dict[str, Any]:
        """Everything that training changes, for a checkpoint."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {"weights": self.state_dict(), "optimizers": optimizers}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restores ``training_state``. RuntimeError, ValueError or KeyError where it belongs to other networks."""
        self.load_state_dict(state["weights"])
        for name, optimizer in self.optimizers.items():
            saved, groups = state["optimizers"][name], optimizer.state_dict()["param_groups"]
            pairs = zip(saved["param_groups"], groups, strict=False)
            same = all(was.keys() <= now.keys() and was["params"] == now["params"] for was, now in pairs)
            if not same or len(saved["param_groups"]) != len(groups):
                raise ValueError(f"its optimizer of {name} is another one")
            # Learning rates and the like come from the config: saved ones would undo what --accept-changes asks for.
            optimizer.load_state_dict({**saved, "param_groups": groups})
