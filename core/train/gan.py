"""What methods with a generator and an adversarial discriminator offer to the loop alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn
from torch.optim.swa_utils import AveragedModel

from core.adversarial import collapse_warning
from core.nets.encoder import Encoder
from core.train.method import Method


class Adversary(Protocol):
    """Settings that say when the discriminator joins."""

    @property
    def adversarial_start(self) -> int: ...

    @property
    def has_adversary(self) -> bool: ...


class Gan(Method):
    """``average``: the running average of a generator with an ``encoder``, which is shown, measured and moved;
    ``discriminator``: one with an ``encoder``, where there is an adversary. A subclass sets them."""

    average: AveragedModel
    discriminator: nn.Module

    def __init__(self, adversary: Adversary) -> None:
        self.adversary = adversary

    def milestones(self) -> dict[int, str]:
        start = self.adversary.adversarial_start
        return {start: "before-adversary"} if self.adversary.has_adversary and start else {}

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        return collapse_warning(scalars)

    def encoders(self) -> dict[str, Encoder]:
        nets = {"generator": self.average.module}
        if self.adversary.has_adversary:
            nets["discriminator"] = self.discriminator
        return {role: net.get_submodule("encoder") for role, net in nets.items()}  # type: ignore[misc]
