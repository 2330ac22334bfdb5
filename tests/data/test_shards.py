from __future__ import annotations

import functools
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from kintsugi.data import shards
from kintsugi.data.image_set import Images, Split
from kintsugi.data.images import open_images
from kintsugi.data.store import Store


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def coded(seed: int, kind: str = "png", height: int = 32, width: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "jpeg"}.get(kind, kind), lossless=True)
    return file.getvalue()


def write(file: Path, members: Mapping[str, bytes]) -> None:
    """A tar with these members. Spaces at the end of a name are removed, so that a name may be given twice."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name.strip())
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def fill(folder: Path, shard_count: int = 3, each: int = 5) -> None:
    """Samples of every kind of image; classes from .cls, every third from .json."""
    for shard in range(shard_count):
        members: dict[str, bytes] = {}
        for i in range(each):
            number = shard * each + i
            kind = ("jpg", "png", "webp")[number % 3]
            members[f"sub/{i:03d}.{kind}"] = coded(number, kind)
            if number % 3:
                members[f"sub/{i:03d}.cls"] = str(number % 4).encode()
            else:
                members[f"sub/{i:03d}.json"] = json.dumps({"label": number % 4}).encode()
        write(folder / f"set-{shard:03d}.tar", members)


def opened(spec: str, limit_gb: float = 8.0) -> Split:
    return open_images(spec, 32, Store(short_side=32, limit_gb=limit_gb))


def content(split: Split) -> dict[str, tuple[np.ndarray, int]]:
    """Name -> pixels (3,H,W) and label."""
    found = {}
    for images in (split.train, split.heldout):
        batch = images.batch(torch.arange(len(images)))
        labels = batch["label"].tolist() if "label" in batch else [-1] * len(images)
        for name, pixels, (height, width), label in zip(
            images.names, batch["image"].numpy(), batch["extent"].tolist(), labels, strict=True
        ):
            found[name] = (pixels[:, :height, :width], label)
    return found


def oracle(folder: Path) -> dict[str, tuple[np.ndarray, int]]:
    """The same by webdataset's own reader, which decodes with Pillow."""
    found = {}
    urls = sorted(str(file) for file in folder.glob("*.tar"))
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"):
        (pixels,) = (value for kind, value in sample.items() if kind in ("jpg", "png", "webp"))
        label = sample["cls"] if "cls" in sample else sample["json"]["label"]
        found[f"{Path(sample['__url__']).name}/{sample['__key__']}"] = (pixels.transpose(2, 0, 1), label)
    return found


def same(found: dict[str, tuple[np.ndarray, int]], expected: dict[str, tuple[np.ndarray, int]]) -> None:
    assert set(found) == set(expected)
    for name, (pixels, label) in expected.items():
        assert np.array_equal(found[name][0], pixels), name
        assert found[name][1] == label


@pytest.mark.parametrize("limit_gb", [1.0, 1e-6])
def test_pixels_and_labels_are_those_of_webdatasets_reader(limit_gb: float, tmp_path: Path) -> None:
    """From the cache, and, where the set is too large for it, by the index, which is built once."""
    fill(tmp_path / "set")
    expected = oracle(tmp_path / "set")
    assert len(expected) == 15
    specs = [f"shards:{tmp_path}/set", f"shards:{tmp_path}/set/set-{{000..002}}.tar"]
    for spec in [*specs, *specs]:
        split = opened(spec, limit_gb=limit_gb)
        same(content(split), expected)
        assert split.train.classes == ["0", "1", "2", "3"]
        assert split.train.names == sorted(split.train.names)


def test_the_index_is_kept_and_follows_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    fill(tmp_path / "set")
    read: list[Path] = []
    indexed = shards._indexed
    monkeypatch.setattr(shards, "_indexed", lambda files: (read.extend(files), indexed(files))[1])
    spec = f"shards:{tmp_path}/set"
    for _ in range(2):
        opened(spec, limit_gb=0)
    assert len(read) == 3
    (file,) = (cache_folder / "shards").iterdir()
    os.truncate(file, 100)  # damaged, so that it is built again
    opened(spec, limit_gb=0)
    assert len(read) == 6
    write(tmp_path / "set/set-001.tar", {"a.png": coded(7), "b.png": coded(8)})
    assert len(content(opened(spec, limit_gb=0))) == 12
    assert len(read) == 9


def test_samples_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {f"{i}.jpg": coded(i, "jpg") for i in range(4)})
    split = opened(f"shards:{tmp_path}/a.tar")
    assert split.train.labels is None
    assert len(content(split)) == 4


def test_invalid_labels_are_unknown(tmp_path: Path) -> None:
    labels = {
        "a.cls": b"5",
        "b.cls": b"cat",
        "c.json": b'{"label": 9}',
        "d.json": b'{"cls": 5}',
        "e.json": b"[1]",
        "f.json": b"{",
        "g.cls": b"-1",
        "h.cls": b"",
    }
    members = {}
    for i, (name, value) in enumerate(labels.items()):
        members |= {f"{name[0]}.png": coded(i), name: value}
    write(tmp_path / "a.tar", members)
    split = opened(f"shards:{tmp_path}/a.tar")
    found = {name[-1]: label for name, (_, label) in content(split).items()}
    assert found == {"a": 0, "b": -1, "c": 1, "d": 0, "e": -1, "f": -1, "g": -1, "h": -1}
    assert split.train.classes == ["5", "9"]


