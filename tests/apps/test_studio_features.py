"""What the page shows of an encoder: colors of its features, and the nearest photos of a folder."""

from __future__ import annotations

from pathlib import Path
from shutil import copy

import pytest
import torch
from torch import Tensor, nn

from kintsugi.apps.studio_features import nearest, pca_colors
from kintsugi.apps.studio_photos import open_photo
from kintsugi.nets.encoder import Encoder
from kintsugi.rng import generator


class Means(Encoder):
    """Features of stride 16: the mean color of each cell, and linear combinations of it."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.channels = {16: channels}
        self.mix = nn.Parameter(torch.randn(channels, 3, generator=generator(1)))

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return {16: torch.einsum("kc,nchw->nkhw", self.mix, nn.functional.avg_pool2d(image, 16))}


def quiet(fraction: float, what: str) -> None:
    assert 0 <= fraction <= 1


def test_colors_have_the_photos_size_and_tell_its_regions_apart():
    image = torch.rand(3, 96, 160, generator=generator(0)) * 0.1
    image[0, :, 80:] += 0.8
    colors = pca_colors(Means(), image)
    assert colors.shape == image.shape
    assert colors.min() >= 0
    assert colors.max() <= 1
    difference = colors[:, :, :60].mean((1, 2)) - colors[:, :, 100:].mean((1, 2))
    assert difference.abs().max() > 0.8  # the first direction is that of the two halves


def test_the_first_direction_is_that_of_numpys_principal_components():
    import numpy as np

    image = torch.rand(3, 224, 224, generator=generator(0))
    encoder = Means()
    features = encoder(image[None])[16][0].flatten(1).T.detach().double().numpy()
    _, directions = np.linalg.eigh(np.cov(features.T))
    expected = features @ directions[:, -1]
    shown = nn.functional.avg_pool2d(pca_colors(encoder, image)[None, :1], 16).flatten().numpy()
    assert abs(np.corrcoef(expected, shown)[0, 1]) > 0.9  # the shown one is clipped and interpolated


def test_fewer_than_three_channels_leave_the_other_colors_black():
    colors = pca_colors(Means(2), torch.rand(3, 64, 64, generator=generator(0)))
    assert colors[2].abs().max() == 0
    assert colors[0].std() > 0


def test_a_flat_photo_has_finite_colors():
    assert pca_colors(Means(), torch.full((3, 64, 64), 0.5)).isfinite().all()


def test_the_photo_itself_is_its_nearest_neighbor(photos: Path):
    image = open_photo(photos / "photo07.jpg").tensor
    found, note = nearest(Means(), image, photos, quiet, 3)
    assert found[0].path.name == "photo07.jpg"
    assert found[0].similarity == pytest.approx(1, abs=1e-3)
    assert [one.similarity for one in found] == sorted((one.similarity for one in found), reverse=True)
    assert (len(found), note) == (3, "")


def test_files_that_cannot_be_read_are_left_out_and_counted(photos: Path, tmp_path: Path):
    copy(photos / "photo00.jpg", tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    found, note = nearest(Means(), open_photo(photos / "photo00.jpg").tensor, str(tmp_path), quiet)
    assert [one.path.name for one in found] == ["photo00.jpg"]
    assert note == "1 files could not be read"


def test_a_large_folder_is_compared_in_part_and_said_so(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kintsugi.apps.studio_features.MOST", 5)
    found, note = nearest(Means(), open_photo(photos / "photo00.jpg").tensor, photos, quiet, 10)
    assert len(found) == 5
    assert note == "only the first 5 of 24 photos were compared"


@pytest.mark.parametrize(
    ("folder", "message"),
    [(" ", "Name a folder"), ("nowhere", "nowhere is not a folder"), (".", "no photo that can be read")],
)
def test_a_folder_that_cannot_be_searched_gives_one_line(
    folder: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        nearest(Means(), torch.rand(3, 40, 40), folder, quiet)
