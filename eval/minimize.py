"""Training of heads and of whole networks for a task: the same optimizer and schedule for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kintsugi.eval.weights import Weights
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.vit import ViTEncoder
from kintsugi.train.optim import set_lr, warmup_cosine

LAYER_DECAY = 0.75
"""Each block of a pre-trained vision transformer has this many times the learning rate of the next one.

As in MAE's fine-tuning (He 2021, arXiv:2111.06377, table 9), which has .75, and in the authors' code .65 for ViT-B. The
first blocks hold general features, which high learning rates would destroy.
"""
WEIGHT_DECAY = 1e-2


def minimize(
    groups: Iterable[nn.Parameter] | list[dict[str, Any]],
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    title: str,
) -> Tensor:
    """Trains by AdamW. Returns the losses, (steps,), on their device.

    groups: parameters, or groups of them as for an optimizer; a group's ``lr_scale`` multiplies its learning rate.
    loss: step -> the loss of that step, 0-d. lr: the highest learning rate; warm-up over a tenth of the steps, then
    down to 0 along a cosine. title: of the progress bar.
    """
    optimizer = torch.optim.AdamW(groups, lr, weight_decay=WEIGHT_DECAY)
    losses = []
    for step in tqdm(range(steps), desc=title, leave=False, disable=None):
        found = loss(step)
        found.backward()
        set_lr(optimizer, lr * warmup_cosine(step, steps, steps // 10, cosine_from=0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(found.detach())
    return torch.stack(losses)


def check_rates(option: str, rates: Sequence[float]) -> None:
    """Raises ValueError with one line if there is no learning rate, or one that is not above 0."""
    if not rates or not all(lr > 0 for lr in rates):
        raise ValueError(f"{option} must be at least one number above 0, not {rates}")


def layer_decay(weights: Weights) -> float:
    """``LAYER_DECAY``; 1 for random weights, all of which must learn."""
    return LAYER_DECAY if weights.states else 1.0


def all_layers(net: nn.Module, encoder: Encoder, decay: float) -> list[dict[str, Any]]:
    """The parameter groups of a network that contains ``encoder``: those of the encoder's layers, and the rest.

    For most encoders that is one group. A vision transformer has one for each layer, whose ``lr_scale`` is ``decay``
    for the last block and the final norm, its square for the block before, and so on down to the patches; the rest has
    1. Norms, biases, tokens and positions of a vision transformer have no weight decay. Frozen parameters are left out.
    """
    own = set(encoder.parameters())
    rest = [p for p in net.parameters() if p.requires_grad and p not in own]
    return [*_encoder_groups(encoder, decay), {"params": rest}]


def _encoder_groups(encoder: Encoder, decay: float) -> list[dict[str, Any]]:
    if not isinstance(encoder, ViTEncoder):
        return [{"params": [p for p in encoder.parameters() if p.requires_grad]}]
    from timm.optim import param_groups_layer_decay  # imported here: slow, and few runs need it

    untouched = ("*_token", "pos_embed")
    groups = param_groups_layer_decay(encoder.net, WEIGHT_DECAY, untouched, layer_decay=decay)
    return [{**group, "lr_scale": decay * group["lr_scale"]} for group in groups]
