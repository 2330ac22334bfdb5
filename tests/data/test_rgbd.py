from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kintsugi.data.hha_images import open_hha
from kintsugi.data.rgbd import open_rgbd


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    for name in ("rgb", "depth"):
        (tmp_path / name).mkdir()
    for i, (height, width) in enumerate([(6, 8), (5, 8)]):
        millimeters = (1000 * i + np.arange(height * width).reshape(height, width)).astype(np.uint16)
        Image.fromarray(millimeters).save(tmp_path / f"depth/frame{i}.png")
        Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / f"rgb/frame{i}.jpg", quality=100)
    (tmp_path / "intrinsics.txt").write_text("262.5 0 160\n0 262.5 120\n0 0 1\n")
    (tmp_path / "gravity.txt").write_text("0 1.8 2.4\n")
    return tmp_path


def test_depth_is_in_meters_and_padded_as_missing(kitchen: Path):
    frames = open_rgbd(kitchen)
    assert frames.images.shape == (2, 3, 6, 8)
    assert frames.depth.shape == (2, 1, 6, 8)
    expected = np.arange(40).reshape(5, 8) / 1000 + 1
    assert np.allclose(frames.depth[1, 0, :5], expected)
    assert frames.depth[0, 0, 0, 0] == 0
    assert (frames.depth[1, 0, 5] == 0).all()
    assert frames.intrinsics.tolist() == [[262.5, 0, 160], [0, 262.5, 120], [0, 0, 1]]
    assert frames.gravity is not None
    assert np.allclose(frames.gravity, [0, 0.6, 0.8])
    (kitchen / "gravity.txt").unlink()
    assert open_rgbd(kitchen).gravity is None


def test_wrong_depth_and_intrinsics_are_one_line(kitchen: Path):
    (kitchen / "depth/frame0.png").rename(kitchen / "depth/frame9.png")
    with pytest.raises(ValueError, match="2 files in rgb and depth have no partner"):
        open_rgbd(kitchen)
    (kitchen / "depth/frame9.png").unlink()
    Image.new("L", (8, 6)).save(kitchen / "depth/frame0.png")
    with pytest.raises(ValueError, match="16-bit PNG in millimeters, not mode L"):
        open_rgbd(kitchen)
    (kitchen / "intrinsics.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match="holds 3 values, not 9 numbers"):
        open_rgbd(kitchen)
    for focal, message in (("nan", "not 9 numbers"), ("inf", "not 9 numbers"), ("0", "focal lengths are 0 and 5")):
        (kitchen / "intrinsics.txt").write_text(f"{focal} 0 4 0 5 3 0 0 1")
        with pytest.raises(ValueError, match=message):
            open_rgbd(kitchen)
        with pytest.raises(ValueError, match=message):
            open_hha(str(kitchen), 4)
    (kitchen / "intrinsics.txt").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*intrinsics\.txt \(No such file"):
        open_rgbd(kitchen)
