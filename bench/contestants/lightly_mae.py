"""MAE by lightly, as in its own example (examples/pytorch/mae.py), with the race's settings.

Targets are normalized by patch, and norms and biases have no weight decay, because it is so in Kintsugi and
stable-pretraining. lightly has functions for both.
"""

from __future__ import annotations

import torch
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.transforms import MAETransform
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from bench.contestants.laps import Laps, RaceSettings
from bench.contestants.peer_networks import HEAD, VIT_MEAN, VIT_STD, vit_tiny


class LightlyMAE(nn.Module):
    """A vision transformer that computes visible patches, and a decoder that predicts the masked ones."""

    def __init__(self, settings: RaceSettings) -> None:
        super().__init__()
        vit = vit_tiny(settings)
        self.patch = settings.patch
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.length = self.backbone.sequence_length
        self.decoder = MAEDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            patch_size=settings.patch,
            embed_dim=vit.embed_dim,
            decoder_embed_dim=settings.decoder_width,
            decoder_depth=settings.decoder_depth,
            decoder_num_heads=settings.decoder_width // HEAD,
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets of the masked patches."""
        count = len(image)
        kept, masked = utils.random_token_mask(size=(count, self.length), mask_ratio=0.75, device=image.device)
        embedded = self.decoder.embed(self.backbone.encode(images=image, idx_keep=kept))
        every = utils.repeat_token(self.decoder.mask_token, (count, self.length))
        every = utils.set_at_index(every, kept, embedded.type_as(every))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(every), masked))
        target = utils.get_at_index(utils.patchify(image, self.patch), masked - 1)  # without the class token
        return predicted, utils.normalize_mean_var(target)


def race(settings: RaceSettings) -> None:
    """Trains for the settings' steps."""
    laps = Laps(settings)
    transform = MAETransform(
        input_size=settings.size,
        min_scale=settings.smallest_crop,
        normalize={"mean": list(VIT_MEAN), "std": list(VIT_STD)},
    )
    dataset = ImageFolder(f"{settings.data}/train", transform=transform)
    loader = torch.utils.data.DataLoader(dataset, settings.batch, shuffle=True, drop_last=True, num_workers=0)
    model = LightlyMAE(settings)
    decayed, others = utils.get_weight_decay_parameters([model])
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    criterion = nn.MSELoss()
    while True:
        for (image,), _ in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                predicted, target = model(image)
            criterion(predicted.float(), target.float()).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            laps.step_done(model.backbone.vit)
            if laps.done == settings.steps:
                return


if __name__ == "__main__":
    race(RaceSettings.of_command_line())
