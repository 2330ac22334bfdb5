"""What a method offers to the loop. The method owns its networks, optimizers and one update; the loop owns time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from kintsugi.data.loader import Indexed
from kintsugi.nets.backbones import Encoder

Batch = Mapping[str, Tensor]


class Method(ABC):
    """Base of every method. A subclass fills ``networks`` and ``optimizers`` in its constructor, on the CPU.

    ``networks`` and ``optimizers`` are everything that training changes; a method with more state (queues, labels)
    extends ``state_dict`` and ``load_state_dict``.
    """

    name: ClassVar[str]
    score: ClassVar[str]
    """The held-out figure of ``evaluate``, higher is better, by which the best checkpoint is chosen."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]

    def on_train_data(self, data: Indexed) -> None:  # noqa: B027
        """Hears of the training data once, before a checkpoint is loaded and before the first step, its networks on the
        device: for methods that look at all of it between steps (clustering)."""

    @abstractmethod
    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One optimization step, all its networks. Returns 0-d tensors to log; all must be finite in a healthy run.

        Random draws come from ``kintsugi.rng.generator(seed, step, ...)`` for the global batch.
        """

    @abstractmethod
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures by which a person judges the method: title -> (3,H,W) in [0,1]."""

    @abstractmethod
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Held-out figures, with the same crops and masks at every call."""

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """What needs no learning, by name, in the figures of ``evaluate``: rows of the table at the end of a run."""
        return {}

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """For TensorBoard's projector at the end of a run: features (n,D) of held-out images, and the images (n,3,S,S)
        in [0,1]. None = this method's features are not looked at so."""
        return None

    @abstractmethod
    def encoders(self) -> dict[str, Encoder]:
        """What ``eval`` moves to other tasks, by role: ``generator`` and, for a GAN, ``discriminator``."""

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        """What a person should know about these logged means (a collapsed discriminator, say)."""
        return []

    def milestones(self) -> dict[int, str]:
        """Steps before which a checkpoint is kept for good, under this name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            **{f"network.{name}": net.state_dict() for name, net in self.networks.items()},
            **{f"optimizer.{name}": opt.state_dict() for name, opt in self.optimizers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``state_dict`` gave. RuntimeError, ValueError or KeyError where it is of other networks."""
        for name, net in self.networks.items():
            net.load_state_dict(state[f"network.{name}"])
        for name, opt in self.optimizers.items():
            saved, groups = state[f"optimizer.{name}"], opt.state_dict()["param_groups"]
            pairs = zip(saved["param_groups"], groups, strict=False)
            same = all(was.keys() <= now.keys() and was["params"] == now["params"] for was, now in pairs)
            if not same or len(saved["param_groups"]) != len(groups):
                raise ValueError(f"its optimizer of {name} is another one")
            # Rates and the like are the configuration's: saved ones would undo what --accept-changes asks for.
            opt.load_state_dict({**saved, "param_groups": groups})
