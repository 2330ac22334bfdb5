from __future__ import annotations

import json

import torch

from kintsugi.nets.pixels import Pixels


def test_pixels_are_an_encoder():
    encoder = Pixels().build()
    image = torch.rand(2, 3, 40, 48)
    maps = encoder(image)
    assert maps[8].shape == (2, 192, 5, 6)
    assert maps[8][1, 0, 2, 3] == image[1, 0, 16, 24]
    whole = torch.nn.functional.interpolate(image, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(encoder.vector(maps), whole.flatten(1))
    assert encoder(torch.rand(1, 3, 33, 37))[8].shape == (1, 192, 5, 5)
    assert json.dumps(Pixels().plain()) == '{"kind": "pixels"}'
