"""Nearest neighbors: classification by weighted votes (Wu 2018, arXiv:1805.01978, section 3.4) or by the nearest class
mean (Wang 2019, arXiv:1911.04623), and retrieval."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def vote(similarity: Tensor, labels: Tensor, classes: int, neighbors: int, temperature: float = 0.1) -> Tensor:
    """Predicts the classes (M,) of M images, by a vote of the ``neighbors`` most similar ones of N labeled images.

    similarity (M,N): cosines s; each vote has the weight exp(s / temperature). labels int64 (N,): classes of the N
    images. classes: their number.
    """
    near, index = similarity.topk(min(neighbors, len(labels)), dim=1)
    votes = torch.zeros(len(similarity), classes, device=similarity.device)
    votes.scatter_add_(1, labels[index], (near / temperature).exp())
    return votes.argmax(1)


def leave_one_out(features: Tensor, labels: Tensor, neighbors: int = 20) -> float:
    """Accuracy, in [0,1], of predicting each image's label by a vote of its nearest other images.

    features (N,D); labels int64 (N,). neighbors: number of images that vote.
    """
    unit = normalize(features.float(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    predicted = vote(similarity, labels, int(labels.amax()) + 1, min(neighbors, len(unit) - 1))
    return (predicted == labels).float().mean().item()


def same_image(first: Tensor, second: Tensor) -> float:
    """How often, in [0,1], a view's nearest view among those of the other kind shows the same image, by cosine.

    first, second (P,N,D): features of two views of each of N images, in P draws; row i of both shows image i. Counts
    first views among second ones and vice versa. Chance is 1 / N.
    """
    similarity = normalize(first, dim=2) @ normalize(second, dim=2).mT  # (P,N,N)
    own = torch.arange(similarity.shape[1], device=similarity.device)
    hits = torch.stack([similarity.argmax(1) == own, similarity.argmax(2) == own])
    return hits.float().mean().item()


CHUNK = 512  # images that are compared at once, which limits the memory for similarities


def classify(known: Tensor, labels: Tensor, queries: Tensor, classes: int, neighbors: int) -> Tensor:
    """Predicts the classes (M,) of queries (M,C), by votes of their neighbors among known features (N,C).

    labels int64 (N,): classes of the known ones. classes: their number. neighbors: number of images that vote.
    """
    unit = normalize(known, dim=1)
    chunks = normalize(queries, dim=1).split(CHUNK)
    return torch.cat([vote(x @ unit.T, labels, classes, neighbors) for x in chunks])


def accuracy(known: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, classes: int, neighbors: int) -> float:
    """Accuracy, in [0,1], of ``classify``, where ``truth`` is the queries' classes, int64 (M,)."""
    return (classify(known, labels, queries, classes, neighbors) == truth).float().mean().item()


def class_means(known: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of the normalized features (N,C) of each class, (K,C); not a number where a class has no image.

    labels int64 (N,): classes of the features, which are centered. classes: K.
    """
    total = torch.zeros(classes, known.shape[1], device=known.device).index_add_(0, labels, normalize(known, dim=1))
    return total / torch.bincount(labels, minlength=classes)[:, None]


def nearest(means: Tensor, queries: Tensor) -> Tensor:
    """Predicts the classes (M,) of centered features (M,C): that of the nearest of the means (K,C) after normalization.

    SimpleShot's classifier, with features centered and normalized (CL2N). Classes without a mean are never predicted.
    """
    return torch.cdist(normalize(queries, dim=1), means).nan_to_num(nan=torch.inf).argmin(1)
