"""What the contrastive methods share: commands, resumed runs, held-out figures, warnings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command_line import Refused
from helpers.view_cases import WORLD, small_byol, small_cpc
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kintsugi.contrastive import byol, cpc, dino, lejepa, moco, simclr
from kintsugi.contrastive.views import PAIRS
from kintsugi.rng import generator
from kintsugi.train import checkpoint

TINY = (
    "--size 32 --short-side 48 --batch 4 --steps 4 --log-every 1 --show-every 2 --eval-every 2 --save-every 2 "
    "--eval-images 4 --device cpu"
).split()
METHODS = {"simclr": simclr, "moco": moco, "byol": byol, "dino": dino, "lejepa": lejepa, "cpc": cpc}
EXTRA = {
    "simclr": ["--optimizer", "lars"],
    "moco": ["--queue", "10", "--symmetric"],
    "byol": ["--hidden", "16", "--dim", "8"],
    "dino": ["--local-crops", "2", "--outputs", "16", "--hidden", "16", "--bottleneck", "8"],
    "lejepa": ["--local-crops", "2", "--directions", "16", "--hidden", "16", "--dim", "8"],
    "cpc": ["--patch", "8"],
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def start(method: str, photos: Path, folder: Path, *more: str) -> None:
    METHODS[method].main([*TINY, *EXTRA[method], "--data", str(photos), "--out", str(folder), *more])


def test_tensorboard_and_the_transferred_encoder(method: str, photos: Path, tmp_path: Path):
    start(method, photos, tmp_path / "run")
    tags = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload().Tags()
    assert len(tags["images"]) == 1
    assert {"training/spread/deviation", "training/spread/rank", "held-out figures/deviation"} <= set(tags["scalars"])
    (features,) = (tmp_path / "run").glob("*/features/tensors.tsv")  # for the projector, with a thumbnail for each row
    assert features.read_text().strip()
    assert features.with_name("sprite.png").is_file()
    rows = json.loads((tmp_path / "run" / "quality.json").read_text())
    assert list(rows) == ["pixels", "random init", method]
    encoder = checkpoint.load_encoder(tmp_path / "run", "encoder")
    features = encoder(torch.rand(2, 3, 64, 96))
    assert all(maps.shape[2:] == (64 // s, 96 // s) for s, maps in features.items())


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        ("simclr", ["--batch", "1"], "--batch must be at least 2"),
        ("simclr", ["--smallest-crop", "0"], "--smallest-crop must be in"),
        ("simclr", ["--temperature", "0"], "--temperature must be at least 0.001, not 0"),
        ("simclr", ["--blur", "2"], "--blur must be in [0, 1], not 2"),
        ("simclr", ["--norm", "layer"], "'layer'"),
        ("moco", ["--queue", "2"], "--queue 2 is too short"),
        ("moco", ["--momentum", "1.5"], "--momentum must be in [0, 1], not 1.5"),
        ("moco", ["--version", "3"], "'3'"),
        ("byol", ["--optimizer", "rmsprop"], "'rmsprop'"),
        ("byol", ["--hidden", "0"], "--hidden must be at least 1, not 0"),
        ("cpc", ["--patch", "7"], "multiple of half of --patch"),
        ("cpc", ["--patch", "0"], "--patch must be at least 2, not 0"),
        ("cpc", ["--patch", "32"], "3 rows of patches"),
        ("cpc", ["--rows", "0"], "--rows must be at least 1, not 0"),
        ("cpc", ["--temprature", "1"], "unknown option --temprature"),
    ],
)
def test_bad_settings_are_one_line(module: str, args: list[str | Path], message: str, refused: Refused):
    assert message in refused(METHODS[module].main, args)


def test_same_image_equals_a_loop():
    method = simclr.SimCLR(replace(simclr.demo(), size=24), WORLD)
    method.encoder.eval()
    images = torch.randint(0, 256, (7, 3, 30, 30), generator=generator(4), dtype=torch.uint8)
    batches = [{"image": part, "extent": torch.full((len(part), 2), 30)} for part in images.split(4)]
    with torch.no_grad():
        vectors = [
            [
                torch.cat(
                    [
                        method.encoder.vectors(method.view(batch, kind, PAIRS * number + pair))
                        for number, batch in enumerate(batches)
                    ]
                )
                for kind in (0, 1)
            ]
            for pair in range(PAIRS)
        ]
    hits, count = 0, 0
    for pair in vectors:
        for one, other in (pair, pair[::-1]):
            for i in range(7):
                similarity = [float(torch.cosine_similarity(one[i], candidate, dim=0)) for candidate in other]
                hits += similarity.index(max(similarity)) == i
                count += 1
    assert count == 7 * 2 * PAIRS
    assert 0 < hits < count
    assert method.evaluate(batches)["same_image"] == pytest.approx(100 * hits / count)


def test_a_warning_of_collapse():
    (warning,) = small_byol().warnings({"spread/deviation": 0.002})
    assert "one point" in warning
    (warning,) = small_byol().warnings({"spread/deviation": 0.3, "spread/rank": 1.2})
    assert "one line" in warning
    assert small_byol().warnings({"spread/deviation": 0.3, "spread/rank": 3.0}) == []
    assert small_byol().warnings({"spread/deviation": 0.3}) == small_cpc().warnings({}) == []


@pytest.mark.parametrize("norms", [False, True])
def test_a_norm_at_the_end_of_the_head_removes_what_all_projections_share(norms: bool):
    vectors = 3 + torch.randn(16, 512, generator=generator(1))
    methods = (
        moco.MoCo(replace(moco.demo(), head_norm=norms), WORLD),
        byol.BYOL(replace(byol.demo(), output_norm=norms), WORLD),
    )
    for method in methods:
        shared = method.projector.train()(vectors).mean(0).norm()
        assert (shared < 1e-3) == norms
