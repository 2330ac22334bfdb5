"""The pretended GPU must find faults that are planted, or the tests that use it could not fail."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pretended_gpu import OnGPU, pretended_gpu
from torch import Tensor, nn

from kintsugi.train import optim
from kintsugi.train.dist import World


def test_devices_that_are_mixed_raise():
    with pretended_gpu():
        there, here = torch.rand(2, 3, device="cuda"), torch.rand(2, 3)
        assert there.device == torch.device("cuda:0")
        assert isinstance(there + 1, OnGPU)
        assert isinstance(there * torch.tensor(2.0), OnGPU)  # a number may stay on the CPU
        for mix in (
            lambda: there + here,
            lambda: torch.where(there > 0, here, there),
            lambda: here.add_(there),
            lambda: torch.cat([there, here]),
            lambda: torch.stack([there[0, 0], here[0, 0]]),
            lambda: here[there[:, 0] > 0],
            lambda: nn.Linear(3, 2)(there),
            lambda: torch.nn.functional.mse_loss(there, here),
        ):
            with pytest.raises(RuntimeError, match=r"both devices|indexed by one of the GPU"):
                mix()


def test_a_mix_in_a_backward_pass_raises():
    class Faulty(torch.autograd.Function):
        @staticmethod
        def forward(context: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(context: object, gradient: Tensor) -> Tensor:
            return gradient * torch.full(gradient.shape, 2.0)

    with pretended_gpu():
        x = torch.rand(3, device="cuda", requires_grad=True)
        with pytest.raises(RuntimeError, match="mul: tensors on both devices"):
            Faulty.apply(x).sum().backward()


def test_numpy_of_a_tensor_of_the_gpu_raises():
    with pretended_gpu():
        x = torch.rand(3, device="cuda")
        with pytest.raises(TypeError, match="NumPy"):
            x.numpy()
        with pytest.raises(TypeError, match="NumPy"):
            np.asarray(x)
        assert x.cpu().numpy().shape == (3,)


def test_a_generator_of_the_cpu_cannot_draw_there():
    with pretended_gpu(), pytest.raises(RuntimeError, match="generator of the CPU"):
        torch.rand(3, device="cuda", generator=torch.Generator())


def test_what_waits_is_counted_and_what_does_not_is_not():
    with pretended_gpu() as seen:
        x, here = torch.rand(4, 4, device="cuda"), torch.rand(4, 4)
        pinned, mask = here.pin_memory(), x > 0.5
        for waiting in (
            lambda: x[0, 0].item(),
            lambda: bool(x[0, 0] > 0),
            lambda: float(x[0, 0]),
            lambda: int(x[0, 0]),
            lambda: f"{x[0, 0]:.3f}",
            lambda: x.tolist(),
            lambda: x.cpu(),
            lambda: x.to("cpu"),
            lambda: x[mask],
            lambda: x.nonzero(),
            lambda: x.unique(),
            lambda: torch.linalg.svdvals(x),
            lambda: here.to("cuda"),  # memory that is not pinned
            lambda: here.to("cuda", non_blocking=True),
            lambda: pinned.to("cuda"),
            lambda: torch.tensor([1.0, 2.0], device="cuda"),
            lambda: x.new_tensor([1.0]),
            lambda: x[torch.tensor([0, 1])],
            lambda: x[[0, 1]],
            lambda: x.copy_(here),
            lambda: here.copy_(x),
        ):
            seen.reset()
            waiting()
            assert seen.waits.total() >= 1
        for quick in (
            lambda: pinned.to("cuda", non_blocking=True),
            lambda: pinned[1:].to("cuda", non_blocking=True),
            lambda: torch.empty(3, pin_memory=True).to("cuda", non_blocking=True),
            lambda: torch.zeros(3, device="cuda"),
            lambda: torch.where(mask, x, 0),
            lambda: x.masked_fill(mask, 0),
            lambda: x[1:, ::2],
            lambda: x[torch.arange(2, device="cuda")],
            lambda: x.to("cuda"),
            lambda: x.__setitem__(mask, 0),
        ):
            seen.reset()
            quick()
            assert not seen.waits


def test_the_place_of_a_wait_is_named():
    with pretended_gpu() as seen:
        torch.rand((), device="cuda").item()
    ((what, where),) = seen.waits
    assert what == "_local_scalar_dense"
    assert where.startswith("tests/pretended/test_pretended_gpu.py:")


def test_kernels_and_float64_are_counted():
    with pretended_gpu() as seen:
        x = torch.rand(4, 4, device="cuda")
        seen.reset()
        (x.view(16)[2:].unsqueeze(0) * 2 + 1).relu()  # views are no kernels
        assert seen.kernels.total() == 3
        assert not seen.float64
        x.double().sum()
        assert seen.float64.total() == 1


def test_lists_are_one_kernel_only_where_torch_has_one():
    with pretended_gpu() as seen:
        some = [torch.rand(3, 4, device="cuda") for _ in range(5)]
        others = [torch.rand(4, 3, device="cuda").T for _ in range(5)]  # another layout in memory
        seen.reset()
        torch._foreach_mul_(some, 2)
        torch._foreach_add_(some, [each.clone() for each in some])
        assert seen.kernels.total() == 2 + 5  # and the copies
        seen.reset()
        torch._foreach_add_(some, others)
        assert seen.kernels.total() == 5


def trained(device: str) -> nn.Module:
    """A small network after two steps on a device."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    image = torch.rand(6, 3, 8, 8)
    net(image)
    world = World(torch.device(device))
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)  # before the network is moved, as in every method
    world.place([net], channels_last=True)
    for _ in range(2):
        world.backward(net(image.to(device)).square().mean(), optimizer)
        optim.take_step(optimizer)
    return net


def test_training_gives_the_values_of_the_cpu(tmp_path: Path):
    with pretended_gpu():
        there = trained("cuda")
        assert all(p.device.type == "cuda" for p in there.parameters())
        assert all(isinstance(p, nn.Parameter) for p in there.parameters())
        assert torch.equal(copy.deepcopy(there)[0].weight, there[0].weight)
        torch.save(there.state_dict(), tmp_path / "net.pt")
    saved = torch.load(tmp_path / "net.pt", weights_only=True)
    here = trained("cpu").state_dict()
    assert saved.keys() == here.keys()
    assert all(type(saved[name]) is Tensor and torch.equal(saved[name], here[name]) for name in here)


def test_nothing_is_pretended_afterwards():
    before = (torch.cuda.is_available, torch.autocast.__init__, Tensor.pin_memory)
    with pretended_gpu():
        assert torch.cuda.is_available()
    assert (torch.cuda.is_available, torch.autocast.__init__, Tensor.pin_memory) == before
