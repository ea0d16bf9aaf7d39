"""How far ahead of its reader a stream is fetched: no further than the reader needs."""

from __future__ import annotations

from typing import Final

from sidecar.units import MIB

FIRST_BYTES: Final = 1 * MIB
_LEAST_BYTES: Final = 8 * MIB
"""The least, also later."""
_MOST_FACTOR: Final = 8
"""How many times as many bytes as were read in sequence are likely to be read next, at most. The
first reads promise less: random reads may follow each other by chance."""


class ReadAheadSize:
    """The size of one stream's read-ahead. Its owner locks it.

    It doubles when the reader had to wait although all of it was asked for. It is halved when
    half of it was never needed. So a reader that reads in bursts finds everything ready, and one
    that is slower than the store holds little. :mod:`.in_flight` decides how many parts are in
    flight at a time: a stream that waits for its turn needs no more read-ahead.

    Attributes:
        bytes: how far ahead of the reader the stream may be fetched.
    """

    __slots__ = ("_from_position", "_least_ready_bytes", "_start", "bytes")

    def __init__(self, start: int) -> None:
        self.restart(start)

    def restart(self, start: int) -> None:
        """Begin at ``start``, as small as at first."""
        self.bytes = FIRST_BYTES
        self._start = start
        self._measure_from(start)

    @property
    def has_grown(self) -> bool:
        """Whether the reader has ever had to wait."""
        return self.bytes > FIRST_BYTES

    def waited(self, position: int, in_flight_bytes: int, *, is_limit: bool) -> None:
        """Note that the reader had to wait, and goes on.

        Args:
            position: how far it has read, bytes.
            in_flight_bytes: what the process may have in flight, and one part more.
            is_limit: all of the read-ahead was asked for, and more could have been in flight.
        """
        self._least_ready_bytes = 0
        wanted = max(in_flight_bytes, 2 * self.bytes if is_limit else 0)
        read = position - self._start
        proven = max(min(read // FIRST_BYTES, _MOST_FACTOR) * read, 2 * FIRST_BYTES)
        if self.bytes < min(wanted, proven):
            self.bytes = min(wanted, proven)
            self._measure_from(position)

    def went_on(self, position: int, ready_bytes: int) -> None:
        """Note that the reader has read on.

        Args:
            position: how far it has read, bytes.
            ready_bytes: how much is ready after that.
        """
        self._least_ready_bytes = min(self._least_ready_bytes, ready_bytes)
        if position - self._from_position < 2 * self.bytes:
            return
        if self._least_ready_bytes > self.bytes // 2:
            self.bytes = max(self.bytes // 2, min(self.bytes, _LEAST_BYTES))
        self._measure_from(position)

    def _measure_from(self, position: int) -> None:
        self._from_position, self._least_ready_bytes = position, self.bytes
