from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, refusal
from PIL import Image
from torch import Tensor, nn

from core.data.pairs import VOID, Pairs
from core.nets.backbones import Backbone
from core.nets.encoder import Encoder
from core.train import checkpoint
from eval.segmentation import FCN, Config, Machine, markdown, mean_iou, segment

CPU = Machine(torch.device("cpu"), bf16=False)


def colours(count: int, shuffled: bool = False) -> Pairs:
    """Blocks of pure colour; the class is the colour, or nothing to do with it."""
    random = torch.Generator().manual_seed(count)
    ids = torch.randint(3, (count, 4, 4), generator=random).repeat_interleave(16, 1).repeat_interleave(16, 2)
    images = (255 * torch.eye(3)[ids]).permute(0, 3, 1, 2).byte()
    truth = torch.randint(3, ids.shape, generator=random) if shuffled else ids
    return Pairs(images, truth.byte(), ["red", "green", "blue"])


class Knowing(Encoder):
    """Features that are the pooled colours themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = {8: 3}
        self.spec = Backbone()

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return {8: nn.functional.avg_pool2d(image, 8)}


def test_mean_iou_against_nested_loops():
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 4, (2, 9, 7)), rng.integers(0, 5, (2, 9, 7))
    truth[0, :3] = VOID
    expected = []
    for k in range(5):
        both = union = present = 0
        for t, p in zip(truth.ravel(), said.ravel(), strict=True):
            if t == VOID:
                continue
            present += t == k
            both += t == k and p == k
            union += t == k or p == k
        expected.append(both / union if present else None)
    mean, each = mean_iou(torch.from_numpy(said), torch.from_numpy(truth), 5)
    assert each[4] is None  # predicted but nowhere in the truth: it costs the others, but has no row
    assert each[:4] == pytest.approx(expected[:4])
    assert mean == pytest.approx(sum(e for e in expected if e is not None) / 4)


def test_features_that_know_beat_those_that_cannot():
    config = Config(steps_frozen=60, batch=4, crop=64, lr=3e-2)
    train, val = colours(8), colours(4)
    knowing, _, _ = segment(Knowing(), "frozen", train, val, 0, config, CPU)
    assert knowing > 0.85
    again, _, _ = segment(Knowing(), "frozen", train, val, 0, config, CPU)
    assert again == knowing
    chance, _, _ = segment(
        Knowing(), "frozen", colours(8, shuffled=True), colours(4, shuffled=True), 0, config, CPU
    )
    assert chance < 0.3  # three classes at random: a third right, a fifth of the union


def test_frozen_leaves_the_encoder_and_finetune_moves_it():
    train, config = colours(4), Config(steps_frozen=2, steps_finetune=2, batch=2, crop=64)
    for protocol, moves in (("frozen", False), ("finetune", True)):
        torch.manual_seed(0)
        encoder = Backbone("alexnet").build()
        before = [p.clone() for p in encoder.parameters()]
        segment(encoder, protocol, train, train, 0, config, CPU)  # type: ignore[arg-type]
        moved = any(not torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
        assert moved == moves


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "dcgan"])
def test_logits_have_the_images_size(name: str):
    net = FCN(Backbone(name).build(), 5)  # type: ignore[arg-type]
    assert net(torch.rand(2, 3, 70, 90)).shape == (2, 5, 70, 90)


def test_the_table_says_who_won():
    cell = {"pretrained": [0.30, 0.32, 0.28], "random": [0.25, 0.33, 0.20]}
    line = markdown({"generator": {"frozen": cell}}).splitlines()[-1]
    assert line == "| generator | frozen | 30.0 ± 2.0 | 26.0 ± 6.6 | +4.0 | 2/3 |"


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for folder in ("images", "masks"):
            (tmp_path / "camvid" / part / folder).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(
                tmp_path / f"camvid/{part}/images/{i}.jpg"
            )
            Image.fromarray(rng.integers(0, 3, (64, 96), dtype=np.uint8)).save(
                tmp_path / f"camvid/{part}/masks/{i}.png"
            )
    return tmp_path / "camvid"


def test_the_command_writes_table_json_and_pictures(run: Run, camvid: Path, tmp_path: Path):
    encoder = Backbone("alexnet").build()
    roles = {"generator": {"spec": encoder.spec.plain(), "state": encoder.state_dict()}}
    content = {"method": "toy", "step": 1, "config": {}, "state": {}, "encoders": roles}
    checkpoint.save(tmp_path / "run/step-00000001.pt", content)
    tiny = "--seeds 1 --steps-frozen 2 --steps-finetune 2 --batch 2 --crop 64".split()
    done = run("eval.segmentation", "--ckpt", "run", "--data", camvid, "--void", "2", *tiny)
    assert done.returncode == 0, done.stderr
    assert "| generator | frozen |" in done.stdout
    folder = tmp_path / "run/segmentation-camvid"
    record = json.loads((folder / "segmentation.json").read_text())
    assert len(record["miou"]["generator"]["finetune"]["random"]) == 1
    assert len(record["iou"]["generator/frozen/pretrained"][0]) == 2
    assert (folder / "segmentation.md").read_text().startswith("| encoder |")
    assert list(folder.glob("events.out.tfevents.*"))
    said = refusal(run("eval.segmentation", "--ckpt", "run", "--data", camvid, "--roles", "critic"))
    assert "has no critic: it has generator" in said
    assert "no checkpoint at" in refusal(run("eval.segmentation", "--ckpt", "nowhere"))
