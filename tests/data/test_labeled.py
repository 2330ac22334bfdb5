from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from kintsugi.data.image_set import Images
from kintsugi.data.labeled import Labels, contours, mirrored, open_synthetic, pack, unpack
from kintsugi.data.side_by_side import SideBySide, open_real, sample_photos
from kintsugi.data.store import Store
from kintsugi.scenes import rendering

FOLDERS = ("rgb", "depth", "normal", "instance")


def sample(i: int, height: int = 40, width: int = 52) -> dict[str, np.ndarray]:
    """The four images of a random sample, as files hold them."""
    random = np.random.default_rng(i)
    normal = random.normal(size=(height, width, 3))
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    return {
        "rgb": random.integers(0, 256, (height, width, 3), np.uint8),
        "depth": random.integers(0, 2**16, (height, width)).astype(np.uint16),
        "normal": (127.5 * (normal + 1)).round().astype(np.uint8),
        "instance": random.integers(0, 700, (height, width)).astype(np.uint16),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FOLDERS:
        (tmp_path / "world" / name).mkdir(parents=True)
    for i in range(4):
        for name, values in sample(i).items():
            Image.fromarray(values).save(tmp_path / "world" / name / f"{i:03d}.png")
    return tmp_path / "world"


def everything(images: Images) -> Tensor:
    return images.batch(torch.arange(len(images)))["image"]


# --- planes ---------------------------------------------------------------------------------------------------


def test_packed_planes_keep_image_and_labels():
    found = rendering.render(3, torch.arange(3), 32)
    image, labels = unpack(pack(found["image"], Labels(found["depth"], found["normal"], found["instance"])))
    assert (image - found["image"]).abs().max() <= 0.5 / 255 + 1e-6
    assert (labels.depth - found["depth"]).abs().max() <= 0.5e-3 + 1e-6
    cosine = (labels.normal * found["normal"]).sum(1).clamp(-1, 1)
    assert torch.rad2deg(cosine.acos()).max() < 0.5
    assert torch.equal(labels.instance, found["instance"].long())


def test_missing_labels_stay_missing():
    depth = torch.tensor([0.0, 1.234, 70.0]).view(1, 1, 1, 3)
    normal = torch.zeros(1, 3, 1, 3)
    normal[0, 2, 0, 1] = -1
    instance = torch.tensor([[[0, 700, 65535]]])
    image = torch.zeros(1, 3, 1, 3)
    _, labels = unpack(pack(image, Labels(depth, normal, instance)))
    torch.testing.assert_close(labels.depth.flatten(), torch.tensor([0.0, 1.234, 0.0]))
    assert torch.equal(labels.normal.norm(dim=1).flatten() > 0.5, torch.tensor([False, True, False]))
    assert torch.equal(labels.instance, instance)


def test_a_mirrored_room_has_mirrored_normals():
    labels = Labels(torch.ones(2, 1, 4, 4), torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4))
    turned = mirrored(labels, torch.tensor([True, False])).normal
    assert torch.equal(turned[0, 0], -labels.normal[0, 0])
    assert torch.equal(turned[0, 1:], labels.normal[0, 1:])
    assert torch.equal(turned[1], labels.normal[1])


def test_normals_agree_with_depth_in_camera_axes():
    """Checks the convention independently: the normals of scenes are those of the surface that depth describes."""
    found = rendering.render(0, torch.arange(8), 96)
    k = found["intrinsics"]
    y, x = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    for n in range(8):
        ray = torch.stack([(x - k[n, 0, 2]) / k[n, 0, 0], (y - k[n, 1, 2]) / k[n, 1, 1], torch.ones_like(x)])
        point = ray * found["depth"][n]
        along, down = point[:, :-1, 1:] - point[:, :-1, :-1], point[:, 1:, :-1] - point[:, :-1, :-1]
        normal = torch.nn.functional.normalize(torch.cross(down, along, dim=0), dim=0)
        expected = found["normal"][n][:, :-1, :-1]
        assert (normal * expected).sum(0).median() > 0.999


def test_contours_are_those_of_a_loop():
    instance = torch.randint(0, 2, (2, 7, 6), generator=torch.Generator().manual_seed(1))
    found = contours(instance)
    assert found.shape == (2, 1, 7, 6)
    for n in range(2):
        for y in range(7):
            for x in range(6):
                around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
                other = any(0 <= a < 7 and 0 <= b < 6 and instance[n, a, b] != instance[n, y, x] for a, b in around)
                assert found[n, 0, y, x] == float(other)


