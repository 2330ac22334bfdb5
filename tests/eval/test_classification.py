from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Refused
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from core.data.images import open_labelled
from core.nets.encoder import Encoder
from core.rng import generator
from eval import classification
from eval.cells import Machine, warmed
from eval.classification import Config, Features, knn, linear

CPU = Machine(torch.device("cpu"), bf16=False)
CONFIG = Config(data="", steps=60, batch=16)


def clouds(count: int, classes: int, seed: int, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Points (N,6) around each class's centre, and their classes."""
    centres = torch.randn(classes, 6, generator=generator(99))
    label = torch.arange(count) % classes
    return centres[label] + spread * torch.randn(count, 6, generator=generator(seed)), label


def of(x: Tensor, label: Tensor) -> Features:
    return Features({8: x, 16: x.flip(1)}, x, label)


def test_knn_is_that_of_a_loop():
    train, test = clouds(90, 3, 0, 1.5), clouds(40, 3, 1, 1.5)
    right = 0
    for x, truth in zip(*test, strict=True):
        similarity = normalize(train[0], dim=1) @ normalize(x, dim=0)
        votes = torch.zeros(3)
        for i in similarity.argsort(descending=True)[:20].tolist():
            votes[train[1][i]] += torch.exp(similarity[i] / 0.1)
        right += int(votes.argmax() == truth)
    assert 0.4 < knn(of(*train), of(*test)) == pytest.approx(right / 40)


def test_a_head_for_each_rate_is_trained_as_if_alone():
    """Against torch's own SGD, one rate after the other."""
    (x, label), (tried, truth) = clouds(64, 4, 2, 0.8), clouds(400, 4, 3, 0.8)
    rates = [1e-3, 3e-2, 3e-1]
    found = classification._fit(x, label, tried, truth, rates, 5, CONFIG)
    spread, mean = torch.std_mean(x, 0, correction=0)
    for rate, accuracy in zip(rates, found.tolist(), strict=True):
        head = nn.Linear(6, 4)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        sgd, random = torch.optim.SGD(head.parameters(), rate, momentum=0.9), generator(5, 6)
        for step in range(60):
            rows = torch.randint(64, (16,), generator=random)
            sgd.param_groups[0]["lr"] = rate * warmed(step, 60)
            sgd.zero_grad()
            cross_entropy(head((x[rows] - mean) / spread), label[rows]).backward()
            sgd.step()
        with torch.no_grad():
            alone = (head((tried - mean) / spread).argmax(1) == truth).float().mean().item()
        assert accuracy == pytest.approx(alone, abs=0.006)


def test_separable_classes_are_found_and_noise_gives_chance():
    (x, label), (tried, truth) = clouds(400, 4, 4), clouds(200, 4, 5)
    assert linear(x, label, tried, truth, 0, CONFIG)[0] > 0.95
    noise, other = torch.randn(2, 400, 6, generator=generator(6))
    assert abs(linear(noise, label, other, label, 0, CONFIG)[0] - 0.25) < 0.1


def test_few_labels_are_some_of_each_class():
    label = torch.tensor([0] * 50 + [1] * 30 + [2])
    few = classification._some_of_each(label, 0.1, 0, least=2)
    assert [int((few & (label == k)).sum()) for k in range(3)] == [5, 3, 1]
    assert not torch.equal(few, classification._some_of_each(label, 0.1, 1, least=2))
    held = classification._some_of_each(label, 0.1, 0, least=1, keep=1)
    assert [int((held & (label == k)).sum()) for k in range(3)] == [5, 3, 0]


def test_layers_are_pooled_to_about_as_many_numbers(photos_in_classes: Path):
    class Two(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.channels = {4: 64, 32: 512}

        def forward(self, image: Tensor) -> dict[int, Tensor]:
            return {
                s: image.mean(1, keepdim=True)[..., ::s, ::s].expand(-1, c, -1, -1)
                for s, c in self.channels.items()
            }

    data = open_labelled(str(photos_in_classes), 64)
    found = classification.features(Two(), data.train, 64, CPU)
    assert {stride: x.shape[1] for stride, x in found.layers.items()} == {4: 64 * 11**2, 32: 512 * 2**2}
    assert found.mean.shape == (len(data.train), 512)
    assert torch.equal(found.labels, data.train.labels)


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos_in_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that their colour tells apart, in train/ and test/."""
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


def test_the_command(
    trained: Path, photos_in_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few = "--seeds 2 --steps 20 --labels 0.2 --device cpu".split()
    where = ["--ckpt", str(trained), "--data", str(photos_in_classes), "--out", str(tmp_path)]
    classification.main([*where, *few])
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "classification.json").read_text())
    (protocols,) = record["accuracy"].values()
    assert list(protocols) == [
        "knn", "linear, stride 4", "linear, stride 8", "linear, stride 16", "linear, stride 32", "linear, best",
        "20 % of labels",
    ]  # fmt: skip
    assert all(len(values) == 2 for cell in protocols.values() for values in cell.values())
    assert protocols["linear, best"]["pretrained"] == [1, 1]
    assert "| generator     | knn " in said


def test_bad_input_is_one_line(refused: Refused, trained: Path, photos_in_classes: Path, photos: Path):
    args = ["--ckpt", trained, "--device", "cpu", "--data"]
    assert "no train/ and test/ in it" in refused(classification.main, [*args, photos])
    assert "has no critic" in refused(classification.main, [*args, photos_in_classes, "--roles", "critic"])
    assert "--labels must be" in refused(classification.main, [*args, photos_in_classes, "--labels", "2"])
