"""What all contestants of the race share: their settings, and the weights and times that they leave behind.

Imports only torch, so that it runs where Kintsugi is not installed.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class RaceSettings:
    """What is the same for all contestants of a race, and how many steps this one makes."""

    method: str
    """simclr or mae."""
    data: str
    """Folder with train/ and test/, which hold one folder for each class."""
    out: str
    """Folder for the weights and ``laps.json``."""
    steps: int
    laps: int
    """How often the weights are kept: evenly spaced, the last time after the last step."""
    seed: int
    precision: str
    """fp32 or bf16."""
    size: int
    """Side of the crops, px."""
    batch: int
    lr: float
    """AdamW's highest learning rate, for this batch; it falls along a cosine to 0 at the last step."""
    weight_decay: float
    smallest_crop: float
    """Smallest fraction of an image's area that a crop shows."""
    stem: str
    """Of ResNet-18, for SimCLR: large, torchvision's; small: 3x3, of stride 1, without pooling."""
    temperature: float
    """SimCLR's."""
    strength: float
    """SimCLR's: strength of the color jitter."""
    patch: int
    """MAE's: side of a patch, px."""
    decoder_width: int
    """MAE's: channels of the decoder."""
    decoder_depth: int
    """MAE's: blocks of the decoder."""

    @staticmethod
    def of_command_line() -> RaceSettings:
        """The settings in the JSON file that the first argument names. Also prepares torch: one thread and the seed."""
        settings = RaceSettings(**json.loads(Path(sys.argv[1]).read_text()))
        torch.set_num_threads(1)
        torch.manual_seed(settings.seed)
        return settings


class Laps:
    """Measures the processor's time of training, and keeps the weights of an encoder as it goes on.

    The time of all threads of this process counts, so contestants must not start other processes. It begins after the
    first step, so that what happens once, such as opening the data, does not count; ``start`` is the time until then.
    That of keeping weights does not count either.
    """

    def __init__(self, settings: RaceSettings) -> None:
        self.settings, self.out = settings, Path(settings.out)
        self.out.mkdir(parents=True, exist_ok=True)
        # Number of steps -> number of the lap that ends with them.
        self.ends = {round(settings.steps * lap / settings.laps): lap for lap in range(1, settings.laps + 1)}
        self.done = 0
        self.start = 0.0
        self.records: list[dict[str, float | str]] = []
        self.since = time.process_time()

    def step_done(self, network: nn.Module) -> None:
        """Is to be called after each step. network: the encoder, whose ``state_dict`` is kept at the end of a lap."""
        self.done += 1
        if self.done == 1:
            now = time.process_time()
            self.start, self.since = now - self.since, now
        lap = self.ends.get(self.done)
        if lap is None:
            return
        now = time.process_time()
        tensors: dict[str, Tensor] = {name: value.detach().clone() for name, value in network.state_dict().items()}
        torch.save(tensors, self.out / f"lap-{lap}.pt")
        images = self.done * self.settings.batch
        self.records.append({"file": f"lap-{lap}.pt", "images": images, "seconds": now - self.since})
        found = {"start": self.start, "finished": self.done == self.settings.steps, "laps": self.records}
        (self.out / "laps.json").write_text(json.dumps(found, indent=1) + "\n")
        self.since += time.process_time() - now
