from __future__ import annotations

import pytest
import torch
from torch import nn

from kintsugi.nets.decoders import ChannelwiseLinear, Decoder
from kintsugi.rng import generator


def test_channelwise_linear_equals_the_loop() -> None:
    torch.manual_seed(0)
    layer = ChannelwiseLinear(channels=3, positions_in=4, positions_out=9)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 2, 2, generator=generator(1))
    with torch.no_grad():
        y = layer(x)
    assert y.shape == (2, 3, 3, 3)
    for n in range(2):
        for c in range(3):
            for q in range(9):
                expected = layer.bias[c, q].item()
                for p in range(4):
                    expected += layer.weight[c, q, p].item() * x[n, c, p // 2, p % 2].item()
                assert y[n, c, q // 3, q % 3].item() == pytest.approx(expected, abs=1e-5)


def test_channelwise_linear_keeps_the_mean_square() -> None:
    torch.manual_seed(0)
    layer = ChannelwiseLinear(channels=256, positions_in=36, positions_out=49)
    x = torch.randn(8, 256, 6, 6, generator=generator(2)).relu()  # all positive, as after a ReLU
    with torch.no_grad():
        y = layer(x)
    assert y.square().mean().item() == pytest.approx(x.square().mean().item(), rel=0.1)


def test_channelwise_linear_wants_a_square() -> None:
    with pytest.raises(ValueError, match="square number, not 8"):
        ChannelwiseLinear(channels=2, positions_in=4, positions_out=8)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_decoder_doubles_the_side_with_each_layer(norm) -> None:
    torch.manual_seed(0)
    decoder = Decoder(48, (32, 16), norm)
    image = decoder(torch.randn(2, 48, 3, 5))
    assert image.shape == (2, 3, 24, 40)
    assert 0 <= image.min() < image.max() <= 1
    assert any(isinstance(m, nn.GroupNorm) for m in decoder.modules()) == (norm == "group")
    image.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_decoder_paints_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        image = Decoder(16, (8,))(torch.randn(2, 16, 4, 4))
    assert image.dtype == torch.float32
    assert not torch.equal(image, image.bfloat16().float())
