from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, refusal
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from core.data.pairs import VOID, Pairs
from core.nets.backbones import Backbone
from core.nets.discriminators import DiscriminatorSpec
from core.nets.encoder import Encoder
from core.train import checkpoint
from eval import segmentation
from eval.cells import WEIGHTS, Machine, markdown
from eval.segmentation import FCN, Config, enlarged, main, mean_iou, segment
from eval.segmentation import run as transfer

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
    config = Config(steps_frozen=60, batch=4, lr_frozen=3e-2)
    train, val = colours(8), colours(4)
    knowing, each, _ = segment(Knowing(), "frozen", train, val, 0, config, CPU)
    assert knowing > 0.85
    assert knowing == pytest.approx(np.mean(each))
    again, _, _ = segment(Knowing(), "frozen", train, val, 0, config, CPU)
    assert again == knowing
    other, _, _ = segment(Knowing(), "frozen", train, val, 1, config, CPU)
    assert other != knowing  # another head, in another order
    torch.manual_seed(0)
    random, _, _ = segment(Backbone("alexnet").build(), "frozen", train, val, 0, config, CPU)
    assert random < knowing - 0.05
    chance, _, _ = segment(
        Knowing(), "frozen", colours(8, shuffled=True), colours(4, shuffled=True), 0, config, CPU
    )
    assert chance < 0.3  # three classes at random: a third right, a fifth of the union


def test_features_are_those_of_the_images_and_of_their_mirror_images(monkeypatch: pytest.MonkeyPatch):
    train = colours(20)
    net = FCN(Knowing(), 3)
    (features,), targets = segmentation._features(net, train, 0, CPU)
    assert features.shape == (40, 3, 8, 8)
    # The colour of each pixel is its class, so features and targets must have moved together.
    assert torch.equal(features.argmax(1), targets[:, 4::8, 4::8])
    both = torch.cat([train.targets, train.targets.flip(-1)])
    assert sorted(t.numpy().tobytes() for t in targets) == sorted(t.numpy().tobytes() for t in both)
    monkeypatch.setattr(segmentation, "FEATURE_BYTES", features[:17].nbytes)
    assert (
        len(segmentation._features(net, train, 0, CPU)[1]) == 32
    )  # two batches of 8 and their mirror images


@pytest.mark.parametrize("size", [(12, 14), (48, 50), (7, 7)])
def test_enlarging_is_bilinear_interpolation(size: tuple[int, int]):
    image = torch.rand(2, 3, 6, 7)
    expected = nn.functional.interpolate(image, size, mode="bilinear")
    assert torch.allclose(enlarged(image, size), expected, atol=1e-6)


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
    assert line == "| generator     | frozen           |  30.0 ± 2.0 |  26.0 ± 6.6 |  +4.0 |       2/3 |"


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


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    """A run's folder with a checkpoint of two encoders, untrained."""
    nets = {
        "generator": Backbone("alexnet").build(),
        "discriminator": DiscriminatorSpec(32, width=8).build().encoder,
    }
    encoders = {role: {"spec": net.spec.plain(), "state": net.state_dict()} for role, net in nets.items()}
    content = {"method": "toy", "step": 1, "config": {}, "state": {}, "encoders": encoders}
    checkpoint.save(tmp_path / "run/step-00000001.pt", content)
    return tmp_path / "run"


TINY = "--seeds 2 --steps-frozen 2 --steps-finetune 2 --batch 2 --crop 64 --void 2".split()


def test_the_command_writes_table_json_and_pictures(
    camvid: Path, ckpt: Path, capsys: pytest.CaptureFixture[str]
):
    main(["--ckpt", str(ckpt), "--data", str(camvid), *TINY])
    folder = ckpt / "segmentation-camvid"
    table = (folder / "segmentation.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split()[1:4:2] for line in table.splitlines()[2:]] == [
        [role, protocol] for role in ("generator", "discriminator") for protocol in ("frozen", "finetune")
    ]
    record = json.loads((folder / "segmentation.json").read_text())
    assert record["checkpoint"] == str(ckpt / "step-00000001.pt")
    assert record["classes"] == ["0", "1"]
    for role, protocol, weights in itertools.product(
        ("generator", "discriminator"), ("frozen", "finetune"), WEIGHTS
    ):
        ious, each = record["miou"][role][protocol][weights], record["iou"][role][protocol][weights]
        assert ious == pytest.approx(np.mean(each, 1))
        assert len(ious) == 2
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["images"] == [
        f"{role} {protocol}: input, truth, pretrained, random"
        for role in ("generator", "discriminator") for protocol in ("frozen", "finetune")
    ]  # fmt: skip
    assert len(events.Scalars("mIoU/generator frozen random")) == 2

    main(["--ckpt", str(ckpt), "--data", str(camvid), *TINY, "--out", str(folder / "again")])
    again = json.loads((folder / "again/segmentation.json").read_text())
    assert again["iou"] == record["iou"]


def test_bad_input_is_one_line(run: Run, camvid: Path, ckpt: Path, tmp_path: Path):
    assert "has no critic that sees RGB alone: it has generator" in refusal(
        run("eval.segmentation", "--ckpt", ckpt, "--data", camvid, "--roles", "critic")
    )
    with pytest.raises(ValueError, match=r"no folder .*train"):
        transfer(Config(ckpt=ckpt, data=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="no checkpoint at"):
        transfer(Config(ckpt=tmp_path / "nowhere", data=str(camvid)))
    with pytest.raises(ValueError, match="--seeds must be at least 1"):
        Config(seeds=0)
    Image.new("L", (96, 64), 7).save(camvid / "val/masks/0.png")
    with pytest.raises(ValueError, match="val has class ids up to 7, train only up to 2; is --void 255"):
        transfer(Config(ckpt=ckpt, data=str(camvid)))
