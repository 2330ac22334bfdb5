from __future__ import annotations

import numpy as np
import pytest
import torch

from kintsugi.augment.bicubic import enlarge
from kintsugi.nets import srresnet
from kintsugi.nets.srresnet import SelfEnsemble, SRResNet, SRResNetSpec
from kintsugi.rng import generator


def test_an_untrained_network_is_bicubic():
    small = torch.rand(2, 3, 10, 12, generator=generator(1))
    torch.testing.assert_close(SRResNetSpec(2, 8).build()(small), enlarge(small, 4))


def test_features_of_whole_images_by_stride():
    encoder = SRResNetSpec(2, 8).build().encoder.eval()
    features = encoder(torch.rand(1, 3, 70, 100))
    assert {stride: tuple(maps.shape[2:]) for stride, maps in features.items()} == {4: (16, 24), 8: (8, 12), 16: (4, 6)}


def untrained(blocks: int = 3) -> SRResNet:
    """A network whose results differ from bicubic enlargement."""
    torch.manual_seed(0)
    net = SRResNetSpec(blocks, 8).build().eval()
    with torch.no_grad():
        net.last.weight.normal_(0, 0.05)
    return net


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("tile", [5, 16, 40])
def test_tiles_equal_the_whole(tile: int, ensemble: bool):
    net = SelfEnsemble(untrained()) if ensemble else untrained()
    image = torch.rand(3, 47, 61, generator=generator(3))
    whole = srresnet.upscale(image, net, 1000)
    assert (srresnet.upscale(image, net, tile) - whole).abs().max() < 1e-5
    assert (whole - enlarge(image[None], 4)[0].clamp(0, 1)).abs().max() > 0.05
    assert len(list(srresnet.pieces(image, net, tile))) == srresnet.tiles(47, 61, tile)


def test_the_ensemble_is_the_mean_of_a_plain_loop_over_numpys_turns_and_flips():
    net, image = untrained(1), torch.rand(2, 3, 9, 14, generator=generator(4))
    total = np.zeros((2, 3, 36, 56))
    with torch.no_grad():
        for axes in ((), (2,), (3,), (2, 3)):
            for transposed in (False, True):
                seen = np.flip(image.numpy(), axes)
                seen = seen.swapaxes(2, 3) if transposed else seen
                result = net(torch.from_numpy(seen.copy())).numpy()
                result = result.swapaxes(2, 3) if transposed else result
                total += np.flip(result, axes)
        found = SelfEnsemble(net)(image)
        alone = net(image)
    np.testing.assert_allclose(found.numpy(), total / 8, atol=1e-6)
    assert (found - alone).abs().max() > 0.01
    with torch.no_grad():  # the ensemble does not depend on the orientation
        turned = SelfEnsemble(net)(image.rot90(1, (2, 3))).rot90(-1, (2, 3))
    torch.testing.assert_close(turned, found, atol=1e-6, rtol=0)
