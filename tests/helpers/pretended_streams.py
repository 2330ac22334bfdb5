"""Streams of the pretended GPU. They find memory that one stream uses before another one is done with it.

Every operation runs at once, so that values are right even where a GPU would compute others. What a GPU may do is
known from clocks: each stream counts its operations, and remembers how far the streams were for which it has waited.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class PretendedStream:
    """Stands for ``torch.cuda.Stream``."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.done = 0
        self.waited_for: dict[PretendedStream, int] = {}

    def wait_stream(self, other: PretendedStream) -> None:
        for stream, count in {**other.waited_for, other: other.done}.items():
            self.waited_for[stream] = max(self.waited_for.get(stream, 0), count)

    def comes_after(self, stream: PretendedStream, count: int) -> bool:
        """Whether what this stream is given now runs after the first ``count`` operations of another one."""
        return stream is self or self.waited_for.get(stream, 0) >= count


class Streams:
    """The stream to which operations are given, and the default one."""

    def __init__(self) -> None:
        self.default = self.current = PretendedStream()

    @contextmanager
    def use(self, stream: PretendedStream) -> Iterator[None]:
        """Stands for ``torch.cuda.stream``."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


streams = Streams()


class Memory:
    """Who used a tensor's memory last. Views of a tensor share it."""

    def __init__(self) -> None:
        self.made_by = streams.current
        self.recorded = {self.made_by}
        self.reads: dict[PretendedStream, int] = {}
        self.written()

    def written(self) -> None:
        self.writer = streams.current
        self.writer.done += 1
        self.write, self.reads = self.writer.done, {}

    def kept(self) -> None:
        """The CPU has waited until the memory was written, and nothing writes to it anymore: a constant."""
        self.writer = self.made_by = streams.default
        self.write = 0

    def used(self, what: str, *, writes: bool) -> None:
        """Notes that the current stream uses the memory. Raises RuntimeError if it may be too early."""
        now = streams.current
        if not now.comes_after(self.writer, self.write):
            raise RuntimeError(f"{what}: reads what another stream may not have written yet")
        if self.made_by is not streams.default and now not in self.recorded:
            raise RuntimeError(f"{what}: the stream is not recorded, so the memory may be given away before it is read")
        if writes and not all(now.comes_after(stream, count) for stream, count in self.reads.items()):
            raise RuntimeError(f"{what}: writes to what another stream may not have read yet")
        if writes:
            self.written()
        else:
            now.done += 1
            self.reads[now] = now.done
