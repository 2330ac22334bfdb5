from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from kintsugi.data.images import open_labeled
from kintsugi.eval import classification, features, linear
from kintsugi.eval.finetune import finetune
from kintsugi.eval.tasks import FrozenFeatures
from kintsugi.eval.weights import Weights
from kintsugi.metrics import neighbors
from kintsugi.metrics.neighbors import classify as knn_classify
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.vit import ViT
from kintsugi.rng import generator
from kintsugi.train.compute import Compute
from kintsugi.train.optim import warmup_cosine

CPU = Compute(torch.device("cpu"))


def clouds(count: int, classes: int, seed: int, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Points (N,6) around each class's center, and their classes."""
    centers = torch.randn(classes, 6, generator=generator(99))
    label = torch.arange(count) % classes
    return centers[label] + spread * torch.randn(count, 6, generator=generator(seed)), label


def test_knn_is_that_of_a_loop():
    train, test = clouds(90, 3, 0, 1.5), clouds(40, 3, 1, 1.5)
    expected = []
    for x in test[0]:
        similarity = normalize(train[0], dim=1) @ normalize(x, dim=0)
        votes = torch.zeros(3)
        for i in similarity.argsort(descending=True)[:20].tolist():
            votes[train[1][i]] += torch.exp(similarity[i] / 0.1)
        expected.append(int(votes.argmax()))
    predicted = knn_classify(*train, test[0], 3, 20)
    assert predicted.tolist() == expected
    assert 0.4 < (predicted == test[1]).float().mean() < 1


def test_each_learning_rate_has_a_classifier_trained_as_if_alone():
    """Against torch's own SGD, one rate after the other."""
    (x, label), (test, truth) = clouds(64, 4, 2, 0.8), clouds(400, 4, 3, 0.8)
    rates = [1e-3, 3e-2, 3e-1]
    inputs = linear.Inputs(x, test)
    classifiers = linear.fit(inputs, label, torch.arange(64), 4, rates, 5, 60, 16)
    found = linear.score(torch.cat([classifiers(some) for some in inputs.of_test()]), truth)
    deviation, mean = torch.std_mean(x, 0, correction=0)
    for rate, accuracy in zip(rates, found.tolist(), strict=True):
        head = nn.Linear(6, 4)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        sgd, random = torch.optim.SGD(head.parameters(), rate, momentum=0.9), generator(5, 6)
        for step in range(60):
            rows = torch.randint(64, (16,), generator=random)
            sgd.param_groups[0]["lr"] = rate * warmup_cosine(step, 60, 6, cosine_from=0)
            sgd.zero_grad()
            cross_entropy(head((x[rows] - mean) / deviation), label[rows]).backward()
            sgd.step()
        with torch.no_grad():
            alone = (head((test - mean) / deviation).argmax(1) == truth).float().mean().item()
        assert accuracy == pytest.approx(alone, abs=0.006)


@pytest.mark.parametrize("known", [slice(None), slice(3, 40)])
def test_inner_products_give_the_classifier_that_features_give(known: slice):
    """Fewer images than features: the coefficients of the images are the weights of the features."""
    random = generator(8)
    x, test = torch.randn(50, 80, generator=random) + 3, torch.randn(20, 80, generator=random)
    labels = torch.randint(0, 3, (50,), generator=random)
    products, plain = linear.Inputs(x, test), linear.Inputs(x, test)
    assert products.products
    assert products.width == 50
    plain.products, plain._train, plain._test = False, x, test
    found = []
    for inputs in (products, plain):
        rows = torch.arange(50)[known]
        classifiers = linear.fit(inputs, labels, rows, 3, [1e-2, 1e-3], 1, 30, 8)
        found.append(torch.cat([classifiers(some) for some in inputs.of_test()]))
    assert found[0].std() > 0.1
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_separable_classes_are_learned_and_noise_gives_chance():
    (x, label), (test, truth) = clouds(400, 4, 4), clouds(200, 4, 5)
    assert linear.probe(linear.Inputs(x, test), label, truth, 0, 60, 16)[0] > 0.95
    noise, other = torch.randn(2, 400, 6, generator=generator(6))
    assert abs(linear.probe(linear.Inputs(noise, other), label, label, 0, 60, 16)[0] - 0.25) < 0.1


def test_average_precision_is_that_of_a_loop_over_present_and_known_classes():
    random = generator(3)
    logits = torch.randn(50, 2, 4, generator=random)
    labels = torch.randint(0, 2, (50, 4), generator=random)
    labels[:, 2] = 0  # nowhere
    labels[:9, 1] = -1
    expected = []
    for rate in range(2):
        each = []
        for k in (0, 1, 3):
            known = labels[:, k] >= 0
            ranked = labels[known, k][logits[known, rate, k].argsort(descending=True)].tolist()
            places = [place for place, truth in enumerate(ranked, 1) if truth]
            each.append(np.mean([hit / place for hit, place in enumerate(places, 1)]))  # precision at each hit
        expected.append(np.mean(each))
    assert linear.score(logits, labels).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_loss_with_several_classes_per_image_is_that_of_a_loop_over_known_labels():
    random = generator(4)
    logits = torch.randn(5, 2, 3, generator=random, dtype=torch.float64)
    labels = torch.randint(-1, 2, (5, 3), generator=random)
    total, known = 0.0, 0
    for n in range(5):
        for k in range(3):
            if labels[n, k] >= 0:
                for rate in range(2):
                    p = 1 / (1 + np.exp(-logits[n, rate, k].item()))
                    total -= np.log(p if labels[n, k] == 1 else 1 - p)
                known += 1
    assert linear.loss(logits, labels).item() == pytest.approx(total / known)


def test_several_classes_per_image_are_learned():
    random = generator(7)
    x, test = torch.randn(2, 300, 6, generator=random)
    labels, truth = (x[:, :3] > 0).long(), (test[:, :3] > 0).long()
    assert linear.probe(linear.Inputs(x, test), labels, truth, 0, 100, 32)[0] > 0.95


def test_few_labels_are_some_of_each_class():
    label = torch.tensor([0] * 50 + [1] * 30 + [2])
    few = linear.some_of_each(label, 0.1, 0, least=2)
    assert [int((few & (label == k)).sum()) for k in range(3)] == [5, 3, 1]
    assert not torch.equal(few, linear.some_of_each(label, 0.1, 1, least=2))
    held_out = linear.some_of_each(label, 0.1, 0, least=1, keep=1)
    assert [int((held_out & (label == k)).sum()) for k in range(3)] == [5, 3, 0]
    assert linear.some_of_each(torch.ones(40, 3, dtype=torch.int64), 0.1, 0, least=2).sum() == 4


def test_few_shots_predict_the_nearest_mean():
    random = generator(3)
    known, queries = torch.randn(30, 5, generator=random), torch.randn(20, 5, generator=random)
    labels = torch.arange(30) % 3
    labels[labels == 1] = 4  # classes 1 and 3 have no images
    means = neighbors.class_means(known, labels, 5)
    expected = []
    for query in queries:
        distances = {}
        for k in (0, 2, 4):
            mean = sum(x / x.norm() for x, label in zip(known, labels, strict=True) if label == k) / 10
            assert torch.allclose(means[k], mean, atol=1e-6)
            distances[k] = ((query / query.norm() - mean) ** 2).sum().item()
        expected.append(min(distances, key=distances.__getitem__))
    assert neighbors.nearest(means, queries).tolist() == expected


def test_more_shots_predict_better():
    random = generator(5)
    labels = torch.arange(400) % 4
    centers = 0.5 * torch.randn(4, 16, generator=random)
    some = features.Features({}, centers[labels] + torch.randn(400, 16, generator=random), labels)
    found = [classification.few_shots(some, some, 4, shots, 0) for shots in (1, 5, 100)]
    assert 0.25 < found[0] < found[1] < found[2]


def test_layers_are_pooled_to_about_the_given_number_of_features(photos_in_classes: Path):
    class Two(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.channels = {4: 64, 32: 512}

        def forward(self, image: Tensor) -> dict[int, Tensor]:
            return {
                s: image.mean(1, keepdim=True)[..., ::s, ::s].expand(-1, c, -1, -1) for s, c in self.channels.items()
            }

    data = open_labeled(str(photos_in_classes), 64)
    found = features.extract(Two(), data.train, 64, 9000, CPU)
    assert {stride: x.shape[1] for stride, x in found.layers.items()} == {4: 64 * 11**2, 32: 512 * 2**2}
    assert found.vector.shape == (len(data.train), 512)
    assert torch.equal(found.labels, data.train.labels)


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos_in_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of different colors, in train/ and test/."""
    root = tmp_path_factory.mktemp("classes")
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for name, tint in (("brick", (180, 80, 60)), ("leaf", (60, 150, 70))):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                noise = random.integers(-40, 40, (72, 80, 3))
                Image.fromarray((np.array(tint) + noise).clip(0, 255).astype(np.uint8)).save(
                    root / part / name / f"{i}.png"
                )
    return root


def _alexnet() -> Encoder:
    torch.manual_seed(0)
    return Backbone("alexnet").build()


def test_fine_tuning_learns_and_is_deterministic(photos_in_classes: Path):
    data = open_labeled(str(photos_in_classes), 64)

    def tuned(steps: int) -> float:
        return finetune(_alexnet, data.train, data.heldout, 2, 64, 0, steps, 8, [1e-3], CPU)[0]

    assert tuned(15) == 1 == tuned(15)


def test_fine_tuning_chooses_its_rate_on_held_out_training_images(photos_in_classes: Path):
    data = open_labeled(str(photos_in_classes), 64)
    # With a rate of 1e-9 nothing is learned.
    for rates in ([1e-9, 1e-3], [1e-3, 1e-9]):
        assert finetune(_alexnet, data.train, data.heldout, 2, 64, 0, 15, 8, rates, CPU) == (1, 1e-3)


def test_a_vision_transformer_is_fine_tuned(photos_in_classes: Path):
    data = open_labeled(str(photos_in_classes), 64)

    def made() -> Encoder:
        torch.manual_seed(0)
        return ViT("test_vit", 64, 8).build()

    assert finetune(made, data.train, data.heldout, 2, 64, 0, 15, 8, [1e-3], CPU, 0.75) == (1, 1e-3)


def test_random_weights_have_no_layer_decay(photos_in_classes: Path, monkeypatch: pytest.MonkeyPatch):
    given: list[float] = []

    def recorded(*arguments: object) -> tuple[float, float]:
        given.append(arguments[-1])  # type: ignore[arg-type]
        return 1.0, 1e-3

    monkeypatch.setattr(classification, "finetune", recorded)
    spec = ViT("test_vit", 64, 8)
    settings = classification.ClassificationConfig(ckpt=Path("unused"), data=str(photos_in_classes))
    task = classification.Classification(str(photos_in_classes), 64, settings, CPU)
    for states in ((), (spec.build().state_dict(),)):
        task.measure(FrozenFeatures(Weights("weights", spec.plain(), states), 0, CPU), "finetune", 0)
    assert given == [1.0, 0.75]


def test_a_protocol_is_measured_again_only_if_its_own_options_differ(photos_in_classes: Path):
    def settings(**options: object) -> list[Mapping[str, object]]:
        config = classification.ClassificationConfig(ckpt=Path("unused"), **options)  # type: ignore[arg-type]
        task = classification.Classification(str(photos_in_classes), 64, config, CPU)
        return [task.settings(protocol) for protocol in ("knn", "linear", "10 % of labels", "5-shot", "finetune")]

    usual = settings()
    probes, tuned = settings(steps_linear=5), settings(lr_tuned=(1e-2,))
    assert [one != two for one, two in zip(usual, probes, strict=True)] == [False, True, True, False, False]
    assert [one != two for one, two in zip(usual, tuned, strict=True)] == [False, False, False, False, True]


def test_the_command(trained: Path, photos_in_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = "--seeds 2 --steps-linear 20 --steps-tuned 2 --batch-tuned 4 --labels 0.2 --device cpu".split()
    where = ["--ckpt", str(trained), "--data", str(photos_in_classes), "--out", str(tmp_path)]
    classification.main([*where, *few])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "report.json").read_text())
    results = [result for result in record["results"] if result["weights"] == "inpainting"]
    assert [result["protocol"] for result in results] == 2 * [
        "knn",
        "linear",
        "20 % of labels",
        "1-shot",
        "5-shot",
        "10-shot",
        "finetune",
    ]
    assert list(results[1]["details"]["by layer"]) == ["stride 4", "stride 8", "stride 16", "stride 32"]
    assert [result["figures"]["linear"] for result in results if result["protocol"] == "linear"] == [1, 1]
    assert [result["figures"]["linear, pooled"] for result in results if result["protocol"] == "linear"] == [1, 1]
    assert (tmp_path / "report.md").read_text() in printed
    # The second time nothing is computed: no line is printed for any experiment.
    classification.main([*where, *few])
    again = capsys.readouterr().out
    assert "| seed" not in again
    assert (tmp_path / "report.md").read_text() in again


def test_bad_input_is_one_line(refused: Refused, trained: Path, photos_in_classes: Path, photos: Path):
    args = ["--ckpt", trained, "--device", "cpu", "--data"]
    assert "no train/ and test/ in it" in refused(classification.main, [*args, photos])
    assert "has no critic" in refused(classification.main, [*args, photos_in_classes, "--roles", "critic"])
    assert "--labels must be" in refused(classification.main, [*args, photos_in_classes, "--labels", "2"])
    assert "--shots must be" in refused(classification.main, [*args, photos_in_classes, "--shots", "0"])
    assert "--lr-tuned must be" in refused(classification.main, [*args, photos_in_classes, "--lr-tuned", "0"])
    assert "--seeds must be at least 1" in refused(classification.main, [*args, photos_in_classes, "--seeds", "0"])
