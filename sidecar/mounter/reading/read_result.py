"""The result of a read: views of bytes, and callbacks for when they were sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


def nothing() -> None:
    """Nothing to release: the bytes belong to the result alone."""


class ReadResult(NamedTuple):
    """Bytes for one read. ``release`` must be called once they were copied or sent.

    Attributes:
        surplus: (offset, bytes) that were fetched around them, for the kernel's page cache.
        given: must be called once the kernel has the surplus.
    """

    views: list[memoryview]
    release: Callable[[], None]
    surplus: Sequence[tuple[int, memoryview]] = ()
    given: Callable[[], None] = nothing
