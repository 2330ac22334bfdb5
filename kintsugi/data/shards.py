"""webdataset shards: tar files that hold images and their labels, local or behind URLs.

webdataset reads shards as a stream, in an order that depends on its workers and buffers. Here the order must be a
function of (seed, epoch), and a run may start at any step. So shards are not streamed: shards behind URLs are first
copied into the cache; each shard is read once to index where its images are; from then on, images are read from there.
webdataset decides which members of a tar form a sample (``group_by_keys``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm import tqdm
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext, group_by_keys

from kintsugi.data.cache import Pixels, Source, load_index, save_index
from kintsugi.data.decode import SUFFIXES, decode_bytes, pool, reason
from kintsugi.data.folders import stamp
from kintsugi.data.image_set import Images
from kintsugi.data.opener import Opener
from kintsugi.data.store import Store

_FORMAT = 1  # part of every key: raise it when the contents of an index change
_MAX_LABEL = 1 << 20  # bytes: a larger label is ignored


def open_shards(opener: Opener, what: str) -> Images:
    """Opens the images of the shards that ``what`` names (``shard_names``).

    Raises ValueError with one line if a shard is missing or no image is left, and OSError if shards cannot be copied.
    """
    try:
        found = shard_names(what)
    except ValueError as error:
        raise ValueError(f"--data {opener.spec}: {error}") from None

    def make() -> Source:
        place = opener.store.root / "shards"
        try:
            return _shard_source(_local(found, place, opener.store), opener.short_side, place)
        except ValueError as error:
            raise ValueError(f"--data {opener.spec}: {error}") from None
        except OSError as error:
            raise OSError(
                f"cannot copy shards into {place} ({error.strerror or error}): make room there, or choose another "
                "folder with --cache"
            ) from None

    name = os.path.basename(found[0]).partition(".")[0]
    # A URL has no size and time to check. After a shard is copied and decoded, its URL is never requested again.
    return opener.open(name, ["shards", [[shard, *stamp(shard)] for shard in found]], make)


def shard_names(what: str) -> list[str]:
    """The shards that ``what`` names: a folder of .tar files, a path, or an http(s) URL.

    A path or URL may have braces for several shards, as in set-{000..099}.tar. Raises ValueError with one line if there
    are no shards or one is missing.
    """
    if "://" not in what and (folder := Path(what).expanduser()).is_dir():
        found = sorted(str(file) for file in folder.glob("*.tar"))
        if not found:
            raise ValueError("no .tar in this folder")
        return found
    found = [name if "://" in name else str(Path(name).expanduser()) for name in expand_urls(what)]
    for name in found:
        if "://" in name and not name.startswith(("http://", "https://")):
            raise ValueError(f"{name!r} is neither a path nor a URL of http or https")
        if not _is_url(name) and not os.path.isfile(name):
            raise ValueError(f"no such shard as {name!r}")
    return found


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _local(names: Sequence[str], folder: Path, store: Store) -> list[Path]:
    """Shards as local files: paths as they are; URLs copied into ``folder``, unless they are there already.

    Several processes may copy at once. Raises ValueError with one line if a copy fails, OSError if there is no room.
    """
    files = [folder / _copy_name(name) if _is_url(name) else Path(name) for name in names]
    missing = [pair for pair in zip(names, files, strict=True) if _is_url(pair[0]) and not pair[1].exists()]
    if missing:
        store.report(f"copying {len(missing)} shards into {folder}, where they are kept")
    for url, file in tqdm(missing, "copying shards", unit="shard", disable=store.quiet or not missing or None):
        _copy(url, file)
    return files


def _copy_name(url: str) -> str:
    """A file name for the copy of a URL: unique, and still recognizable."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return f"{digest[:16]}-{PurePosixPath(url.partition('?')[0]).name[-80:]}"


