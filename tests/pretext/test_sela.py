"""SeLa: labels that are used equally often."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.cluster_cases import COUNT, Noise, build

from kintsugi.pretext import sela
from kintsugi.rng import generator


def test_sinkhorn_equals_nested_loops():
    log_p = (2 * torch.randn(12, 3, generator=generator(0))).log_softmax(1)
    sharpness = 3.0
    p = [[math.exp(sharpness * value) for value in row] for row in log_p.double().tolist()]
    beta = [1.0] * 3
    for _ in range(2000):
        alpha = [1 / 12 / sum(p[i][j] * beta[j] for j in range(3)) for i in range(12)]
        beta = [1 / 3 / sum(p[i][j] * alpha[i] for i in range(12)) for j in range(3)]
    found = sela.sinkhorn(log_p, sharpness, tolerance=1e-9, most=5000)
    wanted = torch.tensor(beta, dtype=torch.float64).log()
    torch.testing.assert_close(found - found.mean(), wanted - wanted.mean(), atol=1e-6, rtol=0)
    labels = [max(range(3), key=lambda j: alpha[i] * p[i][j] * beta[j]) for i in range(12)]
    assert sela.assign_labels(log_p, sharpness, found).tolist() == labels


@pytest.mark.parametrize("spread", [0.05, 1.0, 5.0])
def test_labels_are_equally_frequent(spread: float):
    """Also if predictions strongly favor a few labels."""
    random = generator(0)
    favored = spread * torch.randn(8, generator=random)
    log_p = (spread * torch.randn(800, 8, generator=random) + favored).log_softmax(1)
    plain = torch.bincount(log_p.argmax(1), minlength=8)
    assert plain.max() > 200
    factors = sela.sinkhorn(log_p, 25.0)
    sizes = torch.bincount(sela.assign_labels(log_p, 25.0, factors), minlength=8)
    assert sizes.min() >= 80
    assert sizes.max() <= 120
    soft = (25.0 * log_p.double() + factors).softmax(1)  # Q, whose column sums are equal
    torch.testing.assert_close(soft.sum(0), torch.full((8,), 100.0).double(), rtol=0.02, atol=0)


def test_extremely_confident_predictions_stay_finite():
    log_p = (300 * torch.randn(50, 8, generator=generator(0))).log_softmax(1)
    assert sela.sinkhorn(log_p, 25.0).isfinite().all()


def test_labels_are_assigned_more_and_more_rarely():
    when = sorted(sela.labeling_steps(1000, 10))
    assert when == [0, 10, 40, 90, 160, 250, 360, 490, 640, 810]
    assert sela.labeling_steps(3, 100) == {0, 1, 2}
    assert [sela.lr_factor(step, 400) for step in (0, 149, 150, 299, 300, 399)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_heads_have_their_own_labels_and_losses():
    method = build("sela")
    method.on_train_data(Noise())
    batch = Noise().batch(torch.arange(COUNT))
    method.label(0)
    logits = method.split(torch.arange(2 * 10).view(2, 10).float())  # (H,n,K)
    assert logits[1, 0].tolist() == [5, 6, 7, 8, 9]
    labels = method.clusters["labels"]
    assert labels.shape == (2, 25)
    assert not torch.equal(labels[0], labels[1])
    image = method.view(batch, 5)
    with torch.no_grad():
        features = method.encoder.train()(image)
        log_p = method.heads(method.encoder.vector(features)).view(COUNT, 2, 5).log_softmax(2)
    wanted = -sum(log_p[n, h, labels[h, n]] for n in range(COUNT) for h in range(2)) / (2 * COUNT)
    torch.testing.assert_close(method.update(batch, 5)["loss/labels"], wanted)
