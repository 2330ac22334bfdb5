"""Fine-tuning for classification: all layers are trained, whether the weights are pre-trained or random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kintsugi.augment import cropping
from kintsugi.data.image_set import Images
from kintsugi.eval.features import central_squares
from kintsugi.eval.linear import loss, score
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.vit import ViTEncoder
from kintsugi.rng import derive_seed, generator
from kintsugi.train.compute import Compute
from kintsugi.train.optim import set_lr, warmup_cosine

LAYER_DECAY = 0.75
"""Each block of a pre-trained vision transformer has this many times the learning rate of the next one.

As in MAE's fine-tuning (He 2021, arXiv:2111.06377, table 9), which has .75, and in the authors' code .65 for ViT-B. The
first blocks hold general features, which high learning rates would destroy.
"""
WEIGHT_DECAY = 1e-2


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
    layer_decay: float = 1.0,
) -> float:
    """Trains encoder and linear head, and returns their ``eval.linear.score`` on the test images, in [0,1].

    AdamW along a cosine with warm-up, on random crops of ``size`` px, mirrored at random. From random weights this is
    supervised training from scratch on the same labels and with the same budget. layer_decay: of vision transformers,
    as ``LAYER_DECAY``; 1 for random weights, all of which must learn.
    """
    torch.manual_seed(derive_seed(seed, 2))
    # Features are normalized first, because those of random networks have an unusual scale.
    width = encoder.vector_length
    head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes)).to(compute.device)
    net = nn.ModuleList([encoder, head]).train()
    groups = [*encoder_groups(encoder, layer_decay), {"params": list(head.parameters())}]
    optimizer = torch.optim.AdamW(groups, lr, weight_decay=WEIGHT_DECAY)

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


def encoder_groups(encoder: Encoder, layer_decay: float) -> list[dict[str, Any]]:
    """The parameter groups of an encoder: one group, or for a vision transformer those of its layers.

    A group's ``lr_scale`` multiplies its learning rate (``set_lr``): ``layer_decay`` for the last block and the final
    norm, its square for the block before, and so on down to the patches. The head's is 1. Norms, biases, tokens and
    positions of a vision transformer have no weight decay.
    """
    if not isinstance(encoder, ViTEncoder):
        return [{"params": list(encoder.parameters())}]
    from timm.optim import param_groups_layer_decay  # imported here: slow, and few runs need it

    untouched = ("*_token", "pos_embed")
    groups = param_groups_layer_decay(encoder.net, WEIGHT_DECAY, untouched, layer_decay=layer_decay)
    return [{**group, "lr_scale": layer_decay * group["lr_scale"]} for group in groups]
