from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.networks import pictures
from torch import Tensor

from kintsugi.nets.patch_grid import cut, holes, joined, patch_means, patch_statistics
from kintsugi.nets.vit import fixed_positions
from kintsugi.recon import mae
from kintsugi.recon.mae import MAE, MAEConfig, PatchDecoder, masked_loss, shuffled, targets
from kintsugi.rng import generator
from kintsugi.train.dist import World

TINY = replace(mae.demo(), size=32, batch=4, encoder="test_vit", decoder_width=32)


def build(**settings: object) -> MAE:
    torch.manual_seed(0)
    return MAE(replace(TINY, **settings), World(torch.device("cpu")))  # type: ignore[arg-type]


def batch_of(image: Tensor) -> dict[str, Tensor]:
    pixels = (255 * image).round().to(torch.uint8)
    return {"image": pixels, "extent": torch.tensor([list(image.shape[2:])]).repeat(len(image), 1)}


# --- masks and patches ----------------------------------------------------------------------------------------


def test_shuffling_and_restoring_index_by_index():
    noise = torch.rand(3, 10, generator=generator(1))
    noise[2, 4] = noise[2, 7]  # of two equal ones the first comes first
    kept, restore = shuffled(noise, 3)
    for n in range(3):
        order = sorted(range(10), key=lambda i: (noise[n, i].item(), i))
        assert kept[n].tolist() == order[:3]
        for i in range(10):
            assert order[restore[n, i]] == i
    assert (restore < 3).sum(1).tolist() == [3, 3, 3]


def test_every_patch_is_masked_equally_often_and_independently_in_each_image():
    method = build(mask_ratio=0.75)
    masked = torch.cat([shuffled(method.draw(64, step), 4)[1] >= 4 for step in range(40)]).float()  # (2560,16)
    assert masked.sum(1).unique().tolist() == [12]
    assert (masked.mean(0) - 0.75).abs().max() < 0.04  # four standard deviations
    assert len(masked.unique(dim=0)) > 1000


