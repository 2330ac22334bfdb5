"""DeepCluster, SeLa and CliqueCNN: their clusterings against loops and other libraries, and their commands."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cluster_cases import COUNT, Noise, build
from helpers.command_line import Refused
from helpers.nested import tensors
from scipy import ndimage
from scipy.cluster.vq import kmeans2
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn.functional import normalize

from kintsugi.augment import cropping
from kintsugi.color import rgb_to_lab
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.planes import Planes
from kintsugi.pretext import cliquecnn, clusters, deepcluster, sela
from kintsugi.rng import generator
from kintsugi.train import checkpoint
from kintsugi.train.log import panel

TINY = (
    "--encoder alexnet --size 32 --short-side 48 --batch 4 --steps 6 --log-every 1 --show-every 3 --eval-every 3 "
    "--save-every 2 --eval-images 4 --device cpu"
).split()
METHODS = {"deepcluster": deepcluster, "sela": sela, "cliquecnn": cliquecnn}
# What is found of all images is found anew before steps 0 and 3, and before 0, 1 and 3.
EXTRA = {
    "deepcluster": "--clusters 4 --components 6 --every 3 --strength 1".split(),
    "sela": "--clusters 4 --heads 2 --labelings 4".split(),
    "cliquecnn": "--cliques 4 --members 3 --group 2 --components 6 --rounds 2".split(),
}


@pytest.fixture(scope="module", params=METHODS)
def whole(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each method that nothing stopped; its folder is called like the method."""
    method = request.param
    folder = tmp_path_factory.mktemp("whole") / method
    METHODS[method].main([*TINY, *EXTRA[method], "--data", str(photos), "--out", str(folder)])
    return folder


def units(count: int, dim: int, key: int = 0) -> Tensor:
    return normalize(torch.randn(count, dim, generator=generator(1, key)), dim=1)


# --- the commands ---------------------------------------------------------------------------------------------


def test_a_run_resumed_between_two_clusterings_ends_with_the_same_state(whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "parts")
    for step in (4, 6):
        (tmp_path / f"parts/step-0000000{step}.pt").unlink()
    METHODS[whole.name].main(["--resume", "--out", str(tmp_path / "parts")])
    one, other = (tensors(checkpoint.load(checkpoint.find(run))["state"]) for run in (whole, tmp_path / "parts"))
    assert len(one) > 80
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_a_run_leaves(whole: Path):
    events = EventAccumulator(str(whole), size_guidance={"images": 0}).Reload()
    kind = "cliques/within" if whole.name == "cliquecnn" else "clusters/nmi_before"
    assert {panel(name) for name in (kind, "train/accuracy", "heldout/accuracy", "heldout/chance")} <= set(
        events.Tags()["scalars"]
    )
    assert [picture.step for picture in events.Images("pictures/clusters in rows")] == [3, 6]
    rows = json.loads((whole / "quality.json").read_text())
    assert list(rows) == ["chance", whole.name]
    encoder = checkpoint.load_encoder(whole, "encoder")
    assert encoder(torch.rand(2, 3, 64, 96))[32].shape == (2, 256, 2, 3)


@pytest.mark.parametrize(
    ("module", "args", "said"),
    [
        ("deepcluster", ["--clusters", "1"], "--clusters must be at least 2, not 1"),
        ("deepcluster", ["--smallest-crop", "0"], "--smallest-crop must be in"),
        ("deepcluster", ["--weight-decay", "-1"], "--weight-decay must be at least 0, not -1"),
        ("deepcluster", ["--sees", "gray"], "'gray'"),
        ("deepcluster", ["--every", "-1"], "--every must be at least 0"),
        ("sela", ["--sharpness", "0"], "--sharpness must be positive, not 0"),
        ("sela", ["--heads", "0"], "--heads must be at least 1, not 0"),
        ("sela", ["--lamda", "1"], "unknown option --lamda"),
        ("cliquecnn", ["--cliques", "100", "--group", "16"], "--cliques 100: use a multiple of --group 16"),
        ("cliquecnn", ["--batch", "24", "--group", "16"], "--batch 24: use a multiple of --group 16"),
        ("cliquecnn", ["--batch", "72", "--members", "8"], "at most 8 times it"),
        ("cliquecnn", ["--size", "16"], "HOG wants at least 32 px"),
    ],
)
def test_bad_settings_are_one_line(module: str, args: list[str | Path], said: str, refused: Refused):
    assert said in refused(METHODS[module].main, args)


@pytest.mark.parametrize(
    ("module", "args"),
    [("deepcluster", "--clusters 30"), ("sela", "--clusters 30"), ("cliquecnn", "--cliques 64 --group 2 --members 2")],
)
def test_too_few_images_are_one_line(module: str, args: str, photos: Path, refused: Refused):
    said = refused(METHODS[module].main, [*TINY, "--data", photos, *args.split()])
    assert "there are only 2" in said


# --- what the three share -------------------------------------------------------------------------------------


