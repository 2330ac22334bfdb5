"""MAE by stable-pretraining, as in its own tests of MAE, with the race's settings.

Without the features of the whole image, which only its online probes need.
"""

from __future__ import annotations

import types

import stable_pretraining as spt
import torch
from stable_pretraining.data import transforms
from stable_pretraining.methods import MAE
from torchvision.datasets import ImageFolder

from bench.contestants.laps import Laps, RaceSettings
from bench.contestants.peer_networks import HEAD, VIT_MEAN, VIT_STD, vit_tiny
from bench.contestants.stable_simclr import LapCallback, trainer


def mae_forward(self, batch, stage):  # type: ignore[no-untyped-def]
    """The loss of a batch, as the method ``forward`` of the module."""
    output = MAE.forward(self, batch["image"])
    self.log(f"{stage}/loss", output.loss, on_step=True, on_epoch=True, sync_dist=True)
    return {"loss": output.loss}


def race(settings: RaceSettings) -> None:
    """Trains for the settings' steps."""
    laps = Laps(settings)
    spt.set(cache_dir=settings.out)
    transform = transforms.Compose(
        transforms.RGB(),
        transforms.RandomResizedCrop((settings.size, settings.size), scale=(settings.smallest_crop, 1.0)),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ToImage(mean=VIT_MEAN, std=VIT_STD),
    )
    dataset = spt.data.FromTorchDataset(
        ImageFolder(f"{settings.data}/train"), names=["image", "label"], transform=transform
    )
    loader = torch.utils.data.DataLoader(
        dataset=dataset, batch_size=settings.batch, num_workers=0, drop_last=True, shuffle=True
    )
    module = MAE(
        vit_tiny(settings),
        decoder_embed_dim=settings.decoder_width,
        decoder_depth=settings.decoder_depth,
        decoder_num_heads=settings.decoder_width // HEAD,
    )
    module.forward = types.MethodType(mae_forward, module)
    module.optim = {
        "optimizer": {
            "type": "AdamW",
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
            "betas": (0.9, 0.95),
            "exclude_bias_norm": True,
        },
        "scheduler": {"type": "CosineAnnealingLR", "T_max": settings.steps},
        "interval": "step",
    }
    callback = LapCallback(laps, lambda module: module.encoder.vit)
    data = spt.data.DataModule(train=loader)
    spt.Manager(trainer=trainer(settings, callback), module=module, data=data, seed=settings.seed)()


if __name__ == "__main__":
    race(RaceSettings.of_command_line())