def test_patches_are_cut_row_by_row_and_joined_again():
    image = pictures(2, 3, 24, 24)
    patches = cut(image, 8)
    assert patches.shape == (2, 9, 192)
    for row in range(3):
        for column in range(3):
            inside = image[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert torch.equal(patches[:, 3 * row + column].sort(1).values, inside.flatten(1).sort(1).values)
    assert torch.equal(joined(patches, 8), image)
    masked = torch.zeros(2, 9, dtype=torch.bool)
    masked[1, 5] = True
    mask = holes(masked, 24)
    assert mask.shape == (2, 1, 24, 24)
    assert mask.sum() == 64
    assert mask[1, 0, 8:16, 16:24].min() == 1
    means = patch_means(image, 8)
    assert torch.allclose(means[1, :, 8:16, 16:24], image[1, :, 8:16, 16:24].mean().expand(3, 8, 8))


# --- networks -------------------------------------------------------------------------------------------------


def test_positions_are_sines_and_cosines_of_both_coordinates():
    """Whatever the order of the channels: a set of sin and cos of each coordinate at each frequency."""
    width, grid = 16, 3
    found = fixed_positions(grid, width)
    assert found.shape == (9, width)
    for row in range(grid):
        for column in range(grid):
            expected = [
                function(place / 10000 ** (i / (width / 4)))
                for place in (row, column)
                for i in range(width // 4)
                for function in (math.sin, math.cos)
            ]
            assert torch.allclose(found[grid * row + column].sort().values, torch.tensor(expected).sort().values)
    assert len(found.unique(dim=0)) == 9
    # Each channel depends on one coordinate only.
    square = found.view(grid, grid, width)
    by_row, by_column = (square.std(i).amax(0) < 1e-6 for i in (1, 0))
    assert (by_row ^ by_column).sum() == width
    assert by_row.sum() == width // 2


def test_positions_of_encoder_and_decoder_are_fixed():
    method = build()
    position = method.encoder.net.pos_embed
    assert position is not None
    assert not position.requires_grad
    assert position[0, 0].abs().max() == 0  # the class token's
    assert torch.equal(position[0, 1:], fixed_positions(4, 64))
    assert torch.equal(method.decoder.positions, fixed_positions(4, 32))
    before = position.clone()
    method.update(method.inputs(batch_of(pictures(4, 3, 40, 44)), 10), 10)
    assert torch.equal(position, before)


@torch.no_grad()
def test_the_decoder_puts_each_token_at_its_place():
    torch.manual_seed(0)
    decoder = PatchDecoder(8, 1, 3, 2, 32, 1)
    decoder.mask_token.normal_()
    tokens = torch.randn(2, 1 + 4, 8)
    noise = torch.rand(2, 9)
    kept, restore = shuffled(noise, 4)
    found = decoder(tokens, restore)
    assert found.shape == (2, 9, 12)
    for n in range(2):
        line = [decoder.embed(tokens[n, 0])]
        for i in range(9):
            place = kept[n].tolist().index(i) if i in kept[n] else None
            token = decoder.mask_token[0, 0] if place is None else decoder.embed(tokens[n, 1 + place])
            line.append(token + decoder.positions[i])
        expected = decoder.pixels(decoder.norm(decoder.blocks(torch.stack(line)[None])))[0, 1:]
        assert torch.allclose(found[n], expected, atol=1e-5)


@torch.no_grad()
def test_the_networks_read_nothing_of_masked_patches():
    method = build().eval()
    image = pictures(4, 3, 32, 32)
    noise = method.draw(4, 0)
    mask = method.mask(noise)
    other = torch.where(mask > 0.5, 1 - image, image)
    kept = shuffled(noise, method.config.visible)[0]
    assert torch.equal(method.encoder.tokens(image, kept), method.encoder.tokens(other, kept))
    assert torch.equal(method.predict(image, noise)[0], method.predict(other, noise)[0])
    assert torch.equal(method.paint(image, noise), method.paint(other, noise))
    visible = torch.where(mask > 0.5, image, 1 - image)
    assert not torch.equal(method.predict(image, noise)[0], method.predict(visible, noise)[0])


def test_tokens_norms_and_biases_have_no_weight_decay():
    method = build()
    names = {p: name for net in (method.encoder, method.decoder) for name, p in net.named_parameters()}
    groups = method.optimizers["both"].param_groups
    decay = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decay.keys() == {name for name in names.values() if name != "net.pos_embed"}
    for name, value in decay.items():
        free = name.endswith("bias") or "norm" in name or name.endswith("_token")
        assert value == (0 if free else 0.05), name
    assert decay["net.cls_token"] == decay["mask_token"] == 0


# --- losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_loss_in_nested_loops(norm_pix: bool):
    target, predicted = pictures(2, 4, 12), torch.randn(2, 4, 12, generator=generator(2))
    masked = torch.tensor([[True, False, True, True], [False, True, True, True]])
    total, count = 0.0, 0
    for n in range(2):
        for i in range(4):
            if not masked[n, i]:
                continue
            values = target[n, i].double()
            mean = sum(values.tolist()) / 12
            variance = sum((v - mean) ** 2 for v in values.tolist()) / 11
            for j in range(12):
                wanted = (values[j].item() - mean) / math.sqrt(variance + 1e-6) if norm_pix else values[j].item()
                total += (predicted[n, i, j].item() - wanted) ** 2
                count += 1
    found = masked_loss(predicted, targets(target, norm_pix), masked)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_the_loss_of_an_update_is_that_of_its_own_crops_and_masks(monkeypatch: pytest.MonkeyPatch):
    method = build(norm_pix=True)
    seen = {}

    def predict(image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        seen["image"], seen["noise"] = image, noise
        return MAE.predict(method, image, noise)

    monkeypatch.setattr(method, "predict", predict)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    loss = method.update(method.inputs(batch_of(pictures(4, 3, 40, 44)), 3), 3)["loss/pixels"]
    assert torch.equal(seen["noise"], method.draw(4, 3))
    assert seen["image"].shape == (4, 3, 32, 32)
    method.load_state_dict(before)
    predicted, masked = MAE.predict(method, seen["image"], seen["noise"])
    target = cut((seen["image"] - 0.5) / 0.5, 8)
    mean, deviation = patch_statistics(target)
    difference = (predicted - (target - mean) / deviation)[masked]
    assert masked.sum(1).tolist() == [12] * 4
    assert loss.item() == pytest.approx(difference.square().mean().item(), rel=1e-5)


# --- pictures and figures -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("norm_pix", [False, True])
def test_a_perfect_prediction_is_painted_as_the_truth(norm_pix: bool, monkeypatch: pytest.MonkeyPatch):
    method = build(norm_pix=norm_pix)
    image = pictures(4, 3, 32, 32)
    perfect = targets(method.patches(image), norm_pix)
    monkeypatch.setattr(method, "predict", lambda image, noise: (perfect, None))
    assert torch.allclose(method.paint(image, method.draw(4, 0)), image, atol=1e-5)


def test_figures_are_those_of_masked_pixels():
    method = build()
    image = pictures(3, 3, 32, 32)
    batch = batch_of(image)
    truth = batch["image"].float() / 255
    found = method.evaluate([batch])
    noise = method.draw(3, 0, 0)
    painted, rows = method.paint(truth, noise), []
    for n in range(3):
        order = sorted(range(16), key=lambda i: noise[n, i].item())
        squared = [
            (painted[n] - truth[n])[:, 8 * (i // 4) : 8 * (i // 4) + 8, 8 * (i % 4) : 8 * (i % 4) + 8].square()
            for i in order[4:]
        ]
        rows.append(-10 * math.log10(torch.stack(squared).mean().item()))
    assert found["psnr"] == pytest.approx(sum(rows) / 3, abs=1e-3)


def test_baselines_fill_from_visible_patches_only():
    image = pictures(2, 3, 32, 32) * 0.2
    image[:, 0] += 0.7
    batch = batch_of(image)
    plain = build().baselines([batch])
    assert list(plain) == ["mean color", "biharmonic", "membrane"]
    assert list(build(norm_pix=True).baselines([batch])) == [*plain, "mean of each patch"]
    assert plain["mean color"]["psnr"] > 15
    flat = build().baselines([batch_of(torch.full((2, 3, 32, 32), 0.6))])
    assert all(row["psnr"] > 60 for row in flat.values())


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 16), (0.6, 25), (0.9, 6), (0.99, 0), (0.5, 32), (0.001, 63)])
def test_the_number_of_visible_patches_is_rounded_down(ratio: float, visible: int):
    if visible == 0:
        with pytest.raises(ValueError, match=r"--mask-ratio 0.99 leaves 0 of 64 patches visible: use one that"):
            replace(mae.demo(), mask_ratio=ratio)
    else:
        assert replace(mae.demo(), mask_ratio=ratio).visible == visible


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 60}, "--size 60: use a multiple of --patch, 8 px"),
        ({"decoder_width": 100}, "--decoder-width 100: use a multiple of 32"),
        ({"mask_ratio": 0.0}, "--mask-ratio 0 leaves 64 of 64 patches visible"),
        ({"mask_ratio": 1.5}, r"--mask-ratio must be in \[0, 1\], not 1.5"),
        ({"decoder_depth": 0}, "--decoder-depth must be at least 1, not 0"),
        ({"lr": -1.0}, "--lr must be at least 0"),
        ({"smallest_crop": 0.0}, "--smallest-crop must be in"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        replace(mae.demo(), **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "resnet18"}, "resnet18 is no vision transformer"),
        ({"encoder": "vit_tinny_patch16_224"}, "similar: vit_tiny_patch16_224"),
        ({"size": 72, "patch": 12}, "patches of 12 px: use a power of two"),
    ],
)
def test_networks_that_do_not_fit_are_refused_before_training(settings: dict[str, str | int], message: str):
    with pytest.raises(ValueError, match=message):
        MAE.check(replace(mae.demo(), **settings))  # type: ignore[arg-type]


def test_the_learning_rate_is_scaled_by_the_batch():
    config = mae.paper()
    assert config.lr * config.batch / 256 == pytest.approx(2.4e-3)
    assert config.visible == 49
    assert isinstance(config, MAEConfig)
    assert build(lr=0.01, batch=64).rate == pytest.approx(0.0025)
