"""Fine-tuning for classification: all layers are trained, from pre-trained or from random weights, alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kintsugi.augment import cropping
from kintsugi.data.image_set import Images
from kintsugi.eval.cells import Machine, warmed
from kintsugi.eval.features import squares
from kintsugi.eval.linear import loss, score
from kintsugi.nets.encoder import Encoder
from kintsugi.rng import derive_seed, generator
from kintsugi.train.optim import set_lr


def finetune(
    encoder: Encoder,
    train: Images,
    test: Images,
    classes: int,
    size: int,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
    machine: Machine,
) -> float:
    """``score`` on the test images of encoder and linear head, trained on random mirrored crops by AdamW along a
    cosine. From random weights this is supervised training from scratch on the same labels and budget."""
    torch.manual_seed(derive_seed(seed, 2))
    width = len(encoder.vector({s: torch.zeros(1, c, 4, 4) for s, c in encoder.channels.items()})[0])
    # Normalized first, so that the scale of features, odd in random nets, is no handicap.
    head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes)).to(machine.device)
    net = nn.ModuleList([encoder, head]).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=1e-2)

    def logits(image: Tensor) -> Tensor:
        with machine.autocast():
            return head(encoder.vectors(image).float()).float()[:, None]  # (n,1,K)

    for step in tqdm(range(steps), desc=f"all layers, seed {seed}", leave=False, disable=None):
        random = generator(seed, step, 8)
        rows = torch.randint(len(train), (batch,), generator=random)
        found = {name: value.to(machine.device) for name, value in train.batch(rows).items()}
        image = cropping.random_crops(found, size, batch, slice(batch), random)
        loss(logits(image), found["label"]).backward()
        set_lr(optimizer, lr * warmed(step, steps))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    net.eval()
    with torch.no_grad():
        parts = [(logits(image), label) for image, label in squares(test, size, machine, torch.arange(len(test)))]
    said, truth = (torch.cat(each) for each in zip(*parts, strict=True))
    return score(said, truth).item()
