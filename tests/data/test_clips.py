"""Clips from folders, videos and scenes, and the tuples of frames that are drawn from them."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kintsugi.data import clips
from kintsugi.data.cache import Source
from kintsugi.data.clips import Clips
from kintsugi.data.frame_tuples import Tuples, TupleSplit, equalize_exposure, open_tuples
from kintsugi.data.image_set import Images
from kintsugi.data.store import Store
from kintsugi.scenes.rendering import render_clip


def three(random: torch.Generator) -> Tensor:
    """Three neighboring frames of a window of four."""
    return torch.randint(2, (), generator=random) + torch.arange(3)


def opened(spec: Path | str, span: int = 4, store: Store = Store(), every: int = 1) -> TupleSplit:
    return open_tuples(str(spec), 32, span, three, store, shorter="ask for less", count=50, every=every)


def shade(clip: int, frame: int) -> tuple[int, int, int]:
    return 20 * clip, 10 * frame, 200


def write_frames(root: Path, count: int = 6, frames: int = 11) -> Path:
    """Clips 0, 1, ... of frames 0.png .. 10.png, each in a color (``shade``) that identifies clip and frame."""
    for clip in range(count):
        (root / f"clip{clip}").mkdir(parents=True)
        for frame in range(frames):
            Image.new("RGB", (60, 40), shade(clip, frame)).save(root / f"clip{clip}/{frame}.png")
    return root


def write_video(file: Path, clip: int, frames: int = 9, noise: float = 0) -> None:
    """Skips the test where the optional package PyAV is missing."""
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for frame in range(frames):
            picture = (np.full((48, 64, 3), shade(clip, frame)) + noise * rng.random((48, 64, 3))).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def colors(images: Tensor) -> Tensor:
    """The colors (...,3) of flat pictures (...,3,H,W)."""
    return images[..., 16, 16].int()


@pytest.mark.parametrize("layout", ["frames", "."])
def test_frames_come_in_the_order_of_their_numbers_and_clips_are_held_out_whole(layout: str, tmp_path: Path):
    write_frames(tmp_path / layout)
    if layout == "frames":
        write_frames(tmp_path / "masks", count=1)
    split = opened(tmp_path)
    names = [f"clip{i}" for i in range(6)]
    lowest = min(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert split.heldout.clips.names == [lowest]  # a fifth of six
    assert split.train.clips.names == [name for name in names if name != lowest]
    for tuples in (split.train, split.heldout):
        batch = tuples.batch(torch.arange(50))
        assert batch["image"].shape == (50, 3, 3, 40, 60)
        assert batch["extent"].tolist() == [[40, 60]] * 50
        seen = colors(batch["image"])  # (50,3 frames,3)
        assert (seen[:, 1:, 1] - seen[:, :-1, 1] == 10).all()  # neighbors, also 9 and 10
        assert (seen[:, 1:, 0] == seen[:, :-1, 0]).all()  # of one clip
        assert {f"clip{red // 20}" for red in seen[:, 0, 0].tolist()} == set(tuples.clips.names)
        frames = batch["frame"]
        assert torch.equal(frames % 11 * 10, seen[..., 1].long())


def test_a_tuple_depends_on_its_number_alone(tmp_path: Path):
    split = opened(write_frames(tmp_path))
    whole = split.train.batch(torch.arange(50))
    some = split.train.batch(torch.tensor([31, 7]))
    for name in ("image", "frame", "index"):
        assert torch.equal(some[name], whole[name][[31, 7]])
    assert len(split.train) == 50
    assert len(whole["frame"][:, 0].unique()) > 10


def moving(lengths: list[int], motion: list[float], span: int) -> Tuples:
    frames = [np.zeros((3, 8, 8), np.uint8)] * sum(lengths)
    source = Source([str(i) for i in range(len(frames))], lambda rows: [frames[row] for row in rows])
    firsts = torch.tensor([sum(lengths[:i]) for i in range(len(lengths))])
    names = [f"clip{i}" for i in range(len(lengths))]
    every = Clips(Images(source), torch.tensor(motion), firsts, torch.tensor(lengths), names)
    return Tuples(every, span, lambda random: torch.arange(span), 4000, 3)


def test_windows_are_drawn_by_their_motion():
    lengths, span = [5, 3, 4], 3
    motion = [0, 0.1, 0, 0, 0.3, 0, 0.5, 0.2, 0, 0, 0, 0.4]
    tuples = moving(lengths, motion, span)
    starts, weights, first = [], [], 0
    for length in lengths:
        for start in range(first, first + length - span + 1):
            starts.append(start)
            weights.append(sum(motion[row] for row in range(start + 1, start + span)) / (span - 1))
        first += length
    assert tuples.starts.tolist() == starts
    assert np.allclose(tuples.weights, weights)
    drawn = tuples.batch(torch.arange(4000))["frame"][:, 0]
    found = np.array([(drawn == start).float().mean() for start in starts])
    assert np.allclose(found, np.array(weights) / sum(weights), atol=0.03)
    assert (found[np.array(weights) == 0] == 0).all()


def test_where_nothing_moves_all_windows_are_equally_likely():
    drawn = moving([4, 4], [0.0] * 8, 3).batch(torch.arange(4000))["frame"][:, 0]
    assert np.allclose([(drawn == start).float().mean() for start in (0, 1, 4, 5)], 0.25, atol=0.03)


def test_motion_is_the_mean_difference_of_neighbors_and_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for clip in ("a", "b", "c"):
        (tmp_path / clip).mkdir()
        rng = np.random.default_rng(ord(clip))
        for i in range(4):
            picture = rng.integers(0, 256, (24, 48, 3), np.uint8).repeat(2, 0)
            Image.fromarray(picture).save(tmp_path / clip / f"{i}.png")
    found = opened(tmp_path, store=Store(48, tmp_path / "cache")).train.clips
    pixels = [found.images.source.read([row])[0] for row in range(12)]
    for row in range(12):
        expected = 0.0
        if row % 4:
            now, before = ((p / 255).reshape(3, 24, 2, 24, 2).mean((2, 4)) for p in (pixels[row], pixels[row - 1]))
            expected = float(np.abs(now - before).mean())
        assert found.motion[row].item() == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(clips, "_motion", lambda images: pytest.fail("measured again"))
    again = opened(tmp_path, store=Store(48, tmp_path / "cache")).train.clips
    assert torch.equal(again.motion, found.motion)


def test_over_the_limit_frames_are_decoded_at_each_use(tmp_path: Path):
    write_frames(tmp_path)
    kept, not_kept = (opened(tmp_path, store=Store(limit_gb=gb, quiet=True)).train for gb in (8, 0))
    some = torch.arange(9)
    assert torch.equal(kept.batch(some)["image"], not_kept.batch(some)["image"])
    assert torch.equal(kept.clips.motion, not_kept.clips.motion)


def test_videos_are_read_frame_by_frame(tmp_path: Path):
    for clip in range(6):
        write_video(tmp_path / f"video{clip}.mp4", clip)
    (tmp_path / "cover.png").write_bytes(b"a picture beside them is no clip")
    split = opened(tmp_path, every=2)
    assert split.train.clips.lengths.tolist() == [5] * 5
    batch = split.train.batch(torch.arange(50))
    seen = colors(batch["image"])
    numbers = (batch["frame"] % 5) * 2  # every second frame
    clip = [split.train.clips.names.index(f"video{c}.mp4") for c in (seen[:, 0, 0] / 20).round().int().tolist()]
    assert len(set(clip)) == 5
    assert (seen[..., 1] - 10 * numbers).abs().max() <= 6  # the codec's loss


def test_frames_that_cannot_be_read_are_skipped_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_frames(tmp_path)
    (tmp_path / "clip2/7.png").write_bytes(b"torn")
    split = opened(tmp_path)
    assert "skipped 1 of 66 images: 'clip2/7.png' (not an image)" in capsys.readouterr().err
    assert sorted([*split.train.clips.lengths.tolist(), *split.heldout.clips.lengths.tolist()]) == [10, *[11] * 5]


def test_videos_that_cannot_be_read_are_skipped_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for clip in range(4):
        write_video(tmp_path / f"{clip}.avi", clip)
    (tmp_path / "no.avi").write_bytes(b"no video at all")
    torn = tmp_path / "torn.avi"
    write_video(torn, 0, frames=20, noise=50)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    split = opened(tmp_path)
    message = capsys.readouterr().err
    assert re.search(r"skipped \d+ of \d+ images: .*'no.avi/000000' \(Invalid data found", message)
    lengths = {
        name: length
        for found in (split.train.clips, split.heldout.clips)
        for name, length in zip(found.names, found.lengths.tolist(), strict=True)
    }
    assert 4 < lengths.pop("torn.avi") < 20
    assert lengths == {f"{clip}.avi": 9 for clip in range(4)}


def test_short_clips_are_skipped_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_frames(tmp_path, count=3)
    for frame in range(4, 11):
        (tmp_path / f"clip1/{frame}.png").unlink()
    split = opened(tmp_path, span=5)
    assert len(split.train.clips) == len(split.heldout.clips) == 1
    assert "skipped 1 of 3 clips, of fewer than 5 frames: 'clip1'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"0 of 3 clips have 12 frames, the longest has 11; .*: ask for less"):
        opened(tmp_path, span=12)


def test_a_folder_without_clips_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="no such folder; name a folder with a folder of frames or a video file"):
        opened(tmp_path / "none")
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.png")  # photos at the top are not a clip
    with pytest.raises(ValueError, match="no clips in this folder"):
        opened(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"not read")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "av", None)
        with pytest.raises(ValueError, match="reading videos needs PyAV: pip install av; or give a folder"):
            opened(tmp_path)
    write_frames(tmp_path / "more", count=1)
    with pytest.raises(ValueError, match=r"folders of frames \('more/clip0'\) and videos \('a.mp4'\)"):
        opened(tmp_path)


def test_videos_over_the_limit_are_refused_in_one_line(tmp_path: Path):
    write_video(tmp_path / "a.mp4", 0)
    write_video(tmp_path / "b.mp4", 1)
    with pytest.raises(ValueError, match=r"more than --cache-gb 0: raise it, lower --short-side"):
        opened(tmp_path, store=Store(limit_gb=0))


def test_scenes_have_clips_of_their_own():
    split = open_tuples(
        "scenes", 32, 4, three, Store(short_side=32), shorter="ask for less", count=50, scenes=3, frames=5
    )
    assert len(split.train.clips) == 2
    truth = render_clip(0, torch.arange(3), 32, 5)["image"]  # (3,5,3,32,32)
    truth = (255 * truth).round().byte().flatten(0, 1)
    batch = split.train.batch(torch.arange(6))
    assert torch.equal(batch["image"], truth[batch["frame"]])
    held = {f"scene-{row // 5}" for row in split.heldout.batch(torch.arange(50))["frame"].flatten().tolist()}
    assert held == set(split.heldout.clips.names)
    assert (split.train.clips.motion.view(3, 5)[:, 1:] > 0).all()


def test_equalized_frames_have_one_mean_and_deviation():
    frames = 0.3 + 0.4 * torch.rand(2, 4, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    drift = torch.tensor([1.0, 1.1, 0.9, 1.05]).view(4, 1, 1, 1)
    found = equalize_exposure(drift * frames[:, :1] + 0.05 * (1 - drift))
    for n in range(2):
        for frame in range(1, 4):  # they differed by the drift alone
            assert torch.allclose(found[n, frame], found[n, 0], atol=1e-5)
    found = equalize_exposure(frames)
    for n in range(2):
        for channel in range(3):
            means = [frames[n, k, channel].mean() for k in range(4)]
            deviations = [frames[n, k, channel].std() for k in range(4)]
            for k in range(4):
                scale = sum(deviations) / 4 / deviations[k]
                expected = (frames[n, k, channel] - means[k]) * scale + sum(means) / 4
                assert torch.allclose(found[n, k, channel], expected, atol=1e-5)
    blank = torch.full((1, 2, 3, 4, 4), 0.5)
    blank[0, 1, :, :2] = 0.6
    assert (equalize_exposure(blank)[0, 0].std((1, 2)) < 1e-5).all()
