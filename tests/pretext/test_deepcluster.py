"""DeepCluster: k-means, weights of small clusters, and a fresh classifier after each clustering."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from helpers.cluster_cases import COUNT, Noise, build
from scipy.cluster.vq import kmeans2

from kintsugi.pretext import deepcluster
from kintsugi.rng import generator


def test_k_means_equals_scipys():
    points = torch.randn(200, 3, generator=generator(0))
    first = points[torch.randperm(200, generator=generator(2))[:7]]
    centroids, labels = kmeans2(points.double().numpy(), first.double().numpy(), iter=6, minit="matrix")
    found = deepcluster.k_means(points, 7, 6, generator(2))
    np.testing.assert_allclose(found.numpy(), centroids, atol=1e-5)
    # scipy's labels are from before the last update of its centroids.
    assert np.array_equal(deepcluster.nearest(points, deepcluster.k_means(points, 7, 5, generator(2))).numpy(), labels)


def test_empty_clusters_are_refilled():
    """Among copies of one point only one centroid keeps points: the others must move to other points."""
    cloud = torch.randn(40, 2, generator=generator(0))
    points = torch.cat([torch.zeros(60, 2) + 5, cloud])
    chosen = torch.randperm(100, generator=generator(4))[:8]
    assert (chosen < 60).sum() > 2
    sizes = torch.bincount(deepcluster.nearest(points, deepcluster.k_means(points, 8, 20, generator(4))))
    assert len(sizes) == 8
    assert sizes.min() > 0


def test_each_cluster_contributes_equally_to_the_loss():
    """The weighted mean over all images equals the mean of the clusters' means, as with uniform sampling."""
    method = build("deepcluster")
    method.on_train_data(Noise())
    method.cluster(0)
    labels, weights = method.clusters["labels"], method.clusters["weights"]
    losses = torch.rand(25, generator=generator(0))
    each = [losses[labels == cluster].mean() for cluster in labels.unique()]
    assert len(set(Counter(labels.tolist()).values())) > 1
    torch.testing.assert_close((weights[labels] * losses).mean(), torch.stack(each).mean())


def test_a_clustering_resets_the_classifier():
    method = build("deepcluster")
    method.on_train_data(Noise())
    for step in range(2):
        method.update(Noise().batch(torch.arange(COUNT)), step)
    optimizer = method.optimizers["both"]
    assert method.classifier.bias.abs().sum() > 0
    method.cluster(4)
    assert method.classifier.bias.abs().sum() == 0
    assert 0.005 < method.classifier.weight.std() < 0.02
    assert not any(parameter in optimizer.state for parameter in method.classifier.parameters())
    assert len(optimizer.state) == len(list(method.encoder.parameters()))