# --- sets -----------------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_it_is(folder: Path):
    split = open_synthetic(str(folder), 32, Store(short_side=40))
    planes = torch.cat([everything(split.train), everything(split.heldout)])
    names = split.train.names + split.heldout.names
    assert sorted(names) == ["000", "001", "002", "003"]
    image, labels = unpack(planes)
    for i, name in enumerate(names):
        made = sample(int(name))
        assert np.array_equal((255 * image[i]).round().permute(1, 2, 0).numpy(), made["rgb"])
        assert np.array_equal((1000 * labels.depth[i, 0]).round().numpy(), made["depth"])
        assert np.array_equal(labels.instance[i].numpy(), made["instance"])
        normal = made["normal"].astype(float) / 127.5 - 1
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        assert np.abs(labels.normal[i].permute(1, 2, 0).numpy() - normal).max() < 1e-5


def test_shrunk_labels_take_the_value_of_the_pixel_at_their_center(folder: Path):
    split = open_synthetic(str(folder), 16, Store(short_side=20))  # 40x52 -> 20x26
    image, labels = unpack(everything(split.train))
    made = sample(int(split.train.names[0]))
    assert image.shape[-2:] == (20, 26)
    expected = interpolate(
        torch.from_numpy(made["depth"].astype(np.float32))[None, None], (20, 26), mode="nearest-exact"
    )
    assert np.array_equal((1000 * labels.depth[0, 0]).round().numpy(), expected[0, 0].numpy())
    smooth = np.asarray(Image.fromarray(made["rgb"]).resize((26, 20), Image.Resampling.BICUBIC))
    assert np.abs((255 * image[0]).permute(1, 2, 0).numpy() - smooth).max() <= 1.01


def test_samples_that_do_not_match_are_skipped_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]):
    Image.fromarray(sample(0)["depth"][:30]).save(folder / "depth" / "000.png")
    (folder / "normal" / "001.png").write_bytes(b"no picture")
    split = open_synthetic(str(folder), 32, Store(short_side=40))
    assert sorted(split.train.names + split.heldout.names) == ["002", "003"]
    message = capsys.readouterr().err
    assert "skipped 2 of 4" in message
    assert "'000' (its depth is 30x52, its image 40x52)" in message


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_without_one_of_its_subfolders_is_refused(name: str, folder: Path):
    (folder / name).rename(folder / "away")
    with pytest.raises(ValueError, match=f"no {name}/ in it"):
        open_synthetic(str(folder), 32)


def test_scenes_are_those_rendered(tmp_path: Path):
    split = open_synthetic("scenes", 24, Store(short_side=32, cache=tmp_path, quiet=True), scenes=6)
    number = int(split.train.names[2].split("-")[1])
    found = rendering.render(0, torch.tensor([number]), 32)
    image, labels = unpack(split.train.batch(torch.tensor([2]))["image"])
    assert (image - found["image"]).abs().max() < 1 / 255
    assert (labels.depth - found["depth"]).abs().max() < 1e-3
    again = open_synthetic("scenes", 24, Store(short_side=32, cache=tmp_path), scenes=6)
    assert torch.equal(everything(again.train), everything(split.train))


def test_messages_on_real_images_name_their_option(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--real .*no such folder"):
        open_real(str(tmp_path / "none"), 32, Store(limit_gb=1, quiet=True))
    with pytest.raises(ValueError, match="--real scenes"):
        open_real("scenes", 32, Store(limit_gb=1, quiet=True))


def test_two_sets_side_by_side_wrap_around(folder: Path, photos: Path):
    one = open_synthetic(str(folder), 32, Store(short_side=40)).train  # 3 of 4
    other = open_real(str(photos), 32, Store(short_side=40, limit_gb=1, quiet=True)).train
    both = SideBySide(one, other)
    assert len(both) == len(other) > len(one) == 3
    batch = both.batch(torch.tensor([1, 4]))
    assert torch.equal(batch["synthetic/image"][0], batch["synthetic/image"][1])
    assert not torch.equal(batch["real/image"][0], batch["real/image"][1])
    assert batch["synthetic/first"].tolist() == [True, False]
    assert batch["real/first"].tolist() == [True, True]


def test_sample_photos_hold_whole_photos_out():
    split = sample_photos(64)
    assert len(split.train) > 50
    assert len(split.heldout) > 20
    batch = split.train.batch(torch.arange(4))
    assert batch["image"].shape == (4, 3, 64, 64)
