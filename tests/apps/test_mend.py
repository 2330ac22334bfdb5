from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Run, refusal
from PIL import Image
from torch import Tensor

from kintsugi.apps.mend import Mending, main, mend_file
from kintsugi.fill.patches import complete
from kintsugi.train import shipped


def gray(image: Tensor, mask: Tensor) -> Tensor:
    """A photo (3,H,W) whose hole is gray."""
    return image.masked_fill(mask > 0.5, 0.5)


# --- files ----------------------------------------------------------------------------------------------------


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(array).save(path, **options)
    return path


def pixels(height: int = 40, width: int = 30, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def hole(height: int = 40, width: int = 30) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[5:9, 4:20] = 255
    return mask


def test_pixels_outside_the_hole_alpha_and_color_profile_are_kept(tmp_path: Path):
    before, mask = pixels(channels=4), hole()
    mask[20, 20], mask[20, 21] = 128, 127  # above 127 is hole
    photo = save(tmp_path / "p.png", before, icc_profile=b"a profile")
    note = mend_file(photo, save(tmp_path / "m.png", mask), tmp_path / "o.png", gray)
    assert note == ""
    with Image.open(tmp_path / "o.png") as image:
        assert image.mode == "RGBA"
        assert image.info["icc_profile"] == b"a profile"
        after = np.asarray(image)
    assert np.array_equal(after[..., 3], before[..., 3])
    assert np.array_equal(after[mask <= 127], before[mask <= 127])
    assert (after[mask > 127] != before[mask > 127]).any(1).mean() > 0.9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.png", "o.png", "p.png"]


def test_with_invert_black_is_the_hole(tmp_path: Path):
    photo = save(tmp_path / "p.png", pixels())
    mend_file(photo, save(tmp_path / "m.png", hole()), tmp_path / "white.png", gray)
    mask = save(tmp_path / "n.png", 255 - hole())
    mend_file(photo, mask, tmp_path / "black.png", gray, invert=True)
    white, black = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("white", "black"))
    assert np.array_equal(white, black)


def test_the_photo_is_mended_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turn it by 90 degrees clockwise
    stored = pixels(30, 40)
    photo = save(tmp_path / "p.png", stored, exif=exif)
    mend_file(photo, save(tmp_path / "m.png", hole()), tmp_path / "o.png", gray)
    with Image.open(tmp_path / "o.png") as image:
        assert image.getexif().get(0x0112, 1) == 1
        after = np.asarray(image)
    assert np.array_equal(after[hole() == 0], np.rot90(stored, -1)[hole() == 0])


@pytest.mark.parametrize(
    ("before", "kind"),
    [(pixels(channels=1), "grayscale"), (pixels(channels=1).astype(np.uint16) * 257, "16-bit grayscale")],
)
def test_other_bit_depths_become_8_bit_rgb_with_a_note(before: np.ndarray, kind: str, tmp_path: Path):
    photo, mask = save(tmp_path / "p.png", before), save(tmp_path / "m.png", hole())
    assert mend_file(photo, mask, tmp_path / "o.png", gray) == f"8-bit RGB, converted from {kind}"
    after = np.asarray(Image.open(tmp_path / "o.png"))
    expected = np.repeat(pixels(channels=1)[..., None], 3, 2)
    assert np.array_equal(after[hole() == 0], expected[hole() == 0])


def test_a_transparent_mask_has_its_hole_where_it_is_opaque(tmp_path: Path):
    photo = save(tmp_path / "p.png", pixels())
    layer = np.dstack([np.full((40, 30, 3), 255, np.uint8), hole()])  # white everywhere, opaque in the hole
    mend_file(photo, save(tmp_path / "layer.png", layer), tmp_path / "a.png", gray)
    mend_file(photo, save(tmp_path / "plain.png", hole()), tmp_path / "b.png", gray)
    assert np.array_equal(Image.open(tmp_path / "a.png"), Image.open(tmp_path / "b.png"))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (hole(30, 40), "m.png is 40x30 px but .*p.png is 30x40 px"),
        (np.zeros((40, 30), np.uint8), "no hole"),
        (np.full((40, 30), 255, np.uint8), "all hole"),
    ],
)
def test_unusable_masks_give_an_error_of_one_line(mask: np.ndarray, message: str, tmp_path: Path):
    photo = save(tmp_path / "p.png", pixels())
    with pytest.raises(ValueError, match=message) as refused:
        mend_file(photo, save(tmp_path / "m.png", mask), tmp_path / "o.png", gray)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "o.png").exists()


# --- the command ----------------------------------------------------------------------------------------------


def test_the_newest_run_is_used_and_printed(run: Run, tmp_path: Path, trained: Path):
    folder = tmp_path / "runs/inpainting/today"
    folder.mkdir(parents=True)
    (folder / trained.name).symlink_to(trained)
    (tmp_path / "runs/inpainting/latest").write_text("today\n")
    save(tmp_path / "p.png", pixels(90, 70))
    save(tmp_path / "m.png", hole(90, 70))
    done = run("kintsugi.apps.mend", "--in", "p.png", "--mask", "m.png", "--out", "new/o.png")
    assert done.returncode == 0, done.stderr
    assert "using " in done.stderr
    assert "o.png" in done.stdout
    after = np.asarray(Image.open(tmp_path / "new/o.png"))
    outside = hole(90, 70) == 0
    assert np.array_equal(after[outside], pixels(90, 70)[outside])


