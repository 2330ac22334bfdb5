from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kintsugi.data import cache
from kintsugi.data.cache import Pixels, Source, build, estimate, load, load_index, save_index
from kintsugi.data.images import open_images
from kintsugi.data.store import Store

ROOT = Path(__file__).parents[3]


def picture(row: int) -> np.ndarray:
    """Images of different sizes; every third cannot be read."""
    return np.random.default_rng(row).integers(0, 256, (3, 4 + row % 5, 6 + row % 2), dtype=np.uint8)


def source(count: int = 10, chunk: int = 4) -> Source:
    def read(rows: Sequence[int]) -> list[Pixels]:
        return ["spoilt\nfile" if row % 3 == 2 else picture(row) for row in rows]

    names = [f"näme\n{i} \udce9" for i in range(count)]  # as a file's name may be
    return Source(names, read, torch.arange(count) - 1, ("a", "b"), chunk)


READABLE = [0, 1, 3, 4, 6, 7, 9]


def check(kept: Source | None) -> None:
    assert kept is not None
    assert kept.extents is not None
    assert list(kept.names) == [source().names[row] for row in READABLE]
    assert kept.labels is not None
    assert kept.labels.tolist() == [row - 1 for row in READABLE]
    assert list(kept.classes) == ["a", "b"]
    assert kept.extents.tolist() == [list(picture(row).shape[1:]) for row in READABLE]
    assert kept.skipped == [(source().names[row], "spoilt\nfile") for row in (2, 5, 8)]
    places = [6, 0, 3, 3]
    for place, image in zip(places, kept.read(places), strict=True):
        assert not isinstance(image, str)
        assert np.array_equal(image, picture(READABLE[place]))


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_what_is_built_is_what_is_loaded(tmp_path: Path, chunk: int) -> None:
    folder = tmp_path / "root" / "set"
    check(build(folder, source(chunk=chunk), 1e9, "decoding"))
    check(load(folder))
    assert names(tmp_path / "root") == {"set"}


def test_pixels_are_read_only(tmp_path: Path) -> None:
    decoded = build(tmp_path / "set", source(), 1e9, "decoding")
    assert decoded is not None
    image = decoded.read([0])[0]
    assert not isinstance(image, str)
    with pytest.raises(ValueError, match="read-only"):
        image[:] = 0


def test_no_labels(tmp_path: Path) -> None:
    plain = Source(["a"], lambda rows: [picture(0)])
    decoded = build(tmp_path / "set", plain, 1e9, "decoding")
    assert decoded is not None
    assert decoded.labels is None
    assert decoded.skipped == []


def test_the_limit(tmp_path: Path) -> None:
    needed = sum(picture(row).nbytes for row in READABLE)
    assert build(tmp_path / "set", source(), needed - 1, "decoding") is None
    assert list(tmp_path.iterdir()) == []
    check(build(tmp_path / "set", source(), needed, "decoding"))


def test_the_estimate() -> None:
    rows_read: list[int] = []

    def read(rows: Sequence[int]) -> list[Pixels]:
        rows_read.extend(rows)
        return ["spoilt" if row % 2 else np.zeros((3, 10, 20), np.uint8) for row in rows]

    assert estimate(Source(["x"] * 10_001, read)) == pytest.approx(10_001 / 2 * 600, rel=0.2)
    assert len(rows_read) == 64
    assert max(np.diff(rows_read)) < 200  # spread over all of it
    assert estimate(Source(["x"] * 2, read)) == 600


def test_a_set_without_a_readable_image_is_one_line(tmp_path: Path) -> None:
    spoilt = Source(["one", "two"], lambda rows: ["cut off"] * len(rows))
    with pytest.raises(ValueError, match=r"none of its 2 images can be read \(the first, 'one': cut off\)"):
        build(tmp_path / "set", spoilt, 1e9, "decoding")
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_a_million_names(tmp_path: Path) -> None:
    """It loads fast, and its file is little larger than its contents."""
    count = 1_000_000
    given = [f"n{i // 1000:08d}/n{i // 1000:08d}_{i}.JPEG" for i in range(count)]
    extents = np.arange(2 * count).reshape(count, 2)
    save_index(tmp_path / "index", given, {"classes": ["a"]}, extents=extents)
    assert (tmp_path / "index").stat().st_size < sum(map(len, given)) + count + extents.nbytes + 10_000
    begun = time.process_time()
    index = load_index(tmp_path / "index")
    assert time.process_time() - begun < 2
    assert index is not None
    assert index[0] == given
    assert index[1] == {"classes": ["a"]}
    assert np.array_equal(index[2]["extents"], extents)


# --- interruption and damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def read(rows: Sequence[int]) -> list[Pixels]:
        if 8 in rows:
            raise error
        return source().read(rows)

    with pytest.raises(type(error)):
        build(tmp_path / "set", Source(source().names, read, chunk=2), 1e9, "decoding")
    assert list(tmp_path.iterdir()) == []
    assert load(tmp_path / "set") is None
    check(build(tmp_path / "set", source(), 1e9, "decoding"))


def test_a_killed_build_does_not_count_as_complete_and_is_removed_later(tmp_path: Path) -> None:
    """Killed in the middle, by os._exit, so that nothing cleans up."""
    script = (
        "import os, numpy as np\nfrom pathlib import Path\nfrom kintsugi.data.cache import Source, build\n"
        "def read(rows):\n    if 2 in rows: os._exit(9)\n    return [np.zeros((3, 999, 999), np.uint8)] * len(rows)\n"
        f"build(Path({str(tmp_path / 'set')!r}), Source(list('abc'), read, chunk=1), 1e9, '', True)"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert killed.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name != "set"
    assert load(tmp_path / "set") is None
    check(build(tmp_path / "set", source(), 1e9, "decoding"))
    assert names(tmp_path) == {"set", left.name}  # another process may still be writing it
    os.utime(left / "pixels.bin", (1, 1))
    build(tmp_path / "other", source(), 1e9, "decoding")
    assert names(tmp_path) == {"set", "other"}


def test_builds_that_have_just_begun_or_are_being_removed_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "building-begun").mkdir()
    (tmp_path / "building-file").touch()
    check(build(tmp_path / "set", source(), 1e9, "decoding"))


