"""What programs read first of a volume, in the order in which they read it.

A later run may read the same before its programs ask for it (:mod:`sidecar.mounter.warming`). Only
the first read of a page is seen here, because the page cache answers later ones; that is enough.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sidecar.json_document import parse_json
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import KIB, MIB

FILE: Final = "reads.json"
"""A file in the volume's state directory, written while a worker notes reads."""
_BLOCK_BYTES: Final = 128 * KIB
_WINDOW_S: Final = 600.0
"""How long reads are noted after the first one. Later reads do not belong to the start."""
_MOST_RUNS: Final = 50_000
_MOST_FILES: Final = 50_000
MOST_BYTES: Final = 8 * MIB
"""The longest log, with a hundred bytes for each name. A longer file is no log."""
_MOST_OFFSET: Final = 1 << 62
_VERSION: Final = 1


class Run(NamedTuple):
    """The bytes ``[start, end)`` of an object; ``end`` may be beyond its end."""

    key: str
    start: int
    end: int


class ReadLog:
    """The log of one mount. Safe to use from several threads.

    Args:
        most_bytes: how many bytes of reads are noted; 0: none.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_blocks = most_bytes // _BLOCK_BYTES
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}  # by file
        self._names_bytes = 0
        self._seen: list[set[int]] = []  # blocks, by the file's number
        self._runs: list[list[int]] = []  # file, first block, count
        self._blocks = 0
        self._ends_s: float | None = None
        self._changed = False

    def note(self, key: str, start: int, end: int) -> None:
        """Note a program's read of ``[start, end)`` of an object that the kernel does not have."""
        if self._blocks >= self._most_blocks or len(self._runs) >= _MOST_RUNS:
            return
        with self._lock:
            now_s = time.monotonic()
            self._ends_s = self._ends_s or now_s + _WINDOW_S
            if now_s > self._ends_s:
                return
            number = self._numbers.get(key)
            if number is None:
                self._names_bytes += len(json.dumps(key))
                if len(self._numbers) >= _MOST_FILES or self._names_bytes > MOST_BYTES // 2:
                    return
                number = self._numbers[key] = len(self._seen)
                self._seen.append(set())
            for block in range(start // _BLOCK_BYTES, -(-end // _BLOCK_BYTES)):
                self._add(number, block)

    def note_whole(self, info: ObjectInfo) -> None:
        """Note that a program opened an object that the kernel reads by itself."""
        self.note(info.key, 0, info.size_bytes)

    def _add(self, number: int, block: int) -> None:
        seen = self._seen[number]
        if block in seen:
            return
        seen.add(block)
        self._blocks += 1
        self._changed = True
        last = self._runs[-1] if self._runs else None
        if last is not None and last[0] == number and last[1] + last[2] == block:
            last[2] += 1
        else:
            self._runs.append([number, block, 1])

    def take(self) -> str | None:
        """The log as text, if something was noted since the previous call."""
        with self._lock:
            if not self._changed:
                return None
            self._changed = False
            keys, runs = list(self._numbers), self._runs.copy()
        # No READ waits for this, so the last run may have grown meanwhile.
        document = {"version": _VERSION, "block_bytes": _BLOCK_BYTES, "keys": keys, "runs": runs}
        return json.dumps(document, separators=(",", ":"))


def parse(content: bytes) -> list[Run]:
    """The runs of a log that anybody may have written. Raises ValueError if it is no log."""
    if len(content) > MOST_BYTES:
        raise ValueError("no log of reads: it is too long")
    try:
        return list(_runs(parse_json(content)))
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"no log of reads: {error}") from None


def _runs(document: dict[str, Any]) -> Iterator[Run]:
    keys, block_bytes = document["keys"], document["block_bytes"]
    if document["version"] != _VERSION or not all(_is_key(key) for key in keys):
        raise ValueError("its version, or its keys")
    for number, first, count in document["runs"]:
        if {type(number), type(first), type(count), type(block_bytes)} != {int}:
            raise TypeError("its runs")  # otherwise a text times a number would be a long text
        start, end = first * block_bytes, (first + count) * block_bytes
        if number < 0 or not 0 <= start < end <= _MOST_OFFSET:
            raise ValueError("its runs")
        yield Run(keys[number], start, end)


def _is_key(key: object) -> bool:
    """Whether it may be a path below the mount."""
    return isinstance(key, str) and not {"", ".", ".."}.intersection(key.split("/"))
