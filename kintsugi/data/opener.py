"""Opens sets of images through the cache, decodes them into it first if needed, and reports what cannot be used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kintsugi.data import cache
from kintsugi.data.cache import Pixels, Source
from kintsugi.data.image_set import Images
from kintsugi.data.store import NAMED, Store


@dataclass(frozen=True)
class Opener:
    """Opens sets of images from the cache. A set that is not there yet is decoded into it first.

    spec: the name given with --data, for messages. size: side of the crops, px; images with a shorter short side are
    left out. Raises ValueError if ``store.short_side`` is less than ``size``.
    """

    spec: str
    size: int
    store: Store

    def __post_init__(self) -> None:
        self.store.side_for(self.size)

    @property
    def short_side(self) -> int:
        """Short side of the stored images, px."""
        return self.store.side_for(self.size)

    def folder_of(self, name: str, key: object) -> Path:
        """The folder of a set in the cache, which may not exist yet. name and key (JSON) identify the set."""
        digest = hashlib.sha256(json.dumps([cache.FORMAT, name, self.short_side, key]).encode()).hexdigest()
        label = re.sub(r"[^\w.-]+", "_", name)[:40]
        return self.store.root / "images" / f"{label}-{self.short_side}px-{digest[:16]}"

    def open(self, name: str, key: object, make: Callable[[], Source], verb: str = "decoding") -> Images:
        """Opens the set of this ``name`` and ``key`` (JSON). ``make`` is called only if the cache does not have it.

        verb: shown with the progress bar, for example "decoding". A set of more than ``store.limit_gb`` is not kept in
        the cache; its images are decoded at each use. Raises ValueError if no image can be used and OSError if the
        cache cannot be written, each with one line.
        """
        folder, limit = self.folder_of(name, key), self.store.limit_gb * 1e9
        decoded = cache.load(folder)
        if decoded is None:
            source = make()
            needed = float(len(source.names) * 2 * source.planes * self.short_side**2)  # an upper bound
            if needed > limit:
                needed = cache.estimate(source)
            if needed <= limit:
                decoded = self._build(folder, source, limit, f"{verb} {name}")
            if decoded is None:
                return self._decoded_at_each_use(source, max(needed, limit), folder)
        return self._usable(decoded, folder)

    def _build(self, folder: Path, source: Source, limit: float, title: str) -> Source | None:
        try:
            return cache.build(folder, source, limit, title, self.store.quiet)
        except ValueError as error:
            raise ValueError(f"--data {self.spec}: {error}") from None
        except OSError as error:
            raise OSError(
                f"cannot keep decoded images in {self.store.root} ({error.strerror or error}): make room there, "
                "choose another folder with --cache, or decode at each use with --cache-gb 0"
            ) from None

    def _decoded_at_each_use(self, source: Source, needed: float, folder: Path) -> Images:
        self.store.report(
            f"{self.spec}: takes about {needed / 1e9:.2g} GB when decoded, more than --cache-gb "
            f"{self.store.limit_gb:g}: images are decoded at each use"
        )
        if source.skipped:
            self._report(source.skipped, len(source.names) + len(source.skipped), folder)
        return Images(self._checked(source))

    def _usable(self, decoded: Source, folder: Path) -> Images:
        """The images that are large enough for the crop. Reports the others, and those that could not be decoded."""
        assert decoded.extents is not None
        short = decoded.extents.min(1)  # (N,)
        if short.max() < self.size:
            fits = short.max() // 32 * 32 or short.max()
            raise ValueError(
                f"--data {self.spec}: all {len(short)} images are smaller than the crop of {self.size} px, the largest "
                f"has a short side of {short.max()} px: use --size {fits}"
            )
        names = decoded.names
        small = (short < self.size).nonzero()[0].tolist()
        if skipped := [*decoded.skipped, *((names[row], self._too_small(short[row])) for row in small)]:
            self._report(skipped, len(short) + len(decoded.skipped), folder)
        return Images(decoded, (short >= self.size).nonzero()[0])

    def _checked(self, source: Source) -> Source:
        """Wraps the source: an image that is too small is replaced by the reason, as one that cannot be read.

        Reports the first few unusable images when they are read.
        """
        reported: set[int] = set()

        def read(rows: Sequence[int]) -> list[Pixels]:
            images = source.read(rows)
            for i, (row, image) in enumerate(zip(rows, images, strict=True)):
                if not isinstance(image, str) and min(image.shape[1:]) < self.size:
                    images[i] = self._too_small(min(image.shape[1:]))
                if isinstance(images[i], str) and row not in reported:
                    reported.add(row)
                    if len(reported) <= NAMED:
                        self.store.report(f"skipped {source.names[row]!r} ({images[i]}): the next one is used instead")
                    elif len(reported) == NAMED + 1:
                        self.store.report("more images are skipped, but no more are named")
            return images

        return Source(source.names, read, source.labels, source.classes)

    def _too_small(self, short: int) -> str:
        return f"short side of {short} px, less than the crop of {self.size}"

    def _report(self, skipped: Sequence[tuple[str, str]], count: int, folder: Path) -> None:
        """Reports which of a set's ``count`` images were skipped, and lists them all in a file next to the set's
        ``folder``."""
        file = folder.with_name(folder.name + ".skipped.txt")
        with contextlib.suppress(OSError):  # a cache built by another user may be read-only
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{name!r}: {reason}\n" for name, reason in skipped))
        described = [f"{name!r} ({reason})" for name, reason in skipped]
        self.store.report_skipped(self.spec, described, count, "images", file)
