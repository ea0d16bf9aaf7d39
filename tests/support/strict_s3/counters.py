"""Counts and lists requests and their outcomes."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Any, NamedTuple

_KEPT = 20_000


class Line(NamedTuple):
    """One request.

    Attributes:
        code: of the refusal; empty if there is none.
        bytes_in, bytes_out: of the bodies.
    """

    operation: str
    bucket: str
    key: str
    status: int
    code: str
    bytes_in: int
    bytes_out: int
    headers: dict[str, str]


class Counters:
    """Counts since the start, or since :meth:`reset`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        with self._lock:
            self._requests: Counter[str] = Counter()
            self._refusals: Counter[str] = Counter()
            self._bytes_in: Counter[str] = Counter()
            self._bytes_out: Counter[str] = Counter()
            self._lines: deque[Line] = deque(maxlen=_KEPT)

    def add(self, line: Line) -> None:
        """Count one request."""
        with self._lock:
            self._requests[line.operation] += 1
            if line.code:
                self._refusals[f"{line.operation} {line.code}"] += 1
            self._bytes_in[line.operation] += line.bytes_in
            self._bytes_out[line.operation] += line.bytes_out
            self._lines.append(line)

    def as_json(self) -> dict[str, dict[str, int]]:
        """By operation; refusals by operation and code."""
        with self._lock:
            return {
                "requests": dict(self._requests),
                "refusals": dict(self._refusals),
                "bytes_in": dict(self._bytes_in),
                "bytes_out": dict(self._bytes_out),
            }

    def lines(self) -> list[dict[str, Any]]:
        """The last requests, oldest first."""
        with self._lock:
            return [line._asdict() for line in self._lines]
