"""Optimizers and their steps: learning rates, LARS, LAMB."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kintsugi.train import sharding


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The total norm of the gradients, 0-d."""
    gradients = [p.grad for p in _with_gradient(optimizer) if p.grad is not None]
    return sharding.whole(nn.utils.get_total_norm(gradients))


def take_step(optimizer: torch.optim.Optimizer, clip: float = math.inf) -> None:
    """Takes a step with gradients that are the same on all ranks, and clears them.

    clip: if their total norm is larger, they are scaled down to it before the step.
    """
    parameters = _with_gradient(optimizer)
    for p in parameters:
        # Fused optimizers assume that a gradient has the memory layout of its weight, and do not check it.
        if p.grad is not None and p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(p.grad)
    if clip < math.inf:
        nn.utils.clip_grads_with_norm_(parameters, clip, gradient_norm(optimizer))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _with_gradient(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def warmup_cosine(step: int, steps: int, warmup: int, *, cosine_from: int | None = None) -> float:
    """The factor on the learning rate at ``step``: a linear warm-up, times half a cosine that falls to 0 at ``steps``.

    warmup: its number of steps. cosine_from: the step at which the cosine starts; default: the end of the warm-up. If
    it is 0, the cosine falls during the warm-up too, so the factor never quite reaches 1.
    """
    start = warmup if cosine_from is None else cosine_from
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * 0.5 * (1 + math.cos(math.pi * max(0, step - start) / max(1, steps - start)))


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """A setting that changes along half a cosine, from ``first`` at step 0 to ``last`` at step ``steps``."""
    return last + (first - last) * warmup_cosine(step, steps, 0)


def set_lr(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameter groups, times a group's own ``lr_scale`` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: weights, with weight decay; those of one dimension (biases, norms) and tokens, without it.

    Tokens are a transformer's parameters whose names end in ``_token``.
    """
    trained = [(p, p.ndim > 1 and not name.endswith("_token")) for name, p in network.named_parameters()]
    return [
        {"params": [p for p, decays in trained if p.requires_grad and decays], "weight_decay": weight_decay},
        {"params": [p for p, decays in trained if p.requires_grad and not decays], "weight_decay": 0.0},
    ]


def lars_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for ``Lars``: ``decay_groups``, of which the second, without weight decay, has no scaling."""
    weights, rest = decay_groups(network, weight_decay)
    return [{**weights, "adapt": True}, {**rest, "adapt": False}]


def lamb(groups: list[dict[str, Any]], rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """timm's LAMB (You 2020, arXiv:1904.00962), without its clipping. Call ``set_lamb_step`` before each step.

    Uses foreach operations, where timm has them (from 1.0.31 on; older versions ignore that setting of a group).
    """
    from timm.optim import Lamb  # imported here: slow, and only few runs need it

    own: dict[str, Any] = {"step": torch.zeros(()), "foreach": True}
    return Lamb(({**own, **group} for group in groups), rate, betas=betas, max_grad_norm=None)


def set_lamb_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets the number of steps that LAMB has taken. It counts them in its settings, which a resumed run sets anew."""
    for group in optimizer.param_groups:
        group["step"] = torch.tensor(float(step))


Rule = Literal["lars", "sgd", "adam"]


def scaled_lr(rule: Rule, lr: float, batch: int) -> float:
    """The learning rate for a batch size: for LARS and SGD, ``lr`` per 256 images; for Adam, ``lr`` itself."""
    return lr if rule == "adam" else lr * batch / 256


def make_optimizer(
    rule: Rule, network: nn.Module, rate: float, weight_decay: float, *, nesterov: bool = False, decay_all: bool = True
) -> torch.optim.Optimizer:
    """Makes the optimizer of a rule.

    lars: ``Lars``. sgd: SGD with momentum 0.9. adam: Adam with decoupled weight decay (AdamW). rate: the learning rate.
    nesterov: for SGD only. decay_all: for SGD and Adam, weight decay of all parameters; else in the two groups of
    ``decay_groups``, which LARS always has.
    """
    if rule == "lars":
        return Lars(lars_groups(network, weight_decay), rate)
    groups: list[dict[str, Any]] = (
        [{"params": list(network.parameters()), "weight_decay": weight_decay}]
        if decay_all
        else decay_groups(network, weight_decay)
    )
    if rule == "sgd":
        return torch.optim.SGD(groups, rate, momentum=0.9, nesterov=nesterov, fused=True)
    return torch.optim.AdamW(groups, rate, fused=True)


class Lars(torch.optim.Optimizer):
    """SGD with momentum, where the gradient of each tensor is scaled to the norm of its weights (LARS).

    From You 2017 (arXiv:1708.03888), as in SimCLR's code: the gradient g + wd w of weights w is multiplied by eta |w| /
    |g + wd w|, or by 1 if either norm is 0, before momentum. Uses foreach operations, and does not wait for the device.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9, eta: float = 0.001) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0, "adapt": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            change = torch._foreach_add([p.grad for p in weights], weights, alpha=group["weight_decay"])
            if group["adapt"]:
                norms = torch.stack(torch._foreach_norm(weights))
                lengths = torch.stack(torch._foreach_norm(change))
                known = (norms > 0) & (lengths > 0)
                scales = torch.where(known, group["eta"] * norms / lengths.clamp(min=1e-12), 1.0)
                torch._foreach_mul_(change, list(scales.unbind()))
            for p in weights:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            speeds = [self.state[p]["momentum_buffer"] for p in weights]
            torch._foreach_mul_(speeds, group["momentum"])
            torch._foreach_add_(speeds, change)
            torch._foreach_add_(weights, speeds, alpha=-group["lr"])
