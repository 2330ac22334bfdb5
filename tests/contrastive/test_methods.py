"""The four methods: what each promises of its batches, its memory and its learning; and their commands."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.command_line import Refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn.functional import normalize

from kintsugi.contrastive import byol, cpc, moco, simclr
from kintsugi.contrastive.views import PAIRS
from kintsugi.rng import generator
from kintsugi.train import checkpoint
from kintsugi.train.dist import World
from kintsugi.train.ema import cosine_momentum

TINY = (
    "--size 32 --short-side 48 --batch 4 --steps 4 --log-every 1 --show-every 2 --eval-every 2 --save-every 2 "
    "--eval-images 4 --device cpu"
).split()
METHODS = {"simclr": simclr, "moco": moco, "byol": byol, "cpc": cpc}
EXTRA = {
    "simclr": ["--optimizer", "lars"],
    "moco": ["--queue", "10", "--symmetric"],
    "byol": ["--hidden", "16", "--dim", "8"],
    "cpc": ["--patch", "8"],
}
WORLD = World(torch.device("cpu"))
BATCH = {
    "image": torch.randint(0, 256, (8, 3, 40, 44), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[40, 44]]).repeat(8, 1),
    "index": torch.arange(8),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def start(method: str, photos: Path, folder: Path, *more: str) -> None:
    METHODS[method].main([*TINY, *EXTRA[method], "--data", str(photos), "--out", str(folder), *more])


def states(folder: Path) -> list[Tensor]:
    found: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    collect(checkpoint.load(checkpoint.find(folder))["state"])
    return found


def test_a_resumed_run_ends_with_the_same_weights(method: str, photos: Path, tmp_path: Path):
    start(method, photos, tmp_path / "whole")
    start(method, photos, tmp_path / "parts")
    (tmp_path / "parts/step-00000004.pt").unlink()
    METHODS[method].main(["--resume", "--out", str(tmp_path / "parts")])
    whole, parts = states(tmp_path / "whole"), states(tmp_path / "parts")
    assert len(whole) > 20
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_tensorboard_and_the_encoder_that_is_moved(method: str, photos: Path, tmp_path: Path):
    start(method, photos, tmp_path / "run")
    tags = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload().Tags()
    assert len(tags["images"]) == 1
    assert {"training/spread/deviation", "training/spread/rank", "held-out figures/deviation"} <= set(tags["scalars"])
    (features,) = (tmp_path / "run").glob("*/features/tensors.tsv")  # the projector's, with a thumbnail for each row
    assert features.read_text().strip()
    assert features.with_name("sprite.png").is_file()
    rows = json.loads((tmp_path / "run" / "quality.json").read_text())
    assert list(rows) == ["pixels", "random init", method]
    encoder = checkpoint.load_encoder(tmp_path / "run", "encoder")
    features = encoder(torch.rand(2, 3, 64, 96))
    assert all(maps.shape[2:] == (64 // s, 96 // s) for s, maps in features.items())


@pytest.mark.parametrize(
    ("module", "args", "said"),
    [
        ("simclr", ["--batch", "1"], "--batch must be at least 2"),
        ("simclr", ["--smallest-crop", "0"], "--smallest-crop must be in"),
        ("simclr", ["--temperature", "0"], "--temperature must be at least 0.001, not 0"),
        ("simclr", ["--blur", "2"], "--blur must be in [0, 1], not 2"),
        ("simclr", ["--norm", "layer"], "'layer'"),
        ("moco", ["--queue", "2"], "--queue 2 is shorter"),
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
def test_bad_settings_are_one_line(module: str, args: list[str | Path], said: str, refused: Refused):
    assert said in refused(METHODS[module].main, args)


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
    found, asked = 0, 0
    for pair in vectors:
        for one, other in (pair, pair[::-1]):
            for i in range(7):
                alike = [float(torch.cosine_similarity(one[i], candidate, dim=0)) for candidate in other]
                found += alike.index(max(alike)) == i
                asked += 1
    assert asked == 7 * 2 * PAIRS
    assert 0 < found < asked
    assert method.evaluate(batches)["same_image"] == pytest.approx(100 * found / asked)


def test_collapse_is_told():
    (said,) = small_byol().warnings({"spread/deviation": 0.002})
    assert "one point" in said
    (said,) = small_byol().warnings({"spread/deviation": 0.3, "spread/rank": 1.2})
    assert "one line" in said
    assert small_byol().warnings({"spread/deviation": 0.3, "spread/rank": 3.0}) == []
    assert small_byol().warnings({"spread/deviation": 0.3}) == small_cpc().warnings({}) == []


# --- MoCo -----------------------------------------------------------------------------------------------------


def small_moco(world: World = WORLD, **settings: Any) -> moco.MoCo:
    torch.manual_seed(0)
    few = {"batch": 8, "queue": 24, "dim": 16, "norm": "group"}
    return moco.MoCo(replace(moco.demo(), **{**few, **settings}), world)


def test_keys_come_back_in_their_images_order():
    method = small_moco()
    image = torch.rand(8, 3, 32, 32, generator=generator(1))
    encoder, projector = method.keys
    features = encoder(image)
    expected = torch.nn.functional.normalize(projector(features[max(features)].mean((2, 3))), dim=1)
    torch.testing.assert_close(method.key(image, 3), expected)


def test_the_queue_holds_a_steps_keys_after_it_and_not_before(monkeypatch: pytest.MonkeyPatch):
    method, seen = small_moco(), []

    def watched(logits: Tensor, positive: Tensor) -> Tensor:
        seen.append((logits.detach(), method.queue.keys.clone()))
        return torch.nn.functional.cross_entropy(logits, positive)

    monkeypatch.setattr(moco, "info_nce", watched)
    before = method.queue.keys.clone()
    method.update(BATCH, 0)
    assert torch.equal(seen[0][1], before)
    assert (method.queue.keys != before).any(1).sum() == 8
    assert seen[0][0].shape == (8, 1 + 24)


def test_the_keys_network_follows_before_it_is_used():
    method = small_moco(momentum=0.9)
    with torch.no_grad():
        for p in method.query.parameters():
            p.add_(0.1)
    expected = [0.9 * k + 0.1 * q for k, q in zip(method.keys.parameters(), method.query.parameters(), strict=True)]
    method.update(BATCH, 0)
    for found, wanted in zip(method.keys.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


class Ranks:
    """A world of two ranks in one process: ``gather`` meets the other's, which is in another thread."""

    def __init__(self) -> None:
        self.shelf: dict[int, Tensor] = {}
        self.barrier = threading.Barrier(2)

    def world(self, rank: int) -> World:
        ranks = self

        class Half(World):
            def gather(self, mine: Tensor) -> Tensor:
                ranks.shelf[rank] = mine
                ranks.barrier.wait(30)
                whole = torch.cat([ranks.shelf[0], ranks.shelf[1]])
                ranks.barrier.wait(30)
                return whole

        return Half(torch.device("cpu"), rank, 2)


