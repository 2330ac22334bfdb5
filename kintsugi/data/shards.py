"""webdataset shards: tar files in which an image and its label lie side by side, local or by URL.

webdataset reads shards as a stream, in an order that depends on its workers and buffers. Here the order is a function
of (seed, epoch) and a run starts at any step of it, so that shards are not streamed: those behind URLs are copied into
the cache first, all are read through once for where their images lie, and images are then read at their places. What is
a sample, and which of its members is what, is webdataset's to say (``group_by_keys``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm import tqdm
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext, group_by_keys

from kintsugi.data.cache import Pixels, Source, load_index, save_index
from kintsugi.data.decode import SUFFIXES, decode_bytes, reason

_FORMAT = 1  # part of every key: raise it when what an index holds changes
_SMALL = 1 << 20  # bytes: a larger label is none


def names(what: str) -> list[str]:
    """The shards that ``what`` names: a folder of .tar, or paths or http(s) URLs with braces, set-{000..099}.tar.

    ValueError of one line where there is none, or one that is not there.
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
        if not is_url(name) and not os.path.isfile(name):
            raise ValueError(f"no such shard as {name!r}")
    return found


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def fetched(urls: Sequence[str], folder: Path, quiet: bool = False) -> list[Path]:
    """Shards as local files: paths as they are, URLs copied into ``folder``, where they are not yet.

    Several processes may do so at once. ValueError of one line where one cannot be had, OSError where there is no room.
    """
    files = [folder / _copy_name(url) if is_url(url) else Path(url) for url in urls]
    missing = [pair for pair in zip(urls, files, strict=True) if is_url(pair[0]) and not pair[1].exists()]
    if missing and not quiet:
        print(f"copying {len(missing)} shards into {folder}, where they stay", file=sys.stderr)
    for url, file in tqdm(missing, "copying shards", unit="shard", disable=quiet or not missing or None):
        _copy(url, file)
    return files


def _copy_name(url: str) -> str:
    """Distinct for each URL, and what a person knows it by."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return f"{digest[:16]}-{PurePosixPath(url.partition('?')[0]).name[-80:]}"


def _copy(url: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"copying-{uuid.uuid4().hex}")
    try:
        # Through curl, which tries again, and fails where less comes than was announced.
        with open(part, "wb") as out, gopen(url) as stream:
            shutil.copyfileobj(stream, out, 1 << 20)
        part.replace(file)
    except OSError as error:
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise  # no room, say
        said = re.search(r"exit \d+", str(error))
        why = f"curl: {said[0]}" if said else "is curl installed?"
        raise ValueError(f"{url} could not be copied ({why})") from None
    finally:
        part.unlink(missing_ok=True)


# --- where the images lie -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    names: list[str]  # SHARD/KEY
    places: np.ndarray  # (N,3) int64: shard, first byte, bytes
    labels: np.ndarray | None  # (N,) int64, indices into classes, -1 = unknown
    classes: list[str]
    skipped: list[tuple[str, str]]


def open_shards(files: Sequence[Path], short_side: int, folder: Path, threads: ThreadPoolExecutor) -> Source:
    """The images of tar files, read at their places; their index is kept in ``folder``.

    A sample is what has the same name up to its first dot: one image (.jpg, .png, .webp and the like) and, if there is
    one, its class: .cls, a number, or .json with "label" or "cls". Names are SHARD/KEY. Left out, with the reason, is
    what is none: no image, a second member or sample of the same name, a link, a path that leads out of its folder,
    and what a truncated file lacks. ValueError of one line where nothing is left.
    """
    stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    digest = hashlib.sha256(json.dumps([_FORMAT, stamps]).encode()).hexdigest()
    kept = folder / f"index-{digest[:16]}.npz"
    index = _load(kept)
    if index is None:
        index = _indexed(files)
        with contextlib.suppress(OSError):  # without it the next start takes longer
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
        return list(threads.map(image, rows))

    labels = None if index.labels is None else torch.from_numpy(index.labels)
    return Source(index.names, read, labels, index.classes, skipped=index.skipped)


def _indexed(files: Sequence[Path]) -> _Index:
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
    with open(file, "rb", buffering=0) as content:  # opened anew each time: there may be more shards than open files
        return os.pread(content.fileno(), count, first)


def _note(skipped: list[tuple[str, str]], title: str, name: str, why: str) -> None:
    skipped.append((f"{title}/{name}" if name else title, why))


def _duplicate(skip: Callable[[str, str], None], error: Exception) -> bool:
    """webdataset's word on a member that its sample has already: the first one counts."""
    skip(str(error.args[0]).partition(": duplicate")[0], "a second member of this name")
    return True


def _members(file: Path, skip: Callable[[str, str], None]) -> Iterator[dict[str, object]]:
    """A tar's members as ``group_by_keys`` takes them, but instead of their bytes where these lie: (first, count)."""
    end = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as tar:  # "r:": what is compressed has no places
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # or it keeps all of them
                name = member.name
                if member.isdir() or re.match("__[^/]*__($|/)", name):  # webdataset keeps notes under such names
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
            if _at(file, tar.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile lets it pass
                skip("", "it ends before its end mark: damaged or cut off")
    except (tarfile.TarError, OSError, EOFError) as error:
        skip("", f"not a whole, uncompressed tar: {reason(error)}")


def _label(file: Path, sample: dict[str, tuple[int, int]]) -> str | None:
    """The number of a sample's class; None where there is none, or a negative one."""
    kind = next((kind for kind in ("cls", "json") if kind in sample), None)
    if kind is None or sample[kind][1] > _SMALL:
        return None
    try:
        said = json.loads(_at(file, *sample[kind]))
        number = int(said if kind == "cls" else said["label"] if "label" in said else said["cls"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return str(number) if number >= 0 else None


def _save(file: Path, index: _Index) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"index-{uuid.uuid4().hex}.part")
    try:
        labels = {} if index.labels is None else {"labels": index.labels}
        save_index(part, index.names, [index.classes, index.skipped], places=index.places, **labels)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _load(file: Path) -> _Index | None:
    found = load_index(file)
    if found is None:
        return None
    names, (classes, skipped), arrays = found
    return _Index(names, arrays["places"], arrays.get("labels"), classes, [(name, why) for name, why in skipped])
