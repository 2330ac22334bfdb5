"""The option --shard: each rank keeps an equal share of weights, gradients and optimizer states (torch's FSDP2).

The weights of a block are gathered from all ranks before it computes, in the forward and in the backward pass, and let
go after it. Each rank gets its share of the averaged gradients (Zhao 2023, arXiv:2304.11277). Buffers, such as running
statistics, stay whole on every rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kintsugi.nets.encoder import Encoder
from kintsugi.train.dist import World


def shard(method: nn.Module, optimizers: Iterable[Optimizer], world: World) -> None:
    """Shards the networks in a module over the ranks, in place: by their blocks, and what is outside of these together.

    Parameters become new objects; the optimizers, which must not have taken a step, get them.
    """
    from torch.distributed.device_mesh import init_device_mesh  # imported here: slow, and few runs need it
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    # About changing a network's output in place. No method that takes the option does; a test of each would fail then.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    world.mesh = init_device_mesh(world.device.type, (world.size,))
    before = dict(method.named_parameters())
    for network in _networks(method):
        for unit in (*_blocks(network), network):
            # Networks let go of their weights too, because else moving averages would meet whole ones.
            fully_shard(unit, mesh=world.mesh, reshard_after_forward=True)
        if isinstance(network, Encoder):
            assert isinstance(network, FSDPModule)
            for name in network.other_passes:
                register_fsdp_forward_method(network, name)
    after = dict(method.named_parameters())
    shares = {whole: after[name] for name, whole in before.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [shares[parameter] for parameter in group["params"]]


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """A module's networks that have weights: its children, and those of lists among these."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from _networks(child)
        elif next(child.parameters(), None) is not None:
            yield child


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The members of a network's sequences: blocks of a vision transformer, of a ResNet's stages; no single layers."""
    for child in network.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from (each for each in child if list(each.children()) and next(each.parameters(), None) is not None)
        else:
            yield from _blocks(child)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor of a sharded one, on every rank; other tensors as they are. All ranks must call it together."""
    gather = getattr(tensor, "full_tensor", None)  # of torch's DTensor
    return tensor if gather is None else gather()


def gathered(state: Any, *, keep: bool) -> Any:
    """Nested dicts and lists with whole tensors on the CPU in place of sharded ones; None in place of them if not
    ``keep``, so that only one tensor at a time is whole. All ranks must call it together.
    """
    if isinstance(state, Mapping):
        return {name: gathered(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list):
        return [gathered(value, keep=keep) for value in state]
    if hasattr(state, "full_tensor"):
        full = whole(state)
        return full.cpu() if keep else None
    return state


def fitted(saved: Any, like: Tensor | None) -> Any:
    """A saved tensor, whole and on all ranks, as ``like`` is: in its memory layout, and this rank's share if it is
    sharded. As it is if it has another shape or is no tensor.
    """
    if like is None or not isinstance(saved, Tensor) or saved.shape != like.shape:
        return saved
    if not hasattr(like, "full_tensor"):
        # Fused optimizers assume that their state has the layout of its weight, and do not check it.
        return saved if saved.stride() == like.stride() else torch.empty_like(like, device=saved.device).copy_(saved)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    mine = saved.to(like.device).contiguous()
    return distribute_tensor(mine, like.device_mesh, like.placements, src_data_rank=None)
