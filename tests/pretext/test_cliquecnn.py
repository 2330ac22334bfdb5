"""CliqueCNN: cliques, groups of cliques, and HOG."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.cluster_cases import COUNT, Noise, build
from torch import Tensor
from torch.nn.functional import normalize

from kintsugi.pretext import cliquecnn
from kintsugi.rng import generator


def units(count: int, dim: int, key: int = 0) -> Tensor:
    return normalize(torch.randn(count, dim, generator=generator(1, key)), dim=1)


def test_cliques_equal_nested_loops():
    points = units(40, 4)
    found = cliquecnn.find_cliques(points, 6, 4, generator(3))
    exemplars = torch.randperm(40, generator=generator(3))[:6].tolist()
    for exemplar, clique in zip(exemplars, found.tolist(), strict=True):
        near = sorted(range(40), key=lambda i: -float(points[i] @ points[exemplar]))[:12]
        members = [exemplar]
        while len(members) < 4:
            left = [i for i in near if i not in members]
            members.append(max(left, key=lambda i: min(float(points[i] @ points[m]) for m in members)))
        assert clique == members


def test_a_clique_holds_no_image_twice():
    copies = units(3, 4).repeat_interleave(5, 0)
    for clique in cliquecnn.find_cliques(copies, 15, 6, generator(0)).tolist():
        assert len(set(clique)) == 6


def test_groups_equal_nested_loops_and_hold_each_clique_once():
    centers = units(12, 3)
    found = cliquecnn.find_groups(centers, 4, generator(3)).tolist()
    assert sorted(itertools.chain(*found)) == list(range(12))
    left = torch.randperm(12, generator=generator(3)).tolist()
    for group in found:
        members = [left.pop(0)]
        while len(members) < 4:
            best = min(sorted(left), key=lambda i: max(float(centers[i] @ centers[m]) for m in members))
            members.append(best)
            left.remove(best)
        assert group == members


def test_scalars_of_cliques_equal_loops():
    points, members = units(9, 4), torch.tensor([[[0, 1, 2], [3, 4, 5]]])
    truth = torch.tensor([0, 0, 1, 2, 2, 2, 0, 0, 0])
    found = cliquecnn.clique_scalars(points, members, truth)
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)]
    within = sum(float(points[a] @ points[b]) for a, b in pairs) / 6
    between = float(normalize(points[:3].mean(0), dim=0) @ normalize(points[3:6].mean(0), dim=0))
    wanted = {"within": within, "between": between, "covered": 6 / 9, "same_label": 3 / 4}
    assert {name.partition("/")[2]: v.item() for name, v in found.items()} == pytest.approx(wanted, abs=1e-5)


def test_a_step_takes_equally_many_images_of_each_clique():
    method = build("cliquecnn")
    method.on_train_data(Noise())
    method.find(0)
    members = method.clusters["members"]
    seen = []
    for step in range(6):
        group, indices, clique = method.choose(step)
        seen.append(group)
        assert all(i in members[group, c] for i, c in zip(indices, clique, strict=True))
        assert torch.bincount(clique).tolist() == [2] * 4
        assert len({(int(i), int(c)) for i, c in zip(indices, clique, strict=True)}) == COUNT
        assert sorted(clique[:4].tolist()) == [0, 1, 2, 3]  # the first of two ranks has all cliques
    assert [sorted(seen[i : i + 2]) for i in (0, 2, 4)] == [[0, 1]] * 3


@pytest.mark.parametrize("size", [32, 75])
def test_hog_has_one_length_and_depends_on_gradients_alone(size: int):
    image = torch.rand(2, 3, size, size, generator=generator(0))
    found = cliquecnn.hog(image)
    assert found.shape == (2, 1764)
    torch.testing.assert_close(cliquecnn.hog(0.5 * image + 0.2), found, atol=1e-3, rtol=0)
    assert (cliquecnn.hog(image.mT.contiguous()) - found).abs().max() > 0.1
