"""What the clustering methods share: their commands, features of all images, figures, whitening."""

from __future__ import annotations

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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
# Images are clustered before steps 0 and 3; by SeLa before steps 0, 1 and 3.
EXTRA = {
    "deepcluster": "--clusters 4 --components 6 --every 3 --strength 1".split(),
    "sela": "--clusters 4 --heads 2 --labelings 4".split(),
    "cliquecnn": "--cliques 4 --members 3 --group 2 --components 6 --rounds 2".split(),
}


@pytest.fixture(scope="module", params=METHODS)
def whole(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of each method, in a folder with the name of the method."""
    method = request.param
    folder = tmp_path_factory.mktemp("whole") / method
    METHODS[method].main([*TINY, *EXTRA[method], "--data", str(photos), "--out", str(folder)])
    return folder


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
    assert list(rows) == ["chance", "pixels", "random init", whole.name]
    encoder = checkpoint.load_encoder(whole, "encoder")
    assert encoder(torch.rand(2, 3, 64, 96))[32].shape == (2, 256, 2, 3)


@pytest.mark.parametrize(
    ("module", "args", "message"),
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
        ("cliquecnn", ["--size", "16"], "HOG needs at least 32 px"),
    ],
)
def test_bad_settings_are_one_line(module: str, args: list[str | Path], message: str, refused: Refused):
    assert message in refused(METHODS[module].main, args)


@pytest.mark.parametrize(
    ("module", "args"),
    [("deepcluster", "--clusters 30"), ("sela", "--clusters 30"), ("cliquecnn", "--cliques 64 --group 2 --members 2")],
)
def test_too_few_images_are_one_line(module: str, args: str, photos: Path, refused: Refused):
    message = refused(METHODS[module].main, [*TINY, "--data", photos, *args.split()])
    assert "there are only 2" in message


def test_features_of_all_images_are_in_order():
    shared = build("deepcluster")
    shared.on_train_data(Noise())
    found, labels = shared.features_of_all(lambda image: image.flatten(1))
    assert torch.equal(labels, Noise.labels)
    last = cropping.center_crops(Noise().batch(torch.tensor([24])), 32)
    torch.testing.assert_close(found[24:], last.flatten(1))


def test_heldout_figures_count_by_clustering(monkeypatch: pytest.MonkeyPatch):
    shared = build("deepcluster")
    monkeypatch.setattr(shared, "assign", lambda image: torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]]))
    monkeypatch.setattr(shared, "predict", lambda image: torch.tensor([[0, 0, 1, 0], [0, 1, 2, 0]]))
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


def test_sampled_members_of_clusters_from_large_to_small():
    labels = torch.tensor([5] * 7 + [1] * 3 + [2] * 12)
    table = clusters.sample_members(labels, rows=3, columns=4)
    assert [labels[row[row >= 0]].unique().tolist() for row in table] == [[2], [5], [1]]
    assert (table < 0).sum(1).tolist() == [0, 0, 1]
    assert clusters.sample_members(labels, rows=2).shape == (2, 10)


def test_a_warning_of_one_cluster_for_all():
    shared = build("deepcluster")
    (warning,) = shared.warnings({"clusters/largest": 0.93})
    assert "one cluster holds 93% of the images" in warning
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


@pytest.mark.parametrize("name", METHODS)
def test_heldout_images_are_assigned_like_training_images(name: str):
    """Also after the encoder has been trained further."""
    method = build(name)
    method.on_train_data(Noise())
    method.update(Noise().batch(torch.arange(COUNT)), 0)
    assigned = method.assign(cropping.center_crops(Noise().batch(torch.arange(25)), 32))
    if isinstance(method, cliquecnn.CliqueCNN):
        exemplars = method.members[:, :, 0]  # (G,r), most of which are nearest to their own clique
        assert (assigned.gather(1, exemplars) == torch.arange(4)).float().mean() > 0.7
    else:
        assert torch.equal(assigned, method.clusters["labels"].view(-1, 25))
