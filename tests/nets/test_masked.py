from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kintsugi.nets.backbones import Backbone, ResNet
from kintsugi.nets.masked import Cells, draw_visible, masked_maps
from kintsugi.rng import generator


def built(name: str = "resnet18", norm: str = "batch", stem: str = "large") -> ResNet:
    """An encoder whose norms have no neutral weights or running statistics."""
    torch.manual_seed(0)
    encoder = Backbone(name=name, norm=norm, stem=stem).build()  # type: ignore[arg-type]
    for layer in encoder.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    assert isinstance(encoder, ResNet)
    return encoder


def images(n: int = 3, size: int = 64, key: int = 1) -> Tensor:
    return torch.rand(n, 3, size, size, generator=generator(key))


CASES = [  # name, norm, stem, side of a cell
    ("resnet18", "batch", "large", 32),
    ("resnet18", "batch", "large", 16),
    ("resnet18", "group", "large", 8),
    ("resnet18", "batch", "medium", 16),
    ("resnet18", "group", "small", 8),
    ("resnet50", "batch", "large", 32),
    ("resnet50", "group", "large", 16),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "norm", "stem", "cell"), CASES)
def test_nothing_of_a_masked_cell_reaches_any_map(name: str, norm: str, stem: str, cell: int, training: bool):
    encoder, image, grid = built(name, norm, stem).train(training), images(), 64 // cell
    block = 2 if max(encoder.channels) > cell else 1
    visible = draw_visible(3, grid, round(0.4 * grid**2), block, generator(2))
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    maps = masked_maps(encoder, image, Cells(visible))
    statistics = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.load_state_dict(state)
    noise = torch.where(Cells(visible).at(64), image, 10 * torch.randn(3, 3, 64, 64, generator=generator(3)))
    again = masked_maps(encoder, noise, Cells(visible))
    assert list(maps) == list(encoder.channels)
    for stride in maps:
        assert maps[stride].abs().max() > 0
        assert maps[stride].equal(again[stride])
        hidden = ~Cells(visible).at(64 // stride).expand_as(maps[stride])
        assert not maps[stride][hidden].any()
    for key, value in encoder.state_dict().items():
        assert value.equal(statistics[key])


def test_a_visible_pixel_changes_every_map():
    encoder, visible = built().eval(), torch.tensor([[[[True, False], [False, True]]]])
    image, other = images(1), images(1)
    other[0, :, 5, 5] += 1
    first, second = (masked_maps(encoder, x, Cells(visible)) for x in (image, other))
    assert all(not first[stride].equal(second[stride]) for stride in first)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "norm", "stem", "cell"), CASES[:5])
def test_with_all_cells_visible_the_maps_are_those_of_the_plain_encoder(
    name: str, norm: str, stem: str, cell: int, training: bool
):
    encoder, image = built(name, norm, stem).train(training), images()
    masked = masked_maps(encoder, image, Cells(torch.ones(3, 1, 64 // cell, 64 // cell, dtype=torch.bool)))
    for stride, plain in built(name, norm, stem).train(training)(image).items():
        torch.testing.assert_close(masked[stride], plain, rtol=1e-4, atol=1e-4)


def test_batch_norm_is_that_of_a_loop_over_visible_places():
    x, visible = torch.randn(3, 4, 8, 8, generator=generator(4)), draw_visible(3, 4, 6, 1, generator(5))
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    result = Cells(visible).norm(norm, x)
    for c in range(4):
        seen = [
            x[n, c, i, j].item() for n in range(3) for i in range(8) for j in range(8) if visible[n, 0, i // 2, j // 2]
        ]
        assert len(seen) == 3 * 6 * 4
        mean = sum(seen) / len(seen)
        variance = sum((value - mean) ** 2 for value in seen) / len(seen)
        weight, bias = norm.weight[c].item(), norm.bias[c].item()
        for n in range(3):
            for i in range(8):
                for j in range(8):
                    value = weight * (x[n, c, i, j].item() - mean) / (variance + norm.eps) ** 0.5 + bias
                    expected = value if visible[n, 0, i // 2, j // 2] else 0.0
                    assert result[n, c, i, j].item() == pytest.approx(expected, abs=1e-5)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.running_mean[c].item() == pytest.approx(0.1 * mean, abs=1e-6)
        unbiased = variance * len(seen) / (len(seen) - 1)
        assert norm.running_var[c].item() == pytest.approx(0.9 + 0.1 * unbiased, abs=1e-5)


def test_group_norm_is_that_of_a_loop_over_visible_places():
    x, visible = torch.randn(2, 4, 4, 4, generator=generator(6)), draw_visible(2, 4, 6, 1, generator(7))
    result = Cells(visible).norm(nn.GroupNorm(2, 4), x)
    for n in range(2):
        places = [(i, j) for i in range(4) for j in range(4) if visible[n, 0, i, j]]
        for group in range(2):
            channels = (2 * group, 2 * group + 1)
            seen = [x[n, c, i, j].item() for c in channels for i, j in places]
            mean = sum(seen) / len(seen)
            variance = sum((value - mean) ** 2 for value in seen) / len(seen)
            for c in channels:
                for i, j in places:
                    expected = (x[n, c, i, j].item() - mean) / (variance + 1e-5) ** 0.5
                    assert result[n, c, i, j].item() == pytest.approx(expected, abs=1e-5)
    assert not result[~visible.expand_as(result)].any()


def test_gradients_are_those_of_visible_places():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator(8), requires_grad=True)
    cells = Cells(draw_visible(2, 2, 2, 1, generator(9)))
    assert torch.autograd.gradcheck(lambda x: cells.norm(nn.GroupNorm(1, 3, dtype=torch.float64), x), x)
    cells.norm(nn.GroupNorm(1, 3, dtype=torch.float64), x).square().sum().backward()
    assert x.grad is not None
    assert not x.grad[~cells.at(4).expand_as(x)].any()


def test_places_larger_than_a_cell_are_visible_if_any_of_its_cells_is():
    visible = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    visible[0, 0, 0, 1] = visible[0, 0, 3, 3] = True
    assert Cells(visible).at(2).tolist() == [[[[True, False], [False, True]]]]
    assert Cells(visible).at(8).sum() == 8


def test_images_with_unequal_numbers_of_visible_places_are_refused():
    visible = torch.tensor([[[[True, False]] * 2], [[[True, True]] * 2]])
    with pytest.raises(ValueError, match="equally many visible places"):
        Cells(visible).norm(nn.BatchNorm2d(3), torch.zeros(2, 3, 4, 4))
