from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Refused
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kintsugi import color
from kintsugi.apps import colorize
from kintsugi.augment.guided import guided_lines
from kintsugi.augment.hints import draw_hints
from kintsugi.losses.bins import classification_loss
from kintsugi.nets import colorizer
from kintsugi.recon import colorization
from kintsugi.recon.colorization import Colorization, demo
from kintsugi.rng import generator
from kintsugi.train import checkpoint, shipped
from kintsugi.train.config import parse_training, to_plain
from kintsugi.train.dist import World

TINY = (
    "--encoder alexnet --size 64 --batch 4 --steps 4 --log-every 1 --show-every 2 --eval-every 2 --save-every 2 "
    "--eval-images 2 --device cpu"
).split()
CONFIG = replace(demo(), encoder="alexnet", batch=4)
WORLD = World(torch.device("cpu"))
BATCH = {
    "image": torch.randint(0, 256, (4, 3, 72, 80), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[72, 80]]).repeat(4, 1),
    "index": torch.arange(4),
}


def method(**settings: object) -> Colorization:
    torch.manual_seed(0)
    return Colorization(replace(CONFIG, **settings), WORLD)  # type: ignore[arg-type]


# --- the loss -------------------------------------------------------------------------------------------------


def test_the_classification_loss_equals_nested_loops():
    bins, weights = color.ab_bins(), torch.rand(313, generator=generator(1))
    ab = 60 * (2 * torch.rand(2, 2, 2, 3, generator=generator(2)) - 1)
    ab[1] = 3  # almost gray: has weight 0
    logits = torch.randn(2, 313, 2, 3, generator=generator(3))
    weighted, plain, nearest = classification_loss(logits, ab, bins, weights, 5)
    total = raw = 0.0
    for n in range(2):
        for y in range(2):
            for x in range(3):
                distances = (bins - ab[n, :, y, x]).norm(dim=1)
                near = distances.argsort()[:5]
                soft = torch.exp(-(distances[near] ** 2) / 50)
                soft = soft / soft.sum()
                entropy = -(soft * logits[n, :, y, x].log_softmax(0)[near]).sum().item()
                raw += entropy / 12
                total += (n == 0) * weights[near[0]].item() * entropy / 12
                assert nearest[n, y, x] == near[0]
    assert weighted.item() == pytest.approx(total, rel=1e-4)
    assert plain.item() == pytest.approx(raw, rel=1e-4)


@pytest.mark.parametrize("settings", [{"loss": "l2"}, {"loss": "classification"}, {"loss": "l2", "hints": True}])
def test_every_weight_changes(settings: dict[str, object]):
    trained = method(**settings)
    before = [p.clone() for p in trained.colorizer.parameters()]
    trained.update(BATCH, 0)
    assert not any(torch.equal(a, b) for a, b in zip(before, trained.colorizer.parameters(), strict=True))


def test_the_class_loss_changes_the_encoder_and_needs_labels():
    weights = []
    for weight in (0.0, 1.0):
        trained = method(classes=3, class_weight=weight)
        scalars = trained.update({**BATCH, "label": torch.tensor([0, 1, 2, 0])}, 0)
        weights.append(torch.cat([p.flatten() for p in trained.colorizer.encoder.parameters()]))
        assert scalars["loss/class"] > 0
    assert not torch.equal(*weights)
    with pytest.raises(ValueError, match="--classes needs images in class folders, and this data has none"):
        method(classes=3).update(BATCH, 0)
    with pytest.raises(ValueError, match="--classes 3: the data has more classes, at least 6"):
        method(classes=3).update({**BATCH, "label": torch.tensor([0, 1, 5, 0])}, 0)


def test_the_prior_counts_the_data():
    trained = method()
    trained.update(BATCH, 0)
    assert trained.colorizer.counts.sum().item() == 313 + 4 * 15 * 15  # alexnet's first map


def test_the_network_sees_lightness_alone():
    net = method().colorizer.eval()
    image = torch.rand(1, 3, 64, 64, generator=generator(4))
    lab = color.rgb_to_lab(image)
    lab[:, 1:] = 0
    gray = color.lab_to_rgb(lab)
    torch.testing.assert_close(net(image)[0], net(gray)[0], atol=1e-3, rtol=1e-3)


