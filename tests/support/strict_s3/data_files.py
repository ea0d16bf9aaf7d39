"""Bytes of objects and parts in files, which several objects may share.

A copy refers to the bytes of its source, so that copying terabytes takes no time.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.strict_s3.http_front import Extent


class Segment(NamedTuple):
    """Bytes of a data file, by its name."""

    file: str
    offset: int
    size: int


class DataFiles:
    """Files of one folder; each is removed when nobody refers to it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._uses: Counter[str] = Counter()
        # Not while history is replayed: a file that is unused in between may be used later.
        self._removes = False
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """The path of a file."""
        return self._folder / name

    def create(self) -> str:
        """The name of a new file, which the caller uses until it calls :meth:`drop`."""
        name = uuid.uuid4().hex
        with self._lock:
            self._uses[name] = 1
        return name

    def keep(self, segments: Iterable[Segment]) -> None:
        """Use the files of these segments once more."""
        with self._lock:
            for segment in segments:
                self._uses[segment.file] += 1

    def drop(self, segments: Iterable[Segment]) -> None:
        """End a use; the last one removes the file."""
        unused = []
        with self._lock:
            for segment in segments:
                self._uses[segment.file] -= 1
                if not self._uses[segment.file]:
                    del self._uses[segment.file]
                    unused.append(segment.file)
        for name in unused if self._removes else ():
            self.path(name).unlink(missing_ok=True)

    def remove_unused(self) -> None:
        """Remove files that nobody uses, and from now on each when its last use ends."""
        self._removes = True
        for name in os.listdir(self._folder):
            if name not in self._uses:
                self.path(name).unlink()

    def extents(self, segments: Sequence[Segment], offset: int, size: int) -> list[Extent]:
        """The extents of a content's bytes."""
        return [
            Extent(self.path(piece.file), piece.offset, piece.size)
            for piece in cut(segments, offset, size)
        ]


def cut(segments: Sequence[Segment], offset: int, size: int) -> list[Segment]:
    """The segments of ``size`` bytes from ``offset`` on."""
    found = []
    for segment in segments:
        if offset < segment.size and size:
            count = min(segment.size - offset, size)
            found.append(Segment(segment.file, segment.offset + offset, count))
            size -= count
            offset = 0
        else:
            offset = max(offset - segment.size, 0)
    return found
