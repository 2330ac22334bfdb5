from __future__ import annotations

import dataclasses
import json

import pytest
import timm
import torch
from helpers.networks import pictures
from torch import Tensor
from torch.nn.functional import pad

from kintsugi.nets.specs import build_spec, fresh
from kintsugi.nets.vit import ViT, ViTEncoder


def small(patch: int = 8, size: int = 64, planes: int = 3) -> ViTEncoder:
    """A network of 6 blocks and 64 channels."""
    torch.manual_seed(0)
    return ViT("test_vit", size, patch, planes).build().eval()


@torch.no_grad()
def test_maps_are_those_of_timms_own_network():
    """Block by block, with images of the size for which positions are made."""
    encoder = small()
    net = timm.create_model("test_vit", img_size=64, patch_size=8, num_classes=0, global_pool="").eval()
    net.load_state_dict(encoder.net.state_dict())
    image = pictures(2, 3, 64, 64)
    x = net._pos_embed(net.patch_embed((image - 0.5) / 0.5))
    blocks: list[Tensor] = []
    for block in net.blocks:
        x = block(x)
        blocks.append(x)
    blocks[-1] = net.norm(blocks[-1])
    maps = encoder(image)
    assert encoder.channels == {8: 256, 16: 64, 32: 64} == {stride: x.shape[1] for stride, x in maps.items()}
    for row in range(8):
        for column in range(8):
            token = 1 + 8 * row + column  # after the class token
            joined = torch.cat([blocks[i][:, token] for i in (1, 2, 3, 5)], 1)  # round(6 * (1, 2, 3, 4) / 4) - 1
            assert torch.allclose(maps[8][:, :, row, column], joined, atol=1e-5)
    for stride, wide in ((16, 2), (32, 4)):
        for row in range(8 // wide):
            for column in range(8 // wide):
                inside = [
                    blocks[-1][:, 1 + 8 * (row * wide + i) + column * wide + j]
                    for i in range(wide)
                    for j in range(wide)
                ]
                assert torch.allclose(maps[stride][:, :, row, column], torch.stack(inside).mean(0), atol=1e-5)
    assert torch.allclose(encoder.vectors(image), blocks[-1][:, 1:].mean(1), atol=1e-5)
    assert torch.allclose(encoder.tokens(image), net.forward_features((image - 0.5) / 0.5), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("patch", [0, 4, 32])
def test_images_of_any_size(name: str, patch: int):
    encoder = ViT(name, 64, patch).build().eval()
    assert list(encoder.channels) == [s for s in (4, 8, 16, 32) if s >= (patch or 16)]
    for height, width in ((32, 32), (33, 50), (64, 96)):
        image = pictures(1, 3, height, width)
        maps = encoder(image)
        assert {stride: x.shape[1] for stride, x in maps.items()} == encoder.channels
        assert all(x.shape[2:] == (-(-height // s), -(-width // s)) for s, x in maps.items())
        assert encoder.vector(maps).shape == (1, encoder.width)


@torch.no_grad()
def test_padding_is_the_mean_color():
    encoder = small()
    image = pictures(1, 3, 40, 50)
    padded = pad(image - 0.5, (0, 6)) + 0.5
    for one, other in zip(encoder(image).values(), encoder(padded).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@torch.no_grad()
def test_positions_are_interpolated_for_other_sizes_and_can_be_kept():
    encoder = small()
    image = pictures(1, 3, 96, 96)
    before = encoder(image)
    encoder.resize(96)
    assert encoder.spec == ViT("test_vit", 96, 8)
    assert encoder.net.pos_embed.shape == (1, 1 + 144, 64)
    again = build_spec(encoder.spec.plain()).eval()
    again.load_state_dict(encoder.state_dict())
    for one, other, third in zip(before.values(), encoder(image).values(), again(image).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
        assert torch.equal(other, third)


@torch.no_grad()
def test_only_the_kept_patches_are_computed():
    """The tokens of kept patches are those of a network that got these patches alone."""
    encoder = small()
    image = pictures(2, 3, 64, 64)
    kept = torch.tensor([[5, 0, 63], [7, 8, 9]])
    found = encoder.tokens(image, kept)
    assert found.shape == (2, 1 + 3, 64)
    net, rows = encoder.net, []
    for n in range(2):
        tokens = [(net.cls_token[0, 0] + net.pos_embed[0, 0])]
        for i in kept[n].tolist():
            top, left = 8 * (i // 8), 8 * (i % 8)
            patch = (image[n, :, top : top + 8, left : left + 8] - 0.5) / 0.5
            pixels = (net.patch_embed.proj.weight * patch).sum((1, 2, 3)) + net.patch_embed.proj.bias
            tokens.append(pixels + net.pos_embed[0, 1 + i])
        rows.append(torch.stack(tokens))
    assert torch.allclose(found, net.norm(net.blocks(torch.stack(rows))), atol=1e-5)
    changed = image.clone()
    changed[0, :, :8, 8:16] = 1 - changed[0, :, :8, 8:16]  # patch 1 of the first image
    assert torch.equal(encoder.tokens(changed, kept), found)


def test_the_settings_build_the_same_network():
    encoder = small()
    plain = {"kind": "vit", "name": "test_vit", "size": 64, "patch": 8, "planes": 3}
    assert json.loads(json.dumps(encoder.spec.plain())) == plain
    again = fresh(encoder, 3)
    assert isinstance(again, ViTEncoder)
    assert again.spec == encoder.spec
    again.load_state_dict(encoder.state_dict())
    image = pictures(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.vectors(image), encoder.vectors(image))
    assert torch.equal(fresh(encoder, 3).net.cls_token, fresh(encoder, 3).net.cls_token)


def test_the_networks_own_sides_are_the_default():
    encoder = ViT("vit_tiny_patch16_224").build()
    assert encoder.patch == 16
    assert encoder.net.pos_embed.shape == (1, 1 + 14 * 14, 192)


@torch.no_grad()
def test_six_planes():
    encoder = small(planes=6)
    image = pictures(1, 6, 64, 64)
    assert encoder.planes == 6
    assert torch.equal(encoder.normalized(image), (image - 0.5) / 0.5)
    assert encoder(image)[8].shape == (1, 256, 8, 8)


def test_every_weight_is_trained():
    encoder = small().train()
    encoder.vectors(pictures(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ViT("vit_tinny_patch16_224"), r"timm has no network 'vit_tinny_patch16_224' \(similar: vit_tiny_patch16_224"),
        (ViT("resnet18"), "resnet18 is no vision transformer of timm"),
        (ViT("vit_tiny_r_s16_p8_224"), "is no plain vision transformer: choose one such as vit_tiny_patch16_224"),
        (ViT("vit_small_patch14_dinov2", 70, 14), "patches of 14 px: use a power of two up to 32"),
        (ViT("test_vit", 60, 12), "patches of 12 px: use a power of two"),
        (ViT("test_vit", 128, 64), "patches of 64 px: use a power of two"),
        (ViT("test_vit", 60, 8), "images of 60 px: use a multiple of the patch, 8 px"),
        (ViT("test_vit", 40), "images of 40 px: use a multiple of the patch, 16 px"),
        (ViT("test_vit", planes=4), "takes 3 planes or a multiple of 3, not 4"),
    ],
)
def test_bad_settings_are_one_line(spec: ViT, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        spec.build()
    assert "\n" not in str(caught.value)


def test_a_resize_to_no_multiple_of_the_patch_is_refused():
    encoder = small()
    with pytest.raises(ValueError, match="images of 60 px"):
        encoder.resize(60)
    assert encoder.spec == dataclasses.replace(encoder.spec, size=64)
