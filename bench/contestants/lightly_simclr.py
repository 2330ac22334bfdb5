"""SimCLR by lightly, as in its own example (examples/pytorch/simclr.py), with the race's settings."""

from __future__ import annotations

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from bench.contestants.laps import Laps, RaceSettings
from bench.contestants.peer_networks import resnet18


class LightlySimCLR(nn.Module):
    """A ResNet-18 without its classifier, and lightly's projection head."""

    def __init__(self, stem: str) -> None:
        super().__init__()
        self.backbone = resnet18(stem)
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, image: Tensor) -> Tensor:
        return self.projection_head(self.backbone(image).flatten(start_dim=1))


def race(settings: RaceSettings) -> None:
    """Trains for the settings' steps."""
    laps = Laps(settings)
    transform = SimCLRTransform(
        input_size=settings.size, cj_strength=settings.strength, min_scale=settings.smallest_crop, gaussian_blur=0.0
    )
    dataset = ImageFolder(f"{settings.data}/train", transform=transform)
    loader = torch.utils.data.DataLoader(dataset, settings.batch, shuffle=True, drop_last=True, num_workers=0)
    model = LightlySimCLR(settings.stem)
    criterion = NTXentLoss(temperature=settings.temperature)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    while True:
        for (first, second), _ in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = criterion(model(first), model(second))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            laps.step_done(model.backbone)
            if laps.done == settings.steps:
                return


if __name__ == "__main__":
    race(RaceSettings.of_command_line())