def test_keys_are_normalized_in_shuffled_parts():
    """Each rank's batch norm sees images drawn from all ranks, and each gets its own images' keys back."""
    ranks, whole = Ranks(), torch.rand(8, 3, 32, 32, generator=generator(1))
    methods = [small_moco(ranks.world(rank), norm="batch") for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(methods[rank].key, whole[4 * rank : 4 * rank + 4], 3) for rank in (0, 1)]
        found = torch.cat([part.result() for part in parts])
    order = torch.randperm(8, generator=generator(methods[0].config.seed, 3, 3)).tolist()
    assert sorted(order[:4]) != [0, 1, 2, 3]
    encoder, projector = small_moco(norm="batch").keys
    expected = torch.empty(8, 16)
    for rows in (order[:4], order[4:]):
        features = encoder(whole[rows])
        expected[rows] = torch.nn.functional.normalize(projector(features[max(features)].mean((2, 3))), dim=1)
    torch.testing.assert_close(found, expected)


def test_the_first_version_is_its_papers():
    method = small_moco(version=1, temperature=0.0)
    assert (method.temperature, small_moco().temperature) == (0.07, 0.2)
    assert len(method.projector) == 1
    assert [method.recipes()[0].blur, method.recipes()[0].jitter] == [0, 1]
    rates = [moco.schedule(1, step, 200) for step in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert moco.schedule(2, 100, 200) == pytest.approx(0.5)


def test_symmetric_adds_the_losses_of_both_directions():
    """The gradient of a symmetric step is the sum of two steps, the second with the views exchanged."""
    grads = []
    for symmetric, exchanged in ((True, False), (False, False), (False, True)):
        method = small_moco(symmetric=symmetric, optimizer="sgd", lr=0.0, weight_decay=0.0)
        method.queue.push(normalize(torch.randn(24, 16, generator=generator(1)), dim=1))
        view = method.view
        method.view = lambda batch, which, step, e=exchanged, v=view: v(batch, which ^ e, step)  # type: ignore[method-assign]
        method.update(BATCH, 0)
        moments = method.optimizers["both"].state.values()
        grads.append(torch.cat([inner["momentum_buffer"].flatten() for inner in moments]))
    assert grads[1].norm() > 0.1
    assert (grads[1] - grads[2]).norm() > 0.1 * grads[1].norm()
    torch.testing.assert_close(grads[0], grads[1] + grads[2], atol=1e-4, rtol=1e-3)


# --- BYOL -----------------------------------------------------------------------------------------------------


def small_byol() -> byol.BYOL:
    torch.manual_seed(0)
    return byol.BYOL(replace(byol.demo(), size=32, batch=8, hidden=64, dim=32, steps=40, warmup=5), WORLD)


@pytest.mark.parametrize("norms", [False, True])
def test_a_norm_at_the_heads_end_takes_away_what_all_projections_share(norms: bool):
    vectors = 3 + torch.randn(16, 512, generator=generator(1))
    methods = (
        moco.MoCo(replace(moco.demo(), head_norm=norms), WORLD),
        byol.BYOL(replace(byol.demo(), output_norm=norms), WORLD),
    )
    for method in methods:
        shared = method.projector.train()(vectors).mean(0).norm()
        assert (shared < 1e-3) == norms


def test_views_never_share_a_batch():
    method, sizes = small_byol(), []
    for encoder in (method.encoder, method.target[0]):
        encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    method.update(BATCH, 0)
    assert sizes == [8] * 4


def test_the_target_gets_no_gradient_and_moves_by_its_momentum():
    method = small_byol()
    before = [p.clone() for p in method.target.parameters()]
    method.update(BATCH, 0)
    assert all(p.grad is None for p in method.target.parameters())
    momentum = cosine_momentum(method.config.momentum, 0, 40)
    pairs = zip(before, method.target.parameters(), method.source.parameters(), strict=True)
    for old, now, online in pairs:
        torch.testing.assert_close(now, momentum * old + (1 - momentum) * online)


def test_no_collapse_at_small_batch():
    method = small_byol()
    scalars = [method.update(BATCH, step) for step in range(20)]
    assert scalars[-1]["loss/byol"] < scalars[0]["loss/byol"]
    assert scalars[-1]["spread/deviation"] > 0.3


# --- CPC ------------------------------------------------------------------------------------------------------


def small_cpc() -> cpc.CPC:
    torch.manual_seed(0)
    return cpc.CPC(replace(cpc.demo(), size=32, patch=8, dim=16, batch=8), WORLD)


def test_a_context_knows_nothing_below_it():
    method = small_cpc()
    codes = torch.randn(1, 16, 7, 7, generator=generator(1), requires_grad=True)
    for row in range(7):
        (gradient,) = torch.autograd.grad(method.context(codes)[:, :, row].sum(), codes, retain_graph=True)
        touched = gradient.abs().sum((0, 1, 3)) > 0
        assert touched[: row + 1].all() if row < 5 else touched[row]
        assert not touched[row + 1 :].any()


def test_patches_equal_a_loop_and_are_coded_alone():
    image = torch.rand(2, 3, 32, 32, generator=generator(1))
    cut = cpc.patches(image, 8)
    for i in range(7):
        for j in range(7):
            assert torch.equal(cut[:, i, j], image[:, :, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8])
    method = small_cpc()
    other = image.clone()
    other[:, :, :8, :8] = 0  # touches the four patches that overlap it
    same = (method.codes(image) == method.codes(other)).all(1).all(0)
    assert not same[:2, :2].any()
    assert same.sum() == 49 - 4


def test_logits_equal_a_loop():
    method = small_cpc()
    image = torch.rand(2, 3, 32, 32, generator=generator(1))
    codes, contrasts = method.contrasts(image)
    context = method.context(codes)
    for ahead, predict in zip(method.steps_ahead, method.predict, strict=True):
        logits, positive = contrasts[ahead]
        row = 0
        for n in range(2):
            for i in range(7 - ahead):
                for j in range(7):
                    guess = predict.weight[:, :, 0, 0] @ context[n, :, i, j] + predict.bias
                    assert logits[row, 17].item() == pytest.approx((guess @ codes[0, :, 2, 3]).item() / 4, abs=1e-4)
                    assert positive[row] == n * 49 + (i + ahead) * 7 + j
                    row += 1
    assert min(contrasts) == 2  # the row just below overlaps the context's patches


def test_each_command_says_what_it_can_do(method: str, capsys: pytest.CaptureFixture[str]):
    module: ModuleType = METHODS[method]
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code in (0, None)
    assert "--smallest-crop" in capsys.readouterr().out or method == "cpc"
    for preset in (module.demo, module.small, module.paper):
        assert preset().preset == preset.__name__