def test_in_a_folder_failures_are_printed_and_the_rest_is_done(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
):
    photos, masks, out = (tmp_path / name for name in ("photos", "masks", "out"))
    for name in ("a", "b", "d"):
        save(photos / f"{name}.png", pixels(70, 66))
        save(masks / f"{name}.png", hole(70, 66))
    (photos / "c.jpg").write_text("no image")
    (masks / "d.png").unlink()
    (photos / "notes.txt").write_text("not a photo")
    options = ["--out", str(out), "--ckpt", str(trained), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main(["--in", str(photos), "--mask", str(masks), *options])
    assert stop.value.code == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "c.jpg cannot be read" in errors[0]
    assert "no such file" in errors[1]
    assert "d.png" in errors[1]
    assert errors[2] == "2 of 4 photos failed"
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.png"]

    (photos / "c.jpg").unlink()
    with pytest.raises(SystemExit) as stop:  # one mask for all
        main(["--in", str(photos), "--mask", str(masks / "a.png"), *options])
    assert stop.value.code == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.png", "d.png"]


@pytest.mark.parametrize(
    ("source", "mask", "out", "message"),
    [
        ("none.png", "m.png", "o.png", "--in none.png: no such file"),
        ("p.png", "none.png", "o.png", "--mask none.png: no such file"),
        ("p.png", "m.png", "o.jpg", "results are written as PNG, which is lossless; name it o.png"),
        ("p.png", "m.png", "p.png", "would overwrite p.png"),
        ("empty", "m.png", "out", "there are no images in this folder"),
        ("twice", "m.png", "out", "rename all but one"),
        ("twice", "m.png", "p.png", "name a folder"),
        ("p.png", "m.png", "o.png", "no checkpoint at runs/mender/latest"),
    ],
)
def test_bad_paths_give_an_error_of_one_line(
    source: str, mask: str, out: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    save(Path("p.png"), pixels())
    save(Path("m.png"), hole())
    save(Path("twice/x.png"), pixels())
    save(Path("twice/x.jpg"), pixels())
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["--in", source, "--mask", mask, "--out", out])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_bad_input_through_the_real_command(run: Run, tmp_path: Path, trained: Path):
    save(tmp_path / "p.png", pixels())
    save(tmp_path / "m.png", hole(30, 30))
    paths = ("--in", "p.png", "--mask", "m.png", "--out", "o.png")
    assert "make the mask as large" in refusal(run("kintsugi.apps.mend", *paths, "--ckpt", trained))
    assert "did you mean --in?" in refusal(run("kintsugi.apps.mend", *paths, "--inn", "x"))


def test_detail_comes_from_the_photo_unless_it_is_the_networks(tmp_path: Path, trained: Path):
    """On a texture, patches are sharp where the network's painting is not."""
    texture = np.tile(pixels(8, 8), (10, 10, 1))
    save(tmp_path / "p.png", texture)
    save(tmp_path / "m.png", hole(80, 80))
    found = {}
    for detail in ("patches", "net"):
        files = ("--in", tmp_path / "p.png", "--mask", tmp_path / "m.png", "--out", tmp_path / f"{detail}.png")
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in (*files, "--ckpt", trained, "--device", "cpu", "--detail", detail)])
        assert stop.value.code == 0
        found[detail] = np.asarray(Image.open(tmp_path / f"{detail}.png")).astype(int)
        outside = hole(80, 80) == 0
        assert np.array_equal(found[detail][outside], texture[outside])
    inside = hole(80, 80) > 0
    assert found["patches"][inside].std() > 0.9 * texture[inside].std() > 1.5 * found["net"][inside].std()


def test_without_a_run_the_weights_that_ship_mend_a_photo(run: Run, tmp_path: Path):
    """The hole of a smooth picture is filled so well that the eye hardly finds it."""
    y, x = np.mgrid[0:1:90j, 0:1:120j]
    picture = np.stack([200 * x, 60 + 100 * y, 180 - 100 * x * y], 2).round().astype(np.uint8)
    mask = hole(90, 120)
    save(tmp_path / "m.png", mask)
    save(tmp_path / "p.png", np.where(mask[..., None] > 0, 255, picture).astype(np.uint8))
    done = run("kintsugi.apps.mend", "--in", "p.png", "--mask", "m.png", "--out", "o.png", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "using mender.safetensors, which ships with Kintsugi" in done.stderr
    after = np.asarray(Image.open(tmp_path / "o.png")).astype(int)
    assert np.array_equal(after[mask == 0], picture[mask == 0])
    assert np.abs(after - picture).mean() < 2


@pytest.mark.parametrize("method", ["mender", "inpainting"])
def test_detail_and_seed_and_progress_of_both_methods(method: str, trained: Path):
    torch.manual_seed(0)
    mending = Mending(trained if method == "inpainting" else shipped.FOLDER / "mender.safetensors", torch.device("cpu"))
    image, mask = torch.rand(3, 70, 80), torch.zeros(1, 70, 80)
    mask[:, 30:50, 20:60] = 1
    done: list[float] = []
    net = mending(image, mask, "net")
    patches = mending(image, mask, "patches", 1, done.append)
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1)
    assert torch.equal(patches, complete(net, mask, 1))
    auto = mending(image, mask, "auto", 1)
    assert torch.equal(auto, patches) or torch.equal(auto, net)


def test_a_negative_seed_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["--in", "p.png", "--mask", "m.png", "--out", "o.png", "--seed", "-1"])
    assert stop.value.code == 2
    assert "--seed must not be negative" in capsys.readouterr().err