@pytest.mark.parametrize("limit_gb", [1.0, 1e-6])
def test_members_that_are_no_samples_are_skipped_and_reported(
    limit_gb: float, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache_folder: Path
) -> None:
    file = tmp_path / "a.tar"
    write(
        file,
        {
            "good1.png": coded(1),
            "good1.png ": coded(2),
            "good1.cls": b"1",
            "text.cls": b"0",
            "README": b"hello",
            "../out.png": coded(3),
            "/root.png": coded(3),
            "good2.png": coded(4),
            "good1.jpg": coded(5, "jpg"),
            "__meta__/x.png": coded(6),
        },
    )
    with tarfile.open(file, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    for _ in range(2):
        found = content(opened(f"shards:{file}", limit_gb=limit_gb))
        assert set(found) == {"a.tar/good1", "a.tar/good2"}
        assert np.array_equal(found["a.tar/good1"][0], np.asarray(Image.open(io.BytesIO(coded(1)))).transpose(2, 0, 1))
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "skipped" in line)
        assert "skipped 7 of 9 images: 'a.tar/good1.png' (a second member of this name), " in line
    (listed,) = (cache_folder / "images").glob("*.skipped.txt")
    reasons = dict(line.rsplit(": ", 1) for line in listed.read_text().splitlines())
    assert reasons == {
        "'a.tar/good1.png'": "a second member of this name",
        "'a.tar/text'": "no image",
        "'a.tar/README'": "no image",
        "'a.tar/../out.png'": "a path that leads elsewhere",
        "'a.tar//root.png'": "a path that leads elsewhere",
        "'a.tar/good1'": "a second sample of this name",
        "'a.tar/link.png'": "not a plain file",
    }


@pytest.mark.parametrize("cut", [600, 2000, 3500, 5000, 9000, 14000])
def test_the_complete_samples_of_a_truncated_shard_are_used(
    cut: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "cut.tar", {f"{i}.png": coded(i) for i in range(4)})
    write(tmp_path / "whole.tar", {f"{i}.png": coded(i) for i in range(2)})
    with tarfile.open(tmp_path / "cut.tar") as tar:
        whole = sum(member.offset_data + member.size <= cut for member in tar)
    os.truncate(tmp_path / "cut.tar", cut)
    assert len(content(opened(f"shards:{tmp_path}"))) == whole + 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "'cut.tar" in message


def test_a_compressed_shard_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.add(__file__, "x.png")
    with pytest.raises(ValueError, match=r"no images in these shards \('a.tar': not a whole, uncompressed tar"):
        opened(f"shards:{tmp_path}")


def test_samples_that_are_no_images_are_skipped_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.tar", {"a.png": coded(1), "b.png": b"no image", "c.png": b"", "d.png": coded(2)})
    assert len(content(opened(f"shards:{tmp_path}/a.tar"))) == 2
    message = capsys.readouterr().err
    assert "skipped 2 of 4 images: 'a.tar/b' (not an image), 'a.tar/c' (an empty file)" in message


def test_shards_of_the_same_name_in_two_folders(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name / "0.tar", {"x.png": coded(1), "y.png": coded(2)})
    assert len(content(opened(f"shards:{tmp_path}/{{a,b}}/0.tar"))) == 4


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none/{0..2}.tar", "no such shard as .*0.tar"),
        (".", "no .tar in this folder"),
        ("pipe:cat x.tar", "no such shard"),
        ("s3://bucket/x.tar", "neither a path nor a URL"),
    ],
)
def test_missing_shards_are_one_line(what: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        opened(f"shards:{what}")
    assert str(error.value).startswith(f"--data shards:{what}: ")
    assert "\n" not in str(error.value)


# --- by URL ---------------------------------------------------------------------------------------------------


class Served(http.server.SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012

    def log_request(self, *args: object) -> None:
        self.requests.append(self.path)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL at which the folder ``served`` is served."""
    Served.requests.clear()
    (tmp_path / "served").mkdir()
    handler = functools.partial(Served, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_shards_by_url_are_copied_once(
    server: str, tmp_path: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "served")
    spec = f"shards:{server}/set-{{000..002}}.tar"
    expected = oracle(tmp_path / "served")
    found = content(opened(spec))
    same({name.partition("-")[2]: value for name, value in found.items()}, expected)
    message = capsys.readouterr().err
    assert str(cache_folder / "shards") in message
    assert len(Served.requests) == 3
    assert len(content(opened(spec))) == 15  # from the cache
    split = open_images(spec, 24, Store(short_side=24, limit_gb=0))  # from the copies
    assert len(split.train) + len(split.heldout) == 15
    assert len(Served.requests) == 3


@pytest.mark.parametrize("spoil", ["missing", "short"])
def test_a_shard_that_cannot_be_copied_is_one_line(
    spoil: str, server: str, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "served", shard_count=1)
    if spoil == "short":  # announces more than it sends
        send = Served.send_header
        monkeypatch.setattr(
            Served,
            "send_header",
            lambda self, name, value: send(self, name, str(int(value) + 9) if name == "Content-Length" else value),
        )
    number = "000" if spoil == "short" else "001"
    with pytest.raises(ValueError, match=rf"set-{number}.tar could not be copied \(curl: exit \d+\)") as error:
        opened(f"shards:{server}/set-{number}.tar")
    assert "\n" not in str(error.value)
    assert list((cache_folder / "shards").iterdir()) == []
    assert isinstance(opened(f"shards:{tmp_path}/served").train, Images)