def test_hints_are_patches_around_the_center_and_change_the_picture():
    where = draw_hints(torch.zeros(2000, 2, 64, 64), 2000, generator(5), slice(None))
    known = where.mean((1, 2, 3))
    assert 0.08 < (known == 0).float().mean() < 0.17  # geometric: none with probability 1/8
    assert 0.003 < (known == 1).float().mean() < 0.02
    assert where.mean((0, 1))[24:40, 24:40].mean() > 2 * where.mean((0, 1))[:8, :8].mean()
    part = draw_hints(torch.zeros(500, 2, 64, 64), 2000, generator(5), slice(500, 1000))
    assert torch.equal(part, where[500:1000])

    net = method(loss="l2", hints=True).colorizer.eval()
    image = torch.rand(1, 3, 64, 64, generator=generator(6))
    ab, place = color.rgb_to_lab(image)[:, 1:], torch.zeros(1, 1, 64, 64)
    place[..., 20:26, 30:36] = 1
    assert not torch.allclose(net(image, ab, place)[0], net(image, ab, 0 * place)[0])
    other = torch.where(place > 0, ab, -ab)  # colors outside the hints are not used
    torch.testing.assert_close(net(image, ab, place)[0], net(image, other, place)[0])


def test_without_hints_the_network_is_the_one_trained_with_none():
    """The hint layers have biases, so they must run without hints too."""
    net = method(hints=True).colorizer.eval()
    image = torch.rand(2, 3, 64, 64, generator=generator(6))
    ab = color.rgb_to_lab(image)[:, 1:]
    torch.testing.assert_close(net(image)[0], net(image, ab, torch.zeros(2, 1, 64, 64))[0])


def test_undoing_the_rebalancing_gives_the_frequencies_of_the_colors():
    """A network that learned p w, with p the prior, predicts the prior's mean color where all of it is undone."""
    net = method(undo_rebalance=1.0, temperature=1.0).colorizer
    net.counts.copy_(torch.rand(313, generator=generator(9)) ** 8 * 1e6)
    prior = net.prior()
    logits = (prior * net.weights()).log().view(1, 313, 1, 1)
    expected = (prior[:, None] * color.ab_bins()).sum(0)
    torch.testing.assert_close(net.chroma(logits).flatten(), expected, atol=1e-3, rtol=1e-3)
    half = replace(net.spec, undo_rebalance=0.0).build()
    half.counts.copy_(net.counts)
    torch.testing.assert_close(half.chroma(logits), color.annealed_mean(logits, color.ab_bins(), 1.0))


def test_it_learns_colors_that_depend_on_lightness():
    """Dark is blue, light is yellow: after a few steps the figures are better than the baselines'."""
    trained = method(loss="l2", lr=3e-3, warmup=5, steps=60)
    dark = torch.rand(4, 1, 8, 8, generator=generator(7)).repeat_interleave(9, 2).repeat_interleave(10, 3) > 0.5
    blue, yellow = torch.tensor([20, 30, 90]).view(1, 3, 1, 1), torch.tensor([220, 200, 90]).view(1, 3, 1, 1)
    batch = {**BATCH, "image": torch.where(dark, blue, yellow).byte()}
    for step in range(30):
        trained.update(batch, step)
    figures, baselines = trained.evaluate([batch]), trained.baselines([batch])
    assert figures["auc"] > baselines["mean ab"]["auc"] + 3
    assert figures["psnr"] > baselines["gray"]["psnr"] + 1
    assert figures["chroma"] > 0.5 * figures["chroma_truth"]
    assert baselines["gray"]["chroma"] == 0


def test_the_baselines_do_not_depend_on_how_images_are_batched():
    trained = method(loss="l2")
    parts = [{name: value[i] for name, value in BATCH.items()} for i in (slice(0, 3), slice(3, 4))]
    whole, split = trained.baselines([BATCH]), trained.baselines(parts)
    assert split["mean ab"] == pytest.approx(whole["mean ab"], rel=1e-5)


