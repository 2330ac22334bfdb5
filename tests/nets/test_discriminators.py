from __future__ import annotations

import copy

import pytest
import torch
from helpers.networks import pictures
from torch import nn

from kintsugi.nets.discriminators import DiscriminatorSpec, PatchGanSpec


@pytest.mark.parametrize("norm", ["batch", "group", "spectral"])
@pytest.mark.parametrize(
    ("size", "channels"),
    [
        (32, {2: 8, 4: 16, 8: 32}),
        (48, {2: 8, 4: 16, 8: 32}),
        (64, {2: 8, 4: 16, 8: 32, 16: 64}),
        (96, {2: 8, 4: 16, 8: 32, 16: 64}),
        (128, {2: 8, 4: 16, 8: 32, 16: 64, 32: 64}),
        (256, {2: 8, 4: 16, 8: 32, 16: 64, 32: 64, 64: 64}),
    ],
)
def test_one_logit_an_image_and_features_at_any_size(size, channels, norm) -> None:
    torch.manual_seed(0)
    net = DiscriminatorSpec(size, width=8, norm=norm).build()
    assert net(pictures(2, 3, size, size)).shape == (2,)
    assert net.encoder.channels == channels
    with torch.no_grad():
        features = net.encoder(pictures(2, 3, 64, 128))
    assert {s: tuple(f.shape[1:]) for s, f in features.items()} == {
        s: (c, 64 // s, 128 // s) for s, c in channels.items()
    }


def test_its_input_is_scaled_to_minus_one_to_one() -> None:
    """The first convolution is the reference's on the rescaled image."""
    torch.manual_seed(0)
    net = DiscriminatorSpec(16, width=8).build()
    image = pictures(2, 3, 16, 16)
    conv = net.encoder.layers[0][0]  # type: ignore[index]
    scaled = image * 2 - 1
    expected = nn.functional.leaky_relu(nn.functional.conv2d(scaled, conv.weight, conv.bias, stride=2, padding=1), 0.2)
    torch.testing.assert_close(net.encoder(image)[2], expected)


def test_norms_and_initialization_are_dcgans() -> None:
    torch.manual_seed(0)
    net = DiscriminatorSpec(64).build()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [c.out_channels for c in convs] == [64, 128, 256, 512, 1]
    assert [n.num_features for n in norms] == [128, 256, 512]  # none on the first, none on the logit
    for conv in convs:
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert conv.bias is None or not conv.bias.any()
    for norm in norms:
        assert norm.weight.mean().item() == pytest.approx(1, abs=0.01)
        assert 0.01 < norm.weight.std().item() < 0.03


def test_spectral_norm_bounds_every_layer() -> None:
    torch.manual_seed(0)
    net = DiscriminatorSpec(32, width=8, norm="spectral").build()
    for _ in range(30):  # one power iteration each
        net(pictures(2, 3, 32, 32))
    convs = [m for m in net.eval().modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 4
    assert not any(isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for m in net.modules())
    for conv in convs:
        largest = torch.linalg.svdvals(conv.weight.detach().flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("norm", ["batch", "group", "spectral"])
def test_state_and_copy(norm) -> None:
    torch.manual_seed(0)
    net = DiscriminatorSpec(32, width=8, norm=norm).build()
    net(pictures(4, 3, 32, 32))
    again = DiscriminatorSpec(32, width=8, norm=norm).build()
    again.load_state_dict(net.state_dict())
    image = pictures(2, 3, 32, 32)
    expected = net.eval()(image)
    assert torch.equal(again.eval()(image), expected)
    assert torch.equal(copy.deepcopy(net)(image), expected)


def test_it_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="at least 8 px, not 4"):
        DiscriminatorSpec(4).build()
    with pytest.raises(RuntimeError):
        DiscriminatorSpec(16, width=8).build()(pictures(2, 3, 32, 32))


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_patch_gan_has_a_logit_for_each_patch(norm) -> None:
    torch.manual_seed(0)
    net = PatchGanSpec(width=8, norm=norm).build()
    logits, maps = net.judge(pictures(2, 3, 64, 96))
    assert logits.shape == (2, 1, 8, 12)
    assert {s: m.shape[1] for s, m in maps.items()} == net.encoder.channels == {2: 8, 4: 16, 8: 64}


def test_a_patch_gans_logit_depends_on_54_pixels_around_its_patch() -> None:
    torch.manual_seed(0)
    net = PatchGanSpec(width=8, norm="none").build()
    image = pictures(1, 3, 128, 128).requires_grad_()
    net(image)[0, 0, 8, 8].backward()
    rows = image.grad.abs().amax((0, 1, 3)).nonzero()[:, 0]
    assert rows.max() - rows.min() + 1 == 54
