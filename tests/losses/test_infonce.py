from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kintsugi.contrastive import simclr
from kintsugi.contrastive.byol import regression_loss
from kintsugi.contrastive.moco import Queue
from kintsugi.contrastive.views import mlp
from kintsugi.losses.infonce import info_nce, nt_xent_logits, retrieval
from kintsugi.metrics.neighbors import leave_one_out
from kintsugi.metrics.spread import spread
from kintsugi.nets.layers import SplitBatchNorm
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.dist import World
from kintsugi.train.ema import cosine_momentum, ema_copy, ema_update


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=generator(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b).item() / (a.norm() * b.norm()).item()


def test_nt_xent_equals_nested_loops():
    first, second, temperature = random(5, 7), random(5, 7, seed=1), 0.3
    views = [*first, *second]
    total = 0.0
    for i in range(10):
        partner = (i + 5) % 10
        others = [math.exp(cosine(views[i], views[k]) / temperature) for k in range(10) if k != i]
        total -= math.log(math.exp(cosine(views[i], views[partner]) / temperature) / sum(others))
    logits, positive = nt_xent_logits(first, second, temperature)
    assert info_nce(logits, positive).item() == pytest.approx(total / 10, rel=1e-5)


def test_retrieval_equals_nested_loops():
    first, second, temperature = random(6, 4), random(6, 4, seed=1), 0.5
    logits, positive = nt_xent_logits(first, first + 0.4 * second, temperature)
    views = [*first, *(first + 0.4 * second)]
    hits, near, far = 0, 0.0, 0.0
    for i in range(12):
        values = {k: cosine(views[i], views[k]) for k in range(12) if k != i}
        hits += max(values, key=lambda k: values[k]) == (i + 6) % 12
        near += values.pop((i + 6) % 12)
        far += sum(values.values()) / 10
    found = retrieval(logits, positive, temperature)
    assert found["contrast/accuracy"].item() == pytest.approx(hits / 12)
    assert 0 < hits < 12
    assert found["similarity/positive"].item() == pytest.approx(near / 12, rel=1e-5)
    assert found["similarity/negative"].item() == pytest.approx(far / 12, abs=1e-6)


def test_spread_of_known_distributions():
    even = spread(random(20_000, 16))
    assert even["spread/deviation"].item() == pytest.approx(1, abs=0.01)
    assert even["spread/rank"].item() == pytest.approx(16, abs=0.05)
    point = spread(random(1, 16).expand(100, -1) + 1e-6 * random(100, 16))
    assert point["spread/deviation"].item() < 1e-4
    line = spread(random(1, 16) * torch.tensor([[1.0], [-1.0]]).repeat(50, 1))
    assert line["spread/rank"].item() == pytest.approx(1, abs=1e-3)


def test_byol_loss_is_the_squared_distance_of_unit_vectors():
    a, b = random(9, 5), random(9, 5, seed=1)
    expected = sum((x / x.norm() - y / y.norm()).square().sum().item() for x, y in zip(a, b, strict=True)) / 9
    assert regression_loss(a, b).item() == pytest.approx(expected, rel=1e-5)


def test_leave_one_out_equals_nested_loops():
    features, labels = random(30, 3), torch.arange(30) % 3
    features[:, 0] += labels
    right = 0
    for i in range(30):
        near = sorted(((cosine(features[i], features[k]), k) for k in range(30) if k != i), reverse=True)[:7]
        votes = [0.0, 0.0, 0.0]
        for similarity, k in near:
            votes[labels[k]] += math.exp(similarity / 0.1)
        right += votes.index(max(votes)) == labels[i]
    assert 10 < right < 30
    assert leave_one_out(features, labels, neighbors=7) == pytest.approx(right / 30)


def test_empty_places_of_the_queue_are_no_candidates():
    queue, query = Queue(5, 4), random(2, 4, seed=1)
    assert queue.similarities(query).tolist() == [[-torch.inf] * 5] * 2
    for count in (2, 4, 5, 5):  # the third push fills it, the fourth starts again at its head
        queue.push(random(2, 4, seed=count))
        found = queue.similarities(query)
        for q, row in zip(query, found, strict=True):
            assert row[:count].tolist() == pytest.approx([float(q @ k) for k in queue.keys[:count]], abs=1e-6)
        assert (found[:, count:] == -torch.inf).all()
    logits = torch.cat([torch.ones(2, 1), Queue(5, 4).similarities(query)], 1)
    logged = retrieval(logits, torch.zeros(2, dtype=torch.int64), 1.0)
    assert all(value.isfinite() for value in logged.values())


