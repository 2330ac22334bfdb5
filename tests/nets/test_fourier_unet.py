from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.networks import pictures

from kintsugi.nets.fourier_unet import FourierUNetSpec, SpectralTransform
from kintsugi.nets.specs import build_spec


@pytest.mark.parametrize(("height", "width"), [(64, 64), (49, 70), (16, 31)])
@torch.no_grad()
def test_photos_of_any_size_are_painted_whole(height: int, width: int) -> None:
    net = FourierUNetSpec(width=4, blocks=1).build().eval()
    painted = net(pictures(2, 3, height, width), torch.zeros(2, 1, height, width))
    assert painted.shape == (2, 3, height, width)
    assert 0 <= painted.amin() < painted.amax() <= 1


@torch.no_grad()
def test_the_content_of_the_hole_is_not_used() -> None:
    net = FourierUNetSpec(width=4, blocks=1).build().eval()
    image, mask = pictures(1, 3, 40, 40), torch.zeros(1, 1, 40, 40)
    mask[..., 10:20, 12:30] = 1
    other = torch.where(mask > 0.5, torch.rand_like(image), image)
    assert torch.equal(net(image, mask), net(other, mask))


@torch.no_grad()
def test_the_spectral_convolution_is_numpys() -> None:
    """The 1x1 convolution mixes real and imaginary parts of the spectrum; computed with numpy's FFT and a matrix."""
    torch.manual_seed(0)
    layer = SpectralTransform(8, "batch").eval()
    x = torch.randn(2, 4, 6, 9)
    spectrum = np.fft.rfft2(x.numpy(), norm="ortho")
    parts = np.concatenate([spectrum.real, spectrum.imag], 1)
    mixed = np.einsum("oi,nihw->nohw", layer.mix.weight[:, :, 0, 0].numpy(), parts)
    mixed = np.maximum(mixed / np.sqrt(1 + 1e-5), 0)  # the norm's statistics are 0 and 1
    expected = np.fft.irfft2(mixed[:, :4] + 1j * mixed[:, 4:], s=(6, 9), norm="ortho")
    np.testing.assert_allclose(layer._spectral(x).numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_every_position_sees_the_whole_photo() -> None:
    torch.manual_seed(0)
    net = FourierUNetSpec(width=4, blocks=1).build().eval()
    image = pictures(1, 3, 128, 128)
    other = image.clone()
    other[..., :8, :8] = 0
    change = (net.encoder(image)[8] - net.encoder(other)[8]).abs().amax(1)[0]
    assert (change[8:, 8:] > 0).float().mean() > 0.9


@torch.no_grad()
def test_the_encoder_is_rebuilt_from_its_spec() -> None:
    encoder = FourierUNetSpec(width=4, blocks=1, norm="group").build().encoder.eval()
    again = build_spec(encoder.spec.plain()).eval()
    again.load_state_dict(encoder.state_dict())
    maps = encoder(pictures(2, 3, 64, 96))
    assert {s: tuple(m.shape) for s, m in maps.items()} == {
        s: (2, c, 64 // s, 96 // s) for s, c in encoder.channels.items()
    }
    assert all(torch.equal(m, n) for m, n in zip(maps.values(), again(pictures(2, 3, 64, 96)).values(), strict=True))
