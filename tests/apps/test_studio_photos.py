"""The page's photos, strokes and points are those of the photo's own pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kintsugi.apps import studio_photos
from kintsugi.apps.mend import paste
from kintsugi.apps.studio_photos import (
    Hint,
    Photo,
    gray,
    hint_layers,
    hole_of,
    open_photo,
    rgb_of,
    save_png,
    shown,
    with_points,
)
from kintsugi.color import rgb_to_lab
from kintsugi.data.photos import to_tensor


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8))


def layer(width: int, height: int, rows: slice, columns: slice, alpha: int = 166) -> np.ndarray:
    painted = np.zeros((height, width, 4), dtype=np.uint8)
    painted[rows, columns] = (255, 45, 120, alpha)
    return painted


# --- opening and saving ---------------------------------------------------------------------------------------


def test_a_photo_is_upright_and_has_its_name(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    noise(30, 20).save(tmp_path / "my cat.jpg", exif=exif)
    photo = open_photo(tmp_path / "my cat.jpg")
    assert (photo.image.size, photo.name) == ((20, 30), "my cat")


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\nbroken"])
def test_a_file_that_is_no_image_gives_one_line_with_its_name(content: bytes, tmp_path: Path):
    (tmp_path / "notes.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"^notes\.jpg cannot be read as an image") as error:
        open_photo(tmp_path / "notes.jpg")
    assert "\n" not in str(error.value)


def test_a_photo_that_is_cut_off_gives_one_line_with_its_name(tmp_path: Path):
    noise(200, 200).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"^cut\.png cannot be read as an image"):
        open_photo(tmp_path / "cut.png")


def test_a_photo_that_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise(50, 40).save(tmp_path / "large.png")
    monkeypatch.setattr(studio_photos.photos, "read_photo", lambda path: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"large\.png is 50x40 px, .*may have at most 0\.001: shrink it first"):
        open_photo(tmp_path / "large.png", largest=0.001)


def test_a_result_keeps_transparency_and_color_profile(tmp_path: Path):
    image = noise(12, 8, 4)
    image.save(tmp_path / "photo.png", icc_profile=b"a profile")
    photo = open_photo(tmp_path / "photo.png")
    file = save_png(photo.with_colors(noise(24, 16)), tmp_path, "enlarged")
    assert Path(file).name == "photo-enlarged.png"
    with Image.open(file) as result:
        assert (result.mode, result.size, result.info["icc_profile"]) == ("RGBA", (24, 16), b"a profile")


def test_two_results_of_one_name_are_two_files(tmp_path: Path):
    photo = Photo(noise(4, 4), "photo")
    assert save_png(photo, tmp_path, "mended") != save_png(photo, tmp_path, "mended")


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 100), (160, 40)), ((100, 400), (40, 160)), ((100, 50), (100, 50)), ((20, 4), (50, 10))],
)
def test_what_is_shown_has_bounded_sides(size: tuple[int, int], expected: tuple[int, int]):
    assert shown(noise(*size), most=160, least=50).size == expected


# --- strokes --------------------------------------------------------------------------------------------------


def test_an_editor_of_the_photos_size_gives_exactly_the_painted_pixels():
    hole = hole_of([layer(30, 20, slice(5, 9), slice(3, 12))], (30, 20))
    expected = np.zeros((20, 30), dtype=bool)
    expected[5:9, 3:12] = True
    assert (hole == expected).all()


@pytest.mark.parametrize("scale", [2, 2.5, 3.7])
def test_a_smaller_editor_gives_each_pixel_whose_center_is_painted(scale: float):
    """Compared with a nested loop."""
    width, height = 40, 24
    large = (round(scale * width), round(scale * height))
    rows, columns = slice(5, 9), slice(3, 12)
    hole = hole_of([layer(width, height, rows, columns)], large)
    for y in range(large[1]):
        for x in range(large[0]):
            row, column = int((y + 0.5) * height / large[1]), int((x + 0.5) * width / large[0])
            inside = rows.start <= row < rows.stop and columns.start <= column < columns.stop
            assert hole[y, x] == inside, (x, y)


def test_strokes_of_several_layers_add_up_and_faint_edges_do_not_count():
    layers = [
        layer(8, 8, slice(0, 2), slice(0, 2)),
        layer(8, 8, slice(4, 6), slice(4, 6)),
        layer(8, 8, slice(7, 8), slice(7, 8), 20),
    ]
    assert hole_of(layers, (8, 8)).sum() == 8


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "Nothing is painted yet"),
        ([layer(8, 8, slice(0), slice(0))], "Nothing is painted yet"),
        ([layer(8, 8, slice(8), slice(8))], "The whole photo is painted"),
        ([layer(8, 16, slice(4), slice(4))], "The strokes do not fit the photo"),
    ],
)
def test_strokes_that_cannot_be_mended_give_one_line(layers: list[np.ndarray], message: str):
    with pytest.raises(ValueError, match=message):
        hole_of(layers, (8, 8))


def test_only_pixels_of_the_hole_are_pasted():
    image, hole = noise(9, 7), np.zeros((7, 9), dtype=bool)
    hole[2:4, 3:8] = True
    result = np.asarray(paste(image, torch.full((3, 7, 9), 0.5), hole))
    assert (result[~hole] == np.asarray(image)[~hole]).all()
    assert (result[hole] == 128).all()


# --- color hints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [("#3b6fb6", (59, 111, 182)), ("rgba(59, 111.2, 181.6, 1)", (59, 111, 182)), ("rgb(1, 2, 3)", (1, 2, 3))],
)
def test_colors_of_the_picker(value: str, expected: tuple[int, int, int]):
    assert rgb_of(value) == expected


def test_a_hint_is_a_small_square_around_its_point():
    colors, known = hint_layers([Hint(0.25, 0.5, "#ff0000")], (400, 200))
    where = known[0].nonzero()
    assert where.float().mean(0).tolist() == pytest.approx([100, 100], abs=1)
    assert where.amin(0).tolist() == [97, 97]
    assert where.amax(0).tolist() == [103, 103]
    assert colors[:, 100, 100].tolist() == [1, 0, 0]
    assert set(known.unique().tolist()) == {0, 1}


def test_without_hints_nothing_is_known():
    assert not hint_layers([], (40, 20))[1].any()


def test_gray_has_no_chroma_and_the_photos_lightness():
    image = noise(16, 16)
    before, after = rgb_to_lab(to_tensor(image)[None]), rgb_to_lab(to_tensor(gray(image))[None])
    assert after[:, 1:].abs().max() < 0.1
    assert (before[:, 0] - after[:, 0]).abs().max() < 0.5


def test_a_point_is_drawn_where_it_is_and_only_there():
    image = Image.new("RGB", (200, 100), "#808080")
    marked = np.asarray(with_points(image, [Hint(0.5, 0.5, "#00ff00")]))
    assert marked[50, 100].tolist() == [0, 255, 0]
    assert (marked[:, :80] == 128).all()
    assert (np.asarray(image) == 128).all()
