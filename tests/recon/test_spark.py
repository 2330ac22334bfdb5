from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.command_line import Refused

from kintsugi.nets.masked import Cells, draw_visible
from kintsugi.nets.patch_grid import cut
from kintsugi.recon import spark
from kintsugi.recon.spark import SparK, cell_loss
from kintsugi.rng import generator
from kintsugi.train.dist import World

WORLD = World(torch.device("cpu"))
BATCH = {
    "image": torch.randint(0, 256, (4, 3, 72, 80), generator=generator(0), dtype=torch.uint8),
    "extent": torch.tensor([[72, 80]]).repeat(4, 1),
}


def method(**settings: Any) -> SparK:
    torch.manual_seed(0)
    return SparK(replace(spark.demo(), **{"batch": 4, "steps": 8, "decoder_width": 64, **settings}), WORLD)


# --- masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "shown", "block"), [(4, 6, 2), (4, 6, 1), (8, 26, 2), (7, 20, 1), (2, 1, 2)])
def test_the_count_of_visible_cells_is_exact_at_every_scale(grid: int, shown: int, block: int):
    visible = draw_visible(200, grid, shown, block, generator(1))
    assert (visible.sum((1, 2, 3)) == shown).all()
    for finer in (1, 2, 4):
        assert (Cells(visible).at(finer * grid).sum((1, 2, 3)) == shown * finer**2).all()
    if block > 1:
        assert Cells(visible).at(grid // block).all()


def test_every_cell_is_masked_equally_often():
    frequency = draw_visible(4000, 4, 6, 2, generator(2)).float().mean(0)
    torch.testing.assert_close(frequency, torch.full_like(frequency, 6 / 16), rtol=0, atol=0.04)


def test_masks_differ_between_images_and_steps_and_are_drawn_again_alike():
    trained = method()
    first, second = trained.draw(4, 0), trained.draw(4, 1)
    assert first.equal(method().draw(4, 0))
    assert not first.equal(second)
    assert not first[0].equal(first[1])


# --- losses ---------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_a_loop_over_masked_cells():
    painted, image = torch.randn(2, 3, 8, 8, generator=generator(4)), torch.rand(2, 3, 8, 8, generator=generator(5))
    visible = draw_visible(2, 4, 6, 1, generator(6))
    total, count = 0.0, 0
    for n in range(2):
        for i in range(4):
            for j in range(4):
                if visible[n, 0, i, j]:
                    continue
                places = [(c, y, x) for c in range(3) for y in (2 * i, 2 * i + 1) for x in (2 * j, 2 * j + 1)]
                values = [image[n, c, y, x].item() for c, y, x in places]
                mean = sum(values) / 12
                deviation = (sum((value - mean) ** 2 for value in values) / 11 + 1e-6) ** 0.5
                for (c, y, x), value in zip(places, values, strict=True):
                    total += (painted[n, c, y, x].item() - (value - mean) / deviation) ** 2
                    count += 1
    assert cell_loss(painted, image, visible).item() == pytest.approx(total / count, rel=1e-5)


def test_the_loss_ignores_visible_cells():
    painted = torch.randn(2, 3, 8, 8, generator=generator(7), requires_grad=True)
    visible = draw_visible(2, 4, 6, 1, generator(8))
    cell_loss(painted, torch.rand(2, 3, 8, 8, generator=generator(9)), visible).backward()
    assert painted.grad is not None
    assert painted.grad.ne(0).equal(~Cells(visible).at(8).expand(2, 3, 8, 8))


# --- networks -------------------------------------------------------------------------------------------------


def test_tokens_fill_masked_places_only():
    trained, cells = method(), Cells(draw_visible(4, 4, 6, 2, generator(10)))
    for stride, channels in trained.encoder.channels.items():
        densify = trained.decoder.densify[str(stride)]
        torch.nn.init.normal_(densify.token)
        x = torch.rand(4, channels, 64 // stride, 64 // stride, generator=generator(11))
        filled, visible = densify.filled(x, cells), cells.at(64 // stride).expand_as(x)
        token = densify.token.view(1, -1, 1, 1).expand_as(x)
        assert filled[~visible].equal(token[~visible])
        assert filled[visible].equal(cells.norm(densify.norm, x)[visible])


@pytest.mark.parametrize(("stem", "cell"), [("large", 16), ("medium", 16), ("small", 8)])
def test_the_painting_does_not_depend_on_masked_pixels(stem: str, cell: int):
    trained = method(stem=stem, cell=cell).eval()
    image, visible = torch.rand(4, 3, 64, 64, generator=generator(12)), trained.draw(4, 0)
    noise = torch.where(Cells(visible).at(64), image, torch.rand(4, 3, 64, 64, generator=generator(13)))
    painted = trained.predict(image, visible)
    assert painted.shape == image.shape
    assert painted.equal(trained.predict(noise, visible))


# --- training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"optimizer": "adamw", "lr": 2e-3}, {"optimizer": "lamb", "lr": 0.4}])
def test_the_loss_falls_below_that_of_the_cells_means(settings: dict[str, Any]):
    trained = method(steps=60, warmup=5, **settings)
    image = torch.nn.functional.interpolate(torch.rand(4, 3, 3, 3, generator=generator(16)), (72, 80), mode="bilinear")
    batch = {**BATCH, "image": (255 * image).byte()}
    losses = [trained.update(batch, step)["loss/cells"].item() for step in range(60)]
    assert sum(losses[-5:]) / 5 < 0.95


def test_weight_decay_rises_along_a_cosine():
    trained = method(weight_decay=0.04, last_weight_decay=0.2)
    assert [round(trained.decay(step), 6) for step in (0, 4, 8)] == [0.04, 0.12, 0.2]
    trained.update(BATCH, 4)
    weights, rest = trained.optimizers["both"].param_groups
    assert (weights["weight_decay"], rest["weight_decay"]) == (pytest.approx(0.12), 0)
    assert {p.ndim for p in rest["params"]} == {1}
    assert min(p.ndim for p in weights["params"]) == 2 or min(p.ndim for p in weights["params"]) == 4


def test_a_large_gradient_is_clipped():
    trained = method(clip=1e-3, lr=1.0, warmup=0, log_every=1)
    optimizer = trained.optimizers["both"]
    norm = trained.update(BATCH, 0)["grad_norm/both"]
    moments = torch.cat([state["exp_avg"].flatten() for state in optimizer.state.values()])
    assert norm > 1e-3
    assert (moments.double() / 0.1).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_pictures_keep_visible_cells_and_undo_the_normalization():
    trained = method()
    image = torch.rand(4, 3, 64, 64, generator=generator(17))
    painted = cut(trained.paint(image, trained.draw(4, 0)), 16)
    assert (painted.mean((0, 2)) - cut(image, 16).mean((0, 2))).abs().max() < 0.1
    ((title, picture),) = trained.show(BATCH).items()
    assert title == "visible | painted | truth"
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_figures_have_the_baselines_names():
    trained = method()
    rows = trained.baselines([BATCH])
    assert list(rows) == ["mean color", "biharmonic", "mean of each cell"]
    figures = trained.evaluate([BATCH])
    assert all(row.keys() == figures.keys() for row in rows.values())
    assert figures == trained.evaluate([BATCH])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--cell 12", "--cell 12: use a power of two, such as 8, 16 or 32"),
        ("--size 80", "--size 80: use a multiple of 32"),
        ("--stem small --cell 64 --size 96", "--size 96: use a multiple of 64"),
        ("--mask-ratio 0.9", "--mask-ratio 0.9 shows 2 of 16 cells: use one that shows 4 to 15, or other cells with"),
        ("--mask-ratio 0", "--mask-ratio 0 shows 16 of 16 cells: use one that shows 4 to 15"),
        ("--mask-ratio 1.5", "--mask-ratio must be in [0, 1], not 1.5"),
        ("--clip 0", "--clip must be at least"),
    ],
)
def test_bad_settings_are_refused_with_one_line(options: str, message: str, refused: Refused):
    assert message in refused(spark.main, options.split())