def test_whole_is_every_image_in_order():
    shared = build("deepcluster")
    shared.on_train_data(Noise())
    found, labels = shared.whole(lambda image: image.flatten(1))
    assert torch.equal(labels, Noise.labels)
    last = cropping.center_crops(Noise().batch(torch.tensor([24])), 32)
    torch.testing.assert_close(found[24:], last.flatten(1))


def test_heldout_figures_count_by_clustering(monkeypatch: pytest.MonkeyPatch):
    shared = build("deepcluster")
    monkeypatch.setattr(shared, "assign", lambda image: torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]]))
    monkeypatch.setattr(shared, "classify", lambda image: torch.tensor([[0, 0, 1, 0], [0, 1, 2, 0]]))
    figures = shared.evaluate([Noise().batch(torch.arange(4))])
    assert figures["accuracy"] == pytest.approx(100 * 5 / 8)
    assert figures["chance"] == pytest.approx(100 * (3 / 4 + 1 / 4) / 2)
    assert figures["above_chance"] == pytest.approx(12.5)


def test_scalars_of_a_clustering_equal_loops():
    before = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    labels = torch.tensor([3, 3, 0, 0, 0, 0, 0, 1, 1, 3])
    truth = torch.tensor([-1, 0, 0, 1, 1, 1, 1, 1, -1, 0])
    found = clusters.clustering_scalars(labels, 5, before, truth)

    def entropy(values: list) -> float:
        return -sum(n / len(values) * math.log(n / len(values)) for n in Counter(values).values())

    def information(a: list, b: list) -> float:
        joint = entropy(list(zip(a, b, strict=True)))
        return (entropy(a) + entropy(b) - joint) / math.sqrt(entropy(a) * entropy(b))

    known = [i for i in range(10) if truth[i] >= 0]
    wanted = {
        "largest": 0.5,
        "smallest": 0.0,
        "empty": 2,
        "reassigned": 1 - (2 + 4 + 2) / 10,
        "nmi_before": information(labels.tolist(), before.tolist()),
        "nmi_truth": information(labels[known].tolist(), truth[known].tolist()),
    }
    assert {name.partition("/")[2]: value.item() for name, value in found.items()} == pytest.approx(wanted)
    renamed = torch.tensor([4, 2, 0, 1, 3])[labels]
    again = clusters.clustering_scalars(renamed, 5, before, truth)
    assert {name: value.item() for name, value in again.items()} == pytest.approx(
        {name: value.item() for name, value in found.items()}
    )


def test_members_are_of_their_clusters_from_large_to_small():
    labels = torch.tensor([5] * 7 + [1] * 3 + [2] * 12)
    table = clusters.members(labels, rows=3, columns=4)
    assert [labels[row[row >= 0]].unique().tolist() for row in table] == [[2], [5], [1]]
    assert (table < 0).sum(1).tolist() == [0, 0, 1]
    assert clusters.members(labels, rows=2).shape == (2, 10)


def test_one_cluster_for_all_is_told():
    shared = build("deepcluster")
    (said,) = shared.warnings({"clusters/largest": 0.93})
    assert "one cluster holds 93% of the images" in said
    assert shared.warnings({"clusters/largest": 0.1}) == shared.warnings({}) == []


def test_whitening_equals_numpy():
    features = torch.randn(60, 8, generator=generator(0)) @ torch.randn(8, 8, generator=generator(1))
    mean, matrix = clusters.whitening(features, 5)
    found = ((features - mean) @ matrix).numpy()
    left, _, _ = np.linalg.svd(features.numpy() - features.numpy().mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :5]) * np.sqrt(60), atol=1e-3)
    np.testing.assert_allclose(found.T @ found / 60, np.eye(5), atol=1e-4)
    lengths = clusters.whitened(features, mean, matrix).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(60))
    assert clusters.whitening(features[:4], 5)[1].shape == (8, 3)  # four points span three dimensions
    flat = torch.cat([features, torch.full((60, 1), 3.0)], 1)
    assert clusters.whitening(flat, 9)[1].isfinite().all()


def test_sobel_sees_the_gradients_of_lightness():
    image = torch.rand(2, 3, 20, 24, generator=generator(0))
    seen = Planes("sobel", Backbone("alexnet")).build().backbone_input(rgb_to_lab(image))
    light = rgb_to_lab(image)[:, 0].numpy() / 100
    for picture, planes in zip(light, seen, strict=True):
        for axis, plane in ((1, planes[1]), (0, planes[2])):
            wanted = ndimage.sobel(picture, axis, mode="nearest") / 8 + 0.5
            np.testing.assert_allclose(plane.numpy(), wanted, atol=1e-5)
    gray = rgb_to_lab(image)[:, :1]
    flat = torch.cat([gray, torch.zeros_like(gray).expand(-1, 2, -1, -1)], 1)
    torch.testing.assert_close(Planes("sobel", Backbone("alexnet")).build().backbone_input(flat), seen)


# --- DeepCluster ----------------------------------------------------------------------------------------------


