"""SimCLR by stable-pretraining, as in its benchmark on CIFAR-10 (benchmarks/cifar10), with the race's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import stable_pretraining as spt
import torch
from stable_pretraining import forward
from stable_pretraining.data import transforms
from torch import nn
from torchvision.datasets import ImageFolder

from bench.contestants.laps import Laps, RaceSettings
from bench.contestants.peer_networks import IMAGENET_MEAN, IMAGENET_STD, resnet18


class LapCallback(lightning.pytorch.Callback):
    """Counts the steps. network: picks the encoder of the module that is trained."""

    def __init__(self, laps: Laps, network: Callable[[Any], nn.Module]) -> None:
        self.laps, self.network = laps, network

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.laps.step_done(self.network(module))


def trainer(settings: RaceSettings, callback: LapCallback) -> lightning.Trainer:
    """Lightning's trainer for the settings' steps."""
    return lightning.Trainer(
        max_steps=settings.steps,
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
    )


def view(settings: RaceSettings) -> transforms.Compose:
    """The augmentation of one view."""
    strong = 0.8 * settings.strength
    return transforms.Compose(
        transforms.RGB(),
        transforms.RandomResizedCrop((settings.size, settings.size), scale=(settings.smallest_crop, 1.0)),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ColorJitter(
            brightness=strong, contrast=strong, saturation=strong, hue=0.2 * settings.strength, p=0.8
        ),
        transforms.RandomGrayscale(p=0.2),
        transforms.ToImage(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


def race(settings: RaceSettings) -> None:
    """Trains for the settings' steps."""
    laps = Laps(settings)
    spt.set(cache_dir=settings.out)
    dataset = spt.data.FromTorchDataset(
        ImageFolder(f"{settings.data}/train"),
        names=["image", "label"],
        transform=transforms.MultiViewTransform([view(settings), view(settings)]),
    )
    loader = torch.utils.data.DataLoader(
        dataset=dataset, batch_size=settings.batch, num_workers=0, drop_last=True, shuffle=True
    )
    projector = nn.Sequential(
        nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, 128), nn.BatchNorm1d(128)
    )
    module = spt.Module(
        backbone=resnet18(settings.stem),
        projector=projector,
        forward=forward.simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=settings.temperature),
        optim={
            "optimizer": {"type": "AdamW", "lr": settings.lr, "weight_decay": settings.weight_decay},
            "scheduler": {"type": "CosineAnnealingLR", "T_max": settings.steps},
            "interval": "step",
        },
    )
    callback = LapCallback(laps, lambda module: module.backbone)
    data = spt.data.DataModule(train=loader)
    spt.Manager(trainer=trainer(settings, callback), module=module, data=data, seed=settings.seed)()


if __name__ == "__main__":
    race(RaceSettings.of_command_line())
