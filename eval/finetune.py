"""Fine-tuning for classification: all layers are trained, whether the weights are pre-trained or random."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kintsugi.augment import cropping
from kintsugi.data.image_set import Images
from kintsugi.eval.features import central_squares
from kintsugi.eval.linear import loss, score
from kintsugi.nets.encoder import Encoder
from kintsugi.rng import derive_seed, generator
from kintsugi.train.compute import Compute
from kintsugi.train.optim import set_lr, warmup_cosine


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
    compute: Compute,
) -> float:
    """Trains encoder and linear head, and returns their ``eval.linear.score`` on the test images, in [0,1].

    AdamW along a cosine with warm-up, on random crops of ``size`` px, mirrored at random. From random weights this is
    supervised training from scratch on the same labels and with the same budget.
    """
    torch.manual_seed(derive_seed(seed, 2))
    width = len(encoder.vector({s: torch.zeros(1, c, 4, 4) for s, c in encoder.channels.items()})[0])
    # Features are normalized first, because those of random networks have an unusual scale.
    head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes)).to(compute.device)
    net = nn.ModuleList([encoder, head]).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=1e-2)

    def logits(image: Tensor) -> Tensor:
        with compute.autocast():
            return head(encoder.vectors(image).float()).float()[:, None]  # (n,1,K)

    for step in tqdm(range(steps), desc=f"all layers, seed {seed}", leave=False, disable=None):
        random = generator(seed, step, 8)
        rows = torch.randint(len(train), (batch,), generator=random)
        found = {name: value.to(compute.device) for name, value in train.batch(rows).items()}
        image = cropping.random_crops(found, size, batch, slice(batch), random)
        loss(logits(image), found["label"]).backward()
        set_lr(optimizer, lr * warmup_cosine(step, steps, steps // 10, cosine_from=0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    net.eval()
    with torch.no_grad():
        batches = central_squares(test, size, compute, torch.arange(len(test)))
        pairs = [(logits(image), label) for image, label in batches]
    predicted, truth = (torch.cat(each) for each in zip(*pairs, strict=True))
    return score(predicted, truth).item()