INDEX = "index.npz"
DAMAGES = {
    "index gone": lambda folder: (folder / INDEX).unlink(),
    "pixels gone": lambda folder: (folder / "pixels.bin").unlink(),
    "index cut": lambda folder: os.truncate(folder / INDEX, 40),
    "index cut at its end": lambda folder: os.truncate(folder / INDEX, (folder / INDEX).stat().st_size - 1),
    "index empty": lambda folder: os.truncate(folder / INDEX, 0),
    "index of bytes": lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe\0\0"),
    "index of one array": lambda folder: np.save(open(folder / INDEX, "wb"), np.zeros(3)),  # noqa: SIM115
    "index of nothing": lambda folder: save_index(folder / INDEX, [], {}),
    "index null": lambda folder: save_index(folder / INDEX, [], None),
    "a byte changed": lambda folder: flip(folder / INDEX, b"spoilt"),
    "a name less": lambda folder: shorten(folder / INDEX, names=1),
    "an extent less": lambda folder: shorten(folder / INDEX, extents=1),
    "a label less": lambda folder: shorten(folder / INDEX, labels=1),
    "pixels cut": lambda folder: os.truncate(folder / "pixels.bin", 100),
    "pixels empty": lambda folder: os.truncate(folder / "pixels.bin", 0),
    "pixels more": lambda folder: os.truncate(folder / "pixels.bin", 100_000),
}


def flip(file: Path, near: bytes) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(near, b"?" + near[1:], 1))


def shorten(file: Path, names: int = 0, **less: int) -> None:
    found = load_index(file)
    assert found is not None
    kept, about, arrays = found
    arrays = {name: array[: len(array) - less.get(name, 0)] for name, array in arrays.items()}
    save_index(file, kept[: len(kept) - names], about, **arrays)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_is_built_again(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "set"
    check(build(folder, source(), 1e9, "decoding"))
    DAMAGES[damage](folder)
    assert load(folder) is None
    check(build(folder, source(), 1e9, "decoding"))
    check(load(folder))
    assert names(tmp_path) == {"set"}


# --- two at once -----------------------------------------------------------------------------------------------


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Each waits in the middle until the other one has got there."""
    script = (
        "import sys, time, numpy as np\nfrom pathlib import Path\nfrom kintsugi.data.cache import Source, build\n"
        f"root, me, other = Path({str(tmp_path)!r}), *sys.argv[1:]\n"
        "def read(rows):\n"
        "    if 5 in rows:\n"
        "        (root / me).touch()\n"
        "        while not (root / other).exists(): time.sleep(0.01)\n"
        "    return [np.full((3, 9, 9), row, np.uint8) for row in rows]\n"
        "decoded = build(root / 'sets' / 'set', Source(list('abcdefgh'), read, chunk=1), 1e9, '', True)\n"
        "print([image.max().item() for image in decoded.read(range(8))])"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script, *who], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for who in (("one", "two"), ("two", "one"))
    ]
    for process in both:
        assert process.communicate(timeout=60)[0].strip() == str(list(range(8)))
        assert process.returncode == 0
    assert names(tmp_path / "sets") == {"set"}


def test_the_second_build_uses_the_first_ones_set(tmp_path: Path) -> None:
    inside, go = threading.Event(), threading.Event()

    def slow(rows: Sequence[int]) -> list[Pixels]:
        inside.set()
        assert go.wait(10)
        return source().read(rows)

    found: list[Source | None] = []
    behind = Source(source().names, slow, source().labels, source().classes)
    thread = threading.Thread(target=lambda: found.append(build(tmp_path / "set", behind, 1e9, "", True)))
    thread.start()
    assert inside.wait(10)
    check(build(tmp_path / "set", source(), 1e9, "decoding"))
    first = (tmp_path / "set" / "pixels.bin").stat().st_ino
    go.set()
    thread.join()
    check(found[0])
    assert (tmp_path / "set" / "pixels.bin").stat().st_ino == first
    assert names(tmp_path) == {"set"}


# --- a disk that is full or must not be written -----------------------------------------------------------------


class Full(io.BytesIO):
    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "open", lambda *args: Full(), raising=False)
    with pytest.raises(OSError, match=r"No space left on device.*--cache") as caught:
        open_images(str(photos), 64, Store(cache=tmp_path))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("building-*"))
    monkeypatch.undo()
    assert len(open_images(str(photos), 64, Store(cache=tmp_path)).train) > 0


def test_a_read_only_folder_is_one_line(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: object, **options: object) -> None:  # because permissions do not stop root
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"Read-only file system.*--cache") as caught:
        open_images(str(photos), 64, Store(cache=tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_a_set_in_a_read_only_cache_is_used(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where some images are unusable and their list cannot be written."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in photos.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "spoilt.png").write_bytes(b"")
    count = len(open_images(str(folder), 64, Store(cache=tmp_path / "cache")).train)

    def refuse(path: Path, *args: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert len(open_images(str(folder), 64, Store(cache=tmp_path / "cache")).train) == count
    assert capsys.readouterr().err.count("'spoilt.png' (an empty file)") == 2
