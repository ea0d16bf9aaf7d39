"""Bodies on their way to a store, over all its connections.

A proxy in the pod, or a router, may take many bodies at once and pass them on slowly. Then each one
is silent for long, though the line is busy with the others.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

_UNFAIRNESS: Final = 2
"""A body is due when this many times the bytes on their way have arrived."""


class Flow:
    """All bodies that go to one store. Safe to use from any thread.

    Attributes:
        arrived_bytes: bytes of bodies that the store has answered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on_its_way_bytes = 0
        self.arrived_bytes = 0

    @contextlib.contextmanager
    def body(self, size_bytes: int) -> Iterator[Turn]:
        """A block that sends a body. If it raises nothing, the body has arrived."""
        with self._lock:
            self._on_its_way_bytes += size_bytes
            due_bytes = self.arrived_bytes + _UNFAIRNESS * self._on_its_way_bytes
        arrived_bytes = 0
        try:
            yield Turn(self, due_bytes)
            arrived_bytes = size_bytes
        finally:
            with self._lock:
                self._on_its_way_bytes -= size_bytes
                self.arrived_bytes += arrived_bytes


class Turn:
    """When one body should have arrived: not before those that were on their way when it began.

    Used by one thread.
    """

    __slots__ = ("_due_bytes", "_flow", "_seen_bytes")

    def __init__(self, flow: Flow, due_bytes: int) -> None:
        self._flow = flow
        self._due_bytes = due_bytes
        self._seen_bytes = flow.arrived_bytes

    def gets_nearer(self) -> bool:
        """Whether others have arrived since the last call, and its own turn is not over."""
        before, self._seen_bytes = self._seen_bytes, self._flow.arrived_bytes
        return before < self._seen_bytes < self._due_bytes