def _copy(url: str, file: Path) -> None:
    """Downloads a shard. Raises ValueError with one line if this fails, OSError if ``file`` cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"copying-{uuid.uuid4().hex}")
    try:
        # gopen uses curl, which retries, and fails if the server sends less than it announced.
        with open(unfinished, "wb") as out, gopen(url) as stream:
            shutil.copyfileobj(stream, out, 1 << 20)
        unfinished.replace(file)
    except OSError as error:
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise  # there is no room, for example
        code = re.search(r"exit \d+", str(error))
        why = f"curl: {code[0]}" if code else "is curl installed?"
        raise ValueError(f"{url} could not be copied ({why})") from None
    finally:
        unfinished.unlink(missing_ok=True)


# --- where the images lie -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    names: list[str]  # SHARD/KEY
    places: np.ndarray  # (N,3) int64: shard, first byte, bytes
    labels: np.ndarray | None  # (N,) int64, indices into classes, -1 = unknown
    classes: list[str]
    skipped: list[tuple[str, str]]


def _shard_source(files: Sequence[Path], short_side: int, folder: Path) -> Source:
    """The images of tar files, read from their places in the files. The index of places is kept in ``folder``.

    Members with the same name up to the first dot form a sample. It has one image (.jpg, .png, .webp and so on) and may
    have a class: .cls, a number, or .json with "label" or "cls". Samples are named SHARD/KEY.

    These are left out, with the reason: samples without an image, a second member or sample of the same name, links,
    paths that lead out of their folder, and members cut off by the end of the file. Raises ValueError with one line if
    no image is left.
    """
    stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    digest = hashlib.sha256(json.dumps([_FORMAT, stamps]).encode()).hexdigest()
    kept = folder / f"index-{digest[:16]}.npz"
    index = _load(kept)
    if index is None:
        index = _indexed(files)
        with contextlib.suppress(OSError):  # without the index, the next start only takes longer
            _save(kept, index)
    if not index.names:
        name, why = index.skipped[0] if index.skipped else (files[0].name, "empty")
        raise ValueError(f"no images in these shards ({name!r}: {why})")

    def image(row: int) -> Pixels:
        shard, first, size = index.places[row].tolist()
        try:
            return decode_bytes(_at(files[shard], first, size), short_side)
        except OSError as error:
            return reason(error)

    def read(rows: Sequence[int]) -> list[Pixels]:
        return list(pool().map(image, rows))

    labels = None if index.labels is None else torch.from_numpy(index.labels)
    return Source(index.names, read, labels, index.classes, skipped=index.skipped)


def _indexed(files: Sequence[Path]) -> _Index:
    """Reads through the shards once and notes where each image is."""
    plain = [file.name for file in files]
    titles = plain if len(set(plain)) == len(plain) else [str(file) for file in files]
    found: dict[str, tuple[int, int, int]] = {}
    labels: list[str | None] = []
    skipped: list[tuple[str, str]] = []
    for number, (file, title) in enumerate(zip(files, titles, strict=True)):
        skip = functools.partial(_note, skipped, title)
        duplicate = functools.partial(_duplicate, skip)
        for sample in group_by_keys(_members(file, skip), handler=duplicate):
            key = sample["__key__"]
            image = next((place for kind, place in sample.items() if "." + kind in SUFFIXES), None)
            if image is None:
                skip(key, "no image")
            elif f"{title}/{key}" in found:
                skip(key, "a second sample of this name")
            else:
                found[f"{title}/{key}"] = (number, *image)
                labels.append(_label(file, sample))
    known = sorted({label for label in labels if label is not None}, key=int)
    numbers = {label: i for i, label in enumerate(known)}
    return _Index(
        list(found),
        np.array(list(found.values()), np.int64).reshape(-1, 3),
        np.array([-1 if label is None else numbers[label] for label in labels]) if known else None,
        known,
        skipped,
    )


def _at(file: Path, first: int, count: int) -> bytes:
    """Reads ``count`` bytes of a file, from byte ``first`` on."""
    with open(file, "rb", buffering=0) as content:  # opened each time: there may be more shards than a process may open
        return os.pread(content.fileno(), count, first)


def _note(skipped: list[tuple[str, str]], title: str, name: str, why: str) -> None:
    """Adds a reason for skipping a member ``name`` of the shard ``title``, or all of the shard if the name is empty."""
    skipped.append((f"{title}/{name}" if name else title, why))


def _duplicate(skip: Callable[[str, str], None], error: Exception) -> bool:
    """Handles webdataset's error for a member that its sample already has: keeps the first one and notes the second."""
    skip(str(error.args[0]).partition(": duplicate")[0], "a second member of this name")
    return True


def _members(file: Path, skip: Callable[[str, str], None]) -> Iterator[dict[str, object]]:
    """The members of a tar in the form that ``group_by_keys`` takes.

    In place of the content, "data" is where it lies: (first byte, number of bytes).
    """
    end = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as tar:  # "r:": a compressed tar has no fixed places
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps all of them
                name = member.name
                if member.isdir() or re.match("__[^/]*__($|/)", name):  # webdataset's metadata
                    continue
                if not member.isreg() or member.issparse():
                    skip(name, "not a plain file")
                elif name.startswith("/") or ".." in PurePosixPath(name).parts:
                    skip(name, "a path that leads elsewhere")
                elif base_plus_ext(name)[0] is None:
                    skip(name, "no image")
                elif member.offset_data + member.size > end:
                    skip(name, "the shard ends in the middle of it")
                else:
                    yield {"fname": name, "data": (member.offset_data, member.size), "__url__": str(file)}
            if _at(file, tar.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile ignores it
                skip("", "it ends before its end mark: damaged or cut off")
    except (tarfile.TarError, OSError, EOFError) as error:
        skip("", f"not a whole, uncompressed tar: {reason(error)}")


def _label(file: Path, sample: dict[str, tuple[int, int]]) -> str | None:
    """The class of a sample, a number, as text; None if it has none or a negative one."""
    kind = next((kind for kind in ("cls", "json") if kind in sample), None)
    if kind is None or sample[kind][1] > _MAX_LABEL:
        return None
    try:
        found = json.loads(_at(file, *sample[kind]))
        number = int(found if kind == "cls" else found["label"] if "label" in found else found["cls"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return str(number) if number >= 0 else None


def _save(file: Path, index: _Index) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"index-{uuid.uuid4().hex}.part")
    try:
        labels = {} if index.labels is None else {"labels": index.labels}
        save_index(unfinished, index.names, [index.classes, index.skipped], places=index.places, **labels)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _load(file: Path) -> _Index | None:
    found = load_index(file)
    if found is None:
        return None
    names, (classes, skipped), arrays = found
    return _Index(names, arrays["places"], arrays.get("labels"), classes, [(name, why) for name, why in skipped])
