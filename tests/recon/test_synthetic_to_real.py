from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run, refusal
from helpers.nested import tensors
from torch import Tensor, nn

from kintsugi.data.labeled import Labels, pack
from kintsugi.losses.depth import contour_loss
from kintsugi.losses.domain_adversarial import reverse_gradient
from kintsugi.recon import synthetic
from kintsugi.recon.synthetic import Synthetic, demo
from kintsugi.rng import generator
from kintsugi.scenes import rendering
from kintsugi.train import checkpoint
from kintsugi.train.dist import World
from kintsugi.train.domain_adversary import FeaturePool

TINY = (
    "--size 64 --short-side 72 --scenes 24 --batch 4 --steps 4 --log-every 1 --show-every 2 --eval-every 2 "
    "--save-every 2 --eval-images 4 --pool 6 --device cpu"
).split()
CONFIG = replace(demo(), size=64, batch=4, steps=4, pool=6, device="cpu")
WORLD = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Four scenes and four pictures of noise, 72 px."""
    found = rendering.render(0, torch.arange(4), 72)
    planes = pack(found["image"], Labels(found["depth"], found["normal"], found["instance"]))
    noise = torch.randint(0, 256, (4, 3, 72, 80), generator=generator(0), dtype=torch.uint8)
    return {
        "synthetic/image": planes,
        "synthetic/extent": torch.tensor([[72, 72]] * 4),
        "synthetic/first": torch.tensor([True] * 4),
        "real/image": noise,
        "real/extent": torch.tensor([[72, 80]] * 4),
        "real/first": torch.tensor([True, True, True, False]),
    }


def method(**settings: object) -> Synthetic:
    torch.manual_seed(0)  # as the loop does
    return Synthetic(replace(CONFIG, **settings), WORLD)  # type: ignore[arg-type]


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def equal(some: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, other, strict=True))


# --- the losses -----------------------------------------------------------------------------------------------


def test_the_contour_loss_weights_images_by_how_rare_their_contours_are():
    logits = torch.randn(2, 1, 4, 4, generator=generator(1))
    truth = torch.zeros(2, 1, 4, 4)
    truth[0, 0, :2] = 1  # 8 of 16
    truth[1, 0, 0, 0] = 1  # 1 of 16: weighted by 15 / 4, not 15
    total = 0.0
    for n, weight in ((0, 1.0), (1, 15 / 4)):
        for x, t in zip(logits[n].flatten().tolist(), truth[n].flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-x))
            total -= weight * math.log(p if t else 1 - p)
    assert contour_loss(logits, truth).item() == pytest.approx(total / 32, rel=1e-5)


def test_reversal_changes_only_the_gradient():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x, 0.25)
    assert torch.equal(y, x)
    (y * torch.tensor([3.0, 4.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-0.75, -1.0]


# --- the pool -------------------------------------------------------------------------------------------------


def test_the_pool_swaps_half_of_a_batch_with_what_it_kept():
    pool = FeaturePool(6)
    seen: set[float] = set()
    for step in range(20):
        batch = torch.arange(4.0) + 4 * step + 1
        before = None if pool.kept is None else pool.kept.flatten().tolist()
        mixed = pool.exchange(batch.view(4, 1, 1, 1), generator(step)).flatten().tolist()
        assert pool.kept is not None
        after = pool.kept.flatten().tolist()
        if before is not None:
            given = [v for v in mixed if v not in batch.tolist()]
            assert len(given) == 2
            assert all(v in before for v in given)
            assert sorted(before + batch.tolist()) == sorted(after + mixed)  # nothing is lost or duplicated
        seen |= set(mixed)
    assert len(seen) > 60  # of 80: nearly everything is returned at some time
    whole = torch.rand(4, 1, 1, 1)
    assert torch.equal(FeaturePool(0).exchange(whole, generator(0)), whole)


# --- one update -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["alexnet", "resnet18"])
def test_a_resumed_run_with_gradient_reversal_ends_with_the_same_state(photos: Path, tmp_path: Path):
    options = [*TINY, "--real", str(photos), "--adversary", "reversal"]
    synthetic.main([*options, "--out", str(tmp_path / "whole")])
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "step-00000004.pt").unlink()
    synthetic.main(["--resume", "--out", str(tmp_path / "run")])
    one, other = (tensors(checkpoint.load(checkpoint.find(tmp_path / f))["state"]) for f in ("whole", "run"))
    assert len(one) > 100
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_bad_input_gives_an_error_of_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "--real is missing: name a folder" in refusal(run("kintsugi.recon.synthetic", "--preset", "small"))
    assert not list(tmp_path.glob("runs/*"))
    (tmp_path / "half" / "rgb").mkdir(parents=True)
    for option, value, message in (
        ("--real", str(tmp_path / "nowhere"), "nowhere: no such folder"),
        ("--data", str(tmp_path / "half"), "no depth/ in it"),
    ):
        with pytest.raises(SystemExit):
            synthetic.main([*TINY, "--runs", str(tmp_path / "runs"), option, value])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {option}")
        assert message in line


def test_the_demo_runs_on_sample_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    synthetic.main([*TINY, "--steps", "1", "--out", str(tmp_path / "run")])
    assert "no --real given" in capsys.readouterr().out
