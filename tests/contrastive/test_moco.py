"""MoCo: its keys, its queue and its two versions."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.view_cases import BATCH, small_moco
from torch import Tensor
from torch.nn.functional import normalize

from kintsugi.contrastive import moco
from kintsugi.rng import generator
from kintsugi.train.dist import World


def test_keys_are_returned_in_the_order_of_their_images():
    method = small_moco()
    image = torch.rand(8, 3, 32, 32, generator=generator(1))
    encoder, projector = method.key_net
    features = encoder(image)
    expected = torch.nn.functional.normalize(projector(features[max(features)].mean((2, 3))), dim=1)
    torch.testing.assert_close(method.encode_keys(image[None], 3), expected[None])


def test_the_keys_of_a_step_enter_the_queue_after_its_loss(monkeypatch: pytest.MonkeyPatch):
    method, seen = small_moco(), []

    def watched(logits: Tensor, positive: Tensor) -> Tensor:
        seen.append((logits.detach(), method.queue.keys.clone()))
        return torch.nn.functional.cross_entropy(logits, positive)

    monkeypatch.setattr(moco, "info_nce", watched)
    before = method.queue.keys.clone()
    method.update(method.inputs(BATCH, 0), 0)
    assert torch.equal(seen[0][1], before)
    assert (method.queue.keys != before).any(1).sum() == 8
    assert seen[0][0].shape == (8, 1 + 24)


def test_the_key_network_is_updated_before_it_is_used():
    method = small_moco(momentum=0.9)
    with torch.no_grad():
        for p in method.query_net.parameters():
            p.add_(0.1)
    expected = [
        0.9 * k + 0.1 * q for k, q in zip(method.key_net.parameters(), method.query_net.parameters(), strict=True)
    ]
    method.update(method.inputs(BATCH, 0), 0)
    for found, wanted in zip(method.key_net.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


class Ranks:
    """A world of two ranks in one process, each in its own thread, which meet in ``gather``."""

    def __init__(self) -> None:
        self.shelf: dict[int, Tensor] = {}
        self.barrier = threading.Barrier(2)

    def world(self, rank: int) -> World:
        ranks = self

        class Half(World):
            def gather(self, mine: Tensor) -> Tensor:
                ranks.shelf[rank] = mine
                ranks.barrier.wait(30)
                whole = torch.cat([ranks.shelf[0], ranks.shelf[1]])
                ranks.barrier.wait(30)
                return whole

        return Half(torch.device("cpu"), rank, 2)


def test_keys_are_normalized_in_shuffled_batches():
    """The batch norm of each rank sees images of all ranks, and each rank receives the keys of its own images."""
    ranks, whole = Ranks(), torch.rand(8, 3, 32, 32, generator=generator(1))
    methods = [small_moco(ranks.world(rank), norm="batch") for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(methods[rank].encode_keys, whole[None, 4 * rank : 4 * rank + 4], 3) for rank in (0, 1)]
        (found,), again = (part.result() for part in parts)
    torch.testing.assert_close(found, again[0])
    order = torch.randperm(8, generator=generator(methods[0].config.seed, 2 * 3, 3)).tolist()
    assert sorted(order[:4]) != [0, 1, 2, 3]
    encoder, projector = small_moco(norm="batch").key_net
    expected = torch.empty(8, 16)
    for rows in (order[:4], order[4:]):
        features = encoder(whole[rows])
        expected[rows] = torch.nn.functional.normalize(projector(features[max(features)].mean((2, 3))), dim=1)
    torch.testing.assert_close(found, expected)


def test_version_1_has_the_settings_of_its_paper():
    method = small_moco(version=1, temperature=0.0)
    assert (method.temperature, small_moco().temperature) == (0.07, 0.2)
    assert len(method.projector) == 1
    assert [method.recipes()[0].blur, method.recipes()[0].jitter] == [0, 1]
    rates = [moco.schedule(1, step, 200) for step in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert moco.schedule(2, 100, 200) == pytest.approx(0.5)


def test_symmetric_adds_the_losses_of_both_directions():
    """The gradient of a symmetric step is the sum of two steps, the second with the views exchanged."""
    grads = []
    for symmetric, exchanged in ((True, False), (False, False), (False, True)):
        method = small_moco(symmetric=symmetric, optimizer="sgd", lr=0.0, weight_decay=0.0)
        method.queue.push(normalize(torch.randn(24, 16, generator=generator(1)), dim=1))
        view = method.view
        method.view = lambda batch, which, step, e=exchanged, v=view: v(batch, which ^ e, step)  # type: ignore[method-assign]
        method.update(method.inputs(BATCH, 0), 0)
        moments = method.optimizers["both"].state.values()
        grads.append(torch.cat([inner["momentum_buffer"].flatten() for inner in moments]))
    assert grads[1].norm() > 0.1
    assert (grads[1] - grads[2]).norm() > 0.1 * grads[1].norm()
    torch.testing.assert_close(grads[0], grads[1] + grads[2], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("norm", ["split", "group"])
def test_both_views_in_one_batch_give_the_step_of_one_pass_for_each(norm: str):
    """Loss, gradients and keys, within rounding, with 7 images, which cannot be split, and with 12, which can."""
    for count in (7, 12):
        batch = {name: torch.cat([value, value.flip(0)])[:count] for name, value in BATCH.items()}
        found = []
        for together in (True, False):
            method = small_moco(norm=norm, batch=count, symmetric=True, optimizer="sgd", lr=0.0, weight_decay=0.0)
            method.queue.push(normalize(torch.randn(24, 16, generator=generator(1)), dim=1))
            if not together:
                method.together = False
                for layer in method.modules():
                    layer.batches = 1  # type: ignore[assignment]
            loss = method.update(method.inputs(batch, 0), 0)["loss/info_nce"]
            gradients = [inner["momentum_buffer"].flatten() for inner in method.optimizers["both"].state.values()]
            found.append((loss, torch.cat(gradients), method.queue.keys))
        (loss, gradients, keys), (loss_of_passes, gradients_of_passes, keys_of_passes) = found
        torch.testing.assert_close(loss, loss_of_passes)
        torch.testing.assert_close(keys, keys_of_passes, atol=1e-5, rtol=1e-4)
        assert (gradients - gradients_of_passes).norm() < 1e-4 * gradients.norm()


def test_views_pass_plain_batch_norms_one_by_one():
    method = small_moco(norm="batch", symmetric=True)
    views = torch.rand(2, 8, 3, 32, 32, generator=generator(1))
    found = method.project(method.query_net, views)
    torch.testing.assert_close(found[1:], method.project(method.query_net, views[1:]))