def test_the_guided_lines_equal_a_nested_loop_and_follow_edges():
    values = torch.randn(1, 2, 5, 6, generator=generator(11), dtype=torch.float64)
    guide = torch.rand(1, 1, 5, 6, generator=generator(12), dtype=torch.float64)
    slope, offset = guided_lines(values, guide, radius=1, epsilon=0.05)

    def window(map: np.ndarray, y: int, x: int) -> np.ndarray:
        rows, columns = np.clip([y - 1, y, y + 1], 0, 4), np.clip([x - 1, x, x + 1], 0, 5)
        return map[rows][:, columns]

    g = guide[0, 0].numpy()
    for channel in range(2):
        v, lines = values[0, channel].numpy(), np.zeros((2, 5, 6))
        for y in range(5):
            for x in range(6):
                near, of = window(g, y, x), window(v, y, x)
                a = ((near * of).mean() - near.mean() * of.mean()) / (near.var() + 0.05)
                lines[:, y, x] = a, of.mean() - a * near.mean()
        means = [[[window(line, y, x).mean() for x in range(6)] for y in range(5)] for line in lines]
        np.testing.assert_allclose(slope[0, channel], means[0])
        np.testing.assert_allclose(offset[0, channel], means[1])

    step = (torch.arange(8) >= 4).float().expand(1, 1, 8, 8)  # where the guide has an edge, the values keep theirs
    slope, offset = guided_lines(20 * step, step, epsilon=1e-4)
    torch.testing.assert_close(slope * step + offset, 20 * step, atol=0.05, rtol=0)


# --- the commands ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("colorization") / "run"
    colorization.main([*TINY, "--hints", "--data", str(photos), "--out", str(folder)])
    return folder


def test_a_run_writes_pictures_figures_a_table_and_an_encoder(run_folder: Path):
    events = EventAccumulator(str(run_folder), size_guidance={"images": 0}).Reload().Tags()
    assert {"pictures/gray | colorized | truth", "pictures/gray with hints | colorized | truth"} < set(events["images"])
    assert any(title.startswith("pictures/temperature") for title in events["images"])
    assert {f"held-out figures/{name}" for name in ("auc", "auc_rebalanced", "psnr", "chroma")} < set(events["scalars"])
    table = (run_folder / "quality.md").read_text()
    assert all(f"| {row} " in table for row in ("gray", "mean ab", "colorization"))
    encoder = checkpoint.load_encoder(run_folder)
    assert [m.shape[2] for m in encoder(torch.rand(1, 3, 64, 64)).values()] == [15, 8, 4, 2]


def test_a_run_starts_from_the_weights_of_another(refused: Refused, run_folder: Path, tmp_path: Path):
    trained = colorization.load_colorizer(run_folder, torch.device("cpu"))
    small = replace(trained.spec, undo_rebalance=0.0)
    started = method(hints=True, size=64, init=str(run_folder)).colorizer
    assert small == started.spec
    for name, value in started.named_parameters():
        assert torch.equal(value, trained.get_parameter(name))
    assert torch.equal(started.counts, torch.ones(313))  # the prior is that of the new data
    message = refused(colorization.main, [*TINY, "--init", run_folder, "--out", tmp_path / "other"])
    assert "--hints True --classes 0, this run " in message
    assert not (tmp_path / "other").exists()


def test_weights_that_ship_keep_the_prior(tmp_path: Path):
    """Half precision ends at 65,504, and bins are counted in millions."""
    trained = method(hints=True)
    trained.colorizer.counts.mul_(1e7)
    state = {"weights": trained.state_dict(), "optimizers": {}}
    encoder = {"spec": trained.colorizer.encoder.spec.plain(), "state": trained.colorizer.encoder.state_dict()}
    content = {"method": "colorization", "step": 1, "score": None, "state": state, "encoders": {"generator": encoder}}
    shipped.write(content | {"config": to_plain(trained.config)}, tmp_path / "w.safetensors")
    read = colorization.load_colorizer(tmp_path / "w.safetensors", torch.device("cpu"))
    assert torch.equal(read.counts, trained.colorizer.counts)
    for name, value in trained.colorizer.named_parameters():
        torch.testing.assert_close(read.get_parameter(name), value, atol=1e-3, rtol=1e-3)


