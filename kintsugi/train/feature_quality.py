"""Two figures of features that need no labels, by which every training shows whether its features get better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from kintsugi.augment import color_jitter, cropping
from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.metrics.neighbors import same_image
from kintsugi.metrics.spread import spread
from kintsugi.nets.encoder import Encoder
from kintsugi.train import inference
from kintsugi.train.method import Batch, C, Method

NAMES = frozenset({"rank", "same_image"})
IMAGES = 256
"""The most images that are measured. The cost is three forward passes of each."""
_SMALLEST = 0.2  # fraction of the image's area that a view shows
_VIEWS = 6  # the last number but one of the random key


def quality(method: Method[C], batches: Iterable[Batch], known: Mapping[str, float]) -> dict[str, float]:
    """The figures in ``NAMES`` of a method's first encoder of RGB, on held-out images.

    Without those in ``known``, the figures that the method computes itself; empty if it has no encoder of RGB.
    """
    encoder = _encoder(method, known)
    if encoder is None:
        return {}
    return _missing(_figures(method, batches, partial(inference.features, encoder, world=method.world)), known)


def baselines(
    method: Method[C], batches: Iterable[Batch], known: Mapping[str, Mapping[str, float]], figures: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """The method's baselines ``known``, and in their rows ``pixels`` and ``random init`` what ``quality`` measures.

    figures: of the method's ``evaluate``. Rows that do not exist are added at the end.
    """
    rows = {name: dict(row) for name, row in known.items()}
    encoder = _encoder(method, figures)
    if encoder is None:
        return rows
    kept, size = list(batches), method.config.size
    centers = (cropping.center_crops(method.rgb_images(batch), size) for batch in kept)
    untrained = inference.untrained_features(encoder, method.config.seed, centers, method.world)
    for name, extract in untrained.items():
        row = rows.setdefault(name, {})
        row |= _missing(_figures(method, kept, extract), row)
    return rows


def _encoder(method: Method[C], known: Mapping[str, float]) -> Encoder | None:
    """The first encoder of RGB; None if there is none, or if the method computes all the figures itself."""
    if known.keys() >= NAMES:
        return None
    return next((encoder for encoder in method.encoders().values() if encoder.planes == 3), None)


def _missing(found: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if name not in known}


def _figures(method: Method[C], batches: Iterable[Batch], features: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Figures of features, (n,3,S,S) in [0,1] -> (n,D), of at most ``IMAGES`` images. The same views at every call.

    rank: the effective rank of the central squares' features (``metrics.spread.spread``). same_image: how often, per
    cent, a view's nearest other view shows the same image (``metrics.neighbors.same_image``). Views are random crops
    of at least a fifth of an image, with SimCLR's color changes.
    """
    size, seed = method.config.size, method.config.seed
    centers: list[Tensor] = []
    pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
    count = 0
    for number, batch in enumerate(batches):
        if count >= IMAGES:
            break
        images = method.rgb_images(batch)
        few = {name: images[name][: IMAGES - count] for name in ("image", "extent")}
        n = len(few["image"])
        if n == 0:
            continue
        count += n
        centers.append(features(cropping.center_crops(few, size)))
        for which, views in enumerate(pairs):
            key = (seed, number, _VIEWS, which)
            view = color_jitter.random_views(few, ColorAugmentation(), size, _SMALLEST, n, slice(None), key)
            views.append(features(view))
    if not count:
        return {}
    first, second = (torch.cat(views)[None] for views in pairs)  # (1,N,D)
    rank = spread(torch.cat(centers))["spread/rank"].item()
    return {"rank": rank, "same_image": 100 * same_image(first, second)}