def test_k_means_equals_scipys():
    points = torch.randn(200, 3, generator=generator(0))
    first = points[torch.randperm(200, generator=generator(2))[:7]]
    centroids, labels = kmeans2(points.double().numpy(), first.double().numpy(), iter=6, minit="matrix")
    found = deepcluster.k_means(points, 7, 6, generator(2))
    np.testing.assert_allclose(found.numpy(), centroids, atol=1e-5)
    # scipy's labels are those before the last move of its centroids.
    assert np.array_equal(deepcluster.nearest(points, deepcluster.k_means(points, 7, 5, generator(2))).numpy(), labels)


def test_empty_clusters_are_refilled():
    """Of copies of one point only one centroid can hold points: the others must move to where there are some."""
    cloud = torch.randn(40, 2, generator=generator(0))
    points = torch.cat([torch.zeros(60, 2) + 5, cloud])
    chosen = torch.randperm(100, generator=generator(4))[:8]
    assert (chosen < 60).sum() > 2
    sizes = torch.bincount(deepcluster.nearest(points, deepcluster.k_means(points, 8, 20, generator(4))))
    assert len(sizes) == 8
    assert sizes.min() > 0


def test_each_cluster_has_the_same_share_of_the_loss():
    """The weighted mean over all images is the mean over the clusters of their means: uniform sampling's."""
    method = build("deepcluster")
    method.on_train_data(Noise())
    method.cluster(0)
    labels, weights = method.clusters["labels"], method.clusters["weights"]
    losses = torch.rand(25, generator=generator(0))
    each = [losses[labels == cluster].mean() for cluster in labels.unique()]
    assert len(set(Counter(labels.tolist()).values())) > 1
    torch.testing.assert_close((weights[labels] * losses).mean(), torch.stack(each).mean())


def test_a_clustering_makes_a_fresh_classifier():
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


@pytest.mark.parametrize("name", METHODS)
def test_heldout_images_get_clusters_as_the_training_images_did(name: str):
    """Also when the encoder has moved on since."""
    method = build(name)
    method.on_train_data(Noise())
    method.update(Noise().batch(torch.arange(COUNT)), 0)
    said = method.assign(cropping.center_crops(Noise().batch(torch.arange(25)), 32))
    if isinstance(method, cliquecnn.CliqueCNN):
        exemplars = method.members[:, :, 0]  # (G,r)
        assert (said.gather(1, exemplars) == torch.arange(4)).float().mean() > 0.7  # most are near their own
    else:
        assert torch.equal(said, method.clusters["labels"].view(-1, 25))


# --- SeLa -----------------------------------------------------------------------------------------------------


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
    assert sela.labeled(log_p, sharpness, found).tolist() == labels


@pytest.mark.parametrize("spread", [0.05, 1.0, 5.0])
def test_labels_are_equally_used(spread: float):
    """Of predictions that favor a few labels by far, too."""
    random = generator(0)
    favored = spread * torch.randn(8, generator=random)
    log_p = (spread * torch.randn(800, 8, generator=random) + favored).log_softmax(1)
    plain = torch.bincount(log_p.argmax(1), minlength=8)
    assert plain.max() > 200
    factors = sela.sinkhorn(log_p, 25.0)
    sizes = torch.bincount(sela.labeled(log_p, 25.0, factors), minlength=8)
    assert sizes.min() >= 80
    assert sizes.max() <= 120
    soft = (25.0 * log_p.double() + factors).softmax(1)  # Q, whose rows' sums are equal
    torch.testing.assert_close(soft.sum(0), torch.full((8,), 100.0).double(), rtol=0.02, atol=0)


def test_a_net_that_is_too_sure_does_no_harm():
    log_p = (300 * torch.randn(50, 8, generator=generator(0))).log_softmax(1)
    assert sela.sinkhorn(log_p, 25.0).isfinite().all()


def test_labels_are_found_more_and_more_rarely():
    when = sorted(sela.labeling_steps(1000, 10))
    assert when == [0, 10, 40, 90, 160, 250, 360, 490, 640, 810]
    assert sela.labeling_steps(3, 100) == {0, 1, 2}
    assert [sela.falling(step, 400) for step in (0, 149, 150, 299, 300, 399)] == pytest.approx(
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
        said = method.heads(method.encoder.vector(features)).view(COUNT, 2, 5).log_softmax(2)
    wanted = -sum(said[n, h, labels[h, n]] for n in range(COUNT) for h in range(2)) / (2 * COUNT)
    torch.testing.assert_close(method.update(batch, 5)["loss/labels"], wanted)


# --- CliqueCNN ------------------------------------------------------------------------------------------------


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


def test_a_clique_has_no_image_twice():
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


def test_a_step_takes_as_many_images_of_each_clique_of_a_group():
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
def test_hog_has_one_length_and_knows_gradients_alone(size: int):
    image = torch.rand(2, 3, size, size, generator=generator(0))
    found = cliquecnn.hog(image)
    assert found.shape == (2, 1764)
    torch.testing.assert_close(cliquecnn.hog(0.5 * image + 0.2), found, atol=1e-3, rtol=0)
    assert (cliquecnn.hog(image.mT.contiguous()) - found).abs().max() > 0.1