def test_colorizing_keeps_lightness_size_and_alpha(run_folder: Path, tmp_path: Path):
    pixels = (40 + 170 * np.random.default_rng(0).random((90, 131, 4))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    paths = ["--in", str(tmp_path / "p.png"), "--out", str(tmp_path / "o.png"), "--ckpt", str(run_folder)]
    with pytest.raises(SystemExit) as stop:
        colorize.main([*paths, "--device", "cpu"])
    assert stop.value.code == 0
    after = np.asarray(Image.open(tmp_path / "o.png"))
    assert np.array_equal(after[..., 3], pixels[..., 3])
    before = color.rgb_to_lab(torch.from_numpy(pixels[..., :3]).permute(2, 0, 1)[None] / 255)
    lab = color.rgb_to_lab(torch.from_numpy(after[..., :3].copy()).permute(2, 0, 1)[None] / 255)
    assert (lab[:, 0] - before[:, 0]).abs().median() < 0.5
    assert (lab[:, 1:] - before[:, 1:]).abs().mean() > 3


def test_joining_some_rows_at_a_time_equals_the_whole(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    net = colorization.load_colorizer(run_folder, torch.device("cpu"))
    image = torch.rand(3, 80, 100, generator=generator(8))
    whole = colorizer.colorize(image, net, 64)
    monkeypatch.setattr(colorizer, "ROWS", 7)
    done: list[float] = []
    torch.testing.assert_close(colorizer.colorize(image, net, 64, report=done.append), whole, atol=1e-4, rtol=0)
    assert len(done) == 12
    assert done[-1] == 1
    torch.testing.assert_close(colorizer.colorize(image, net), colorizer.colorize(image, net, 85))  # 4/3 of 64


def test_a_hint_colors_its_neighborhood(run_folder: Path, tmp_path: Path):
    Image.fromarray(np.full((64, 64, 3), 120, np.uint8)).save(tmp_path / "p.png")
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[20:40, 20:40] = (200, 30, 30, 255)
    Image.fromarray(layer).save(tmp_path / "h.png")
    results = []
    for number, hints in enumerate(([], ["--hints", str(tmp_path / "h.png")])):
        out = tmp_path / f"o{number}.png"
        with pytest.raises(SystemExit) as stop:
            colorize.main(["--in", str(tmp_path / "p.png"), "--out", str(out), "--ckpt", str(run_folder), *hints])
        assert stop.value.code == 0
        results.append(np.asarray(Image.open(out)).astype(int))
    assert np.abs(results[0] - results[1]).max() > 0


def test_without_a_run_the_weights_that_ship_color_a_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A bright gradient over a dark, rough ground: red hints on the ground turn it red, and not the sky."""
    assert (shipped.FOLDER / "colorizer.safetensors").stat().st_size < 12e6
    monkeypatch.chdir(tmp_path)
    ground = np.random.default_rng(0).integers(60, 120, (60, 160, 1)).repeat(3, 2)
    sky = np.linspace(170, 230, 60).astype(int)[:, None, None].repeat(160, 1).repeat(3, 2)
    Image.fromarray(np.concatenate([sky, ground]).astype(np.uint8)).save("p.png")
    layer = np.zeros((120, 160, 4), np.uint8)
    layer[85:95, 30:40] = layer[85:95, 100:110] = (190, 40, 40, 255)
    Image.fromarray(layer).save("h.png")
    chroma = []
    for hints in ([], ["--hints", "h.png"]):
        with pytest.raises(SystemExit) as stop:
            colorize.main(["--in", "p.png", "--out", "o.png", *hints])
        assert stop.value.code == 0
        assert "using colorizer.safetensors, which ships" in capsys.readouterr().err
        after = torch.from_numpy(np.asarray(Image.open("o.png")).copy()).permute(2, 0, 1)[None] / 255
        chroma.append(color.rgb_to_lab(after)[0, 1:])
    ground_a, sky_a = ((chroma[1] - chroma[0])[0, rows].mean().item() for rows in (slice(75, 105), slice(0, 45)))
    assert ground_a > 10
    assert ground_a > sky_a + 5


def test_bad_input_is_one_line(refused: Refused, run_folder: Path, trained: Path, tmp_path: Path):
    Image.fromarray(np.full((40, 50, 3), 120, np.uint8)).save(tmp_path / "p.png")
    paths = ("--in", "p.png", "--out", "o.png")
    message = refused(colorize.main, [*paths, "--ckpt", trained])
    assert "inpainting" in message
    assert "colorization" in message
    assert "no such file" in refused(colorize.main, ["--in", "q.png", "--out", "o.png"])
    Image.new("RGBA", (9, 9)).save(tmp_path / "h.png")
    message = refused(colorize.main, [*paths, "--ckpt", run_folder, "--hints", "h.png"])
    assert "make it as large" in message
    assert "--side must be" in refused(colorize.main, [*paths, "--ckpt", run_folder, "--side", "-1"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--size", "70"], "use a multiple of 32"),
        (["--rebalance", "0"], "--rebalance must be in"),
        (["--neighbors", "400"], r"--neighbors must be in \[1, 313\]"),
        (["--temperature", "0"], "--temperature must be positive"),
        (["--undo-rebalance", "1.5"], r"--undo-rebalance must be in \[0, 1\]"),
        (["--classes", "-1"], "--classes must be at least 0"),
    ],
)
def test_bad_settings(args: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        parse_training("colorization", {"demo": demo}, args)