def test_the_queue_is_a_ring():
    queue, shadow = Queue(7, 3), []
    for i in range(6):
        keys = random(3, 3, seed=i)
        shadow += list(keys)
        queue.push(keys)
    assert {tuple(k.tolist()) for k in queue.keys} == {tuple(k.tolist()) for k in shadow[-7:]}
    again = Queue(7, 3)
    again.load_state_dict(queue.state_dict())
    again.push(random(3, 3, seed=9))
    queue.push(random(3, 3, seed=9))
    assert torch.equal(queue.keys, again.keys)  # the next place to write is in the state too


def test_the_ema_update_is_an_average_and_keeps_statistics():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = ema_copy(net)
    before = [p.clone() for p in target.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    net(random(8, 3))
    ema_update(target, net, 0.9)
    for old, new, now in zip(before, net.parameters(), target.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)
    assert torch.equal(target[1].running_mean, torch.zeros(4))
    assert not any(p.requires_grad for p in target.parameters())


def test_momentum_rises_to_one_along_a_cosine():
    assert cosine_momentum(0.996, 0, 100) == pytest.approx(0.996)
    assert cosine_momentum(0.996, 50, 100) == pytest.approx(0.998)
    assert cosine_momentum(0.996, 100, 100) == 1


def test_split_norm_is_batch_norm_of_each_part():
    norm, x = SplitBatchNorm(5, splits=4), random(12, 5, 3, 2)
    plain = nn.BatchNorm2d(5)

    def norm_of_parts(x: Tensor) -> Tensor:
        return torch.cat([nn.BatchNorm2d(5)(part) for part in x.split(3)])

    expected = norm_of_parts(x)
    torch.testing.assert_close(norm(x), expected)
    means = [x[i : i + 3].mean((0, 2, 3)) for i in range(0, 12, 3)]
    torch.testing.assert_close(norm.running_mean, 0.1 * torch.stack(means).mean(0))
    pair = random(2, 5, 1, 1)
    torch.testing.assert_close(SplitBatchNorm(5)(pair), nn.BatchNorm2d(5)(pair))  # too few images to split
    norm.batches = 2
    before = norm.running_mean.clone()
    torch.testing.assert_close(norm(torch.cat([x, 2 * x])), torch.cat([expected, norm_of_parts(2 * x)]))
    means = [part.mean((0, 2, 3)) for part in (x, 2 * x)]
    torch.testing.assert_close(norm.running_mean, 0.81 * before + 0.19 * torch.stack(means).mean(0))
    plain.load_state_dict(norm.state_dict(), strict=False)
    torch.testing.assert_close(norm.eval()(x), plain.eval()(x))


def test_lars_equals_one_tensor_at_a_time():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    twin = ema_copy(net).requires_grad_(True)
    ours = optim.Lars(optim.lars_groups(net, 0.1), lr=0.5, momentum=0.9, eta=0.02)
    speeds = [torch.zeros_like(p) for p in twin.parameters()]
    for step in range(3):
        x = random(6, 3, seed=step)
        for model in (net, twin):
            model.zero_grad()
            model(x).square().mean().backward()
        ours.step()
        with torch.no_grad():
            for p, speed in zip(twin.parameters(), speeds, strict=True):
                assert p.grad is not None
                change = p.grad + 0.1 * p if p.ndim > 1 else p.grad
                scale = 0.02 * p.norm() / change.norm() if p.ndim > 1 else 1
                speed.mul_(0.9).add_(scale * change)
                p.sub_(0.5 * speed)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [optim.warmup_cosine(step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0, abs=1e-3)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_heads_have_the_papers_layers():
    kinds = [type(layer).__name__ for layer in mlp((8, 8, 4), norm=True)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    world = World(torch.device("cpu"))
    made = simclr.SimCLR(simclr.demo(), world).projector
    assert [type(layer).__name__ for layer in made] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert all(layer.bias is None for layer in made if isinstance(layer, nn.Linear))
    nothing_of_the_batch = simclr.SimCLR(replace(simclr.demo(), norm="group"), world)
    layers = [layer for net in nothing_of_the_batch.children() for layer in net.modules()]
    assert not any(isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) for layer in layers)


def test_each_rule_decays_the_right_parameters():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    before = [p.clone() for p in net.parameters()]
    for rule, changed in (("lars", [True, False, False, False]), ("sgd", [True] * 3 + [False])):
        for p, old in zip(net.parameters(), before, strict=True):
            p.data.copy_(old)
            p.grad = torch.zeros_like(p)
        optim.make_optimizer(rule, net, 0.1, 0.5).step()  # only the weight decay changes them; a fresh norm's bias is 0
        moved = [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
        assert moved == changed, rule
    assert isinstance(optim.make_optimizer("adam", net, 0.1, 0.5), torch.optim.AdamW)
