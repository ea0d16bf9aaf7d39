"""How far ahead of its reader a stream is fetched: as far as makes it faster, and no further.

Decision 57. More would cost memory, and speed too: what a CPU's cache no longer holds when it is
read comes from memory once more.
"""

from __future__ import annotations

import math
from typing import Final

from sidecar.units import MIB

FIRST_BYTES: Final = 1 * MIB
MOST_BYTES = 64 * MIB
_UNMEASURED_BYTES: Final = 8 * MIB
"""Up to here it grows whenever the reader has to wait: there is nothing to measure yet."""
_STEP_BYTES: Final = 4 * MIB
"""What is read between two measurements, or half of the size if that is more."""
_MARGIN: Final = 3
"""Parts in flight for each connection that the rate needs: they come at different times, and a
rate that was measured while there were too few is too low."""
_DELAYS: Final = 6
"""What comes during so many delays of the store is in flight. With ``n`` of them a delay costs
1/(n + 1) of the rate that CPU or network would allow."""
_MEASURE_AGAIN_S: Final = 10.0
"""A store, a network and a cache change."""


class ReadAheadSize:
    """The size of one stream's read-ahead. Its owner locks it.

    A stream needs as many connections as its rate is a multiple of the best rate that one of them
    has had. If fewer are used, the rate rises with each further one, and so does the size. If the
    reader, a CPU or the network is the limit, more connections are slower ones, but the best rate
    stays what it was, and the size too. While a store has not answered yet, its connection brings
    nothing, so more of them are in flight the later it answers. A reader that reads in bursts needs
    what one burst reads: where everything was there, nothing was fetched for a while, and then the
    reader had to wait, the size doubles.

    Args:
        part_bytes: what one connection fetches at a time.

    Attributes:
        bytes: how far ahead of the reader it may be fetched.
    """

    __slots__ = (
        "_best_rate",
        "_delay_s",
        "_from_position",
        "_from_s",
        "_least_bytes",
        "_measured_s",
        "_part_bytes",
        "bytes",
    )

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes = part_bytes
        self.restart()

    def restart(self) -> None:
        """Begin as carefully as at first."""
        self.bytes = FIRST_BYTES
        self._least_bytes = _UNMEASURED_BYTES  # more for a reader that reads in bursts
        self._best_rate = 0.0  # of a connection, bytes a second
        self._delay_s = math.inf  # the shortest
        self._measured_s: float | None = None  # since when these two are measured
        self._from_position, self._from_s = 0, 0.0  # where the reader's rate is measured from

    def waited(
        self,
        position: int,
        connection_rate: float,
        delay_s: float,
        now_s: float,
        *,
        rested: bool = False,
    ) -> None:
        """The reader had to wait, and goes on.

        Args:
            position: how far it has read, bytes.
            connection_rate: the best at which one of the latest parts came, bytes a second.
            delay_s: the shortest after which the first of one was here; inf where nobody knows.
            now_s: monotonic.
            rested: nothing was fetched for a while before, because everything was there.
        """
        if self._measured_s is None:
            self._measured_s = now_s
        elif now_s - self._measured_s >= _MEASURE_AGAIN_S:
            # The best rate shows with few parts in flight only.
            self._least_bytes = max(self._least_bytes // 2, _UNMEASURED_BYTES)
            self.bytes = min(self.bytes, self._least_bytes)
            self._best_rate, self._delay_s, self._measured_s = 0.0, math.inf, now_s
            self._measure_from(position, now_s)
        self._best_rate = max(self._best_rate, connection_rate)
        self._delay_s = min(self._delay_s, delay_s)
        if self.bytes < _UNMEASURED_BYTES:
            self.bytes *= 2
            self._measure_from(position, now_s)
            return
        if rested:
            self.bytes = self._least_bytes = min(2 * self.bytes, MOST_BYTES)
            self._measure_from(position, now_s)
            return
        read_bytes, taken_s = position - self._from_position, now_s - self._from_s
        if read_bytes < max(_STEP_BYTES, self.bytes // 2) or taken_s <= 0:
            return
        rate = read_bytes / taken_s
        needed = _MARGIN * rate / self._best_rate * self._part_bytes
        if self._delay_s < math.inf:
            needed = max(needed, _DELAYS * rate * self._delay_s + self._part_bytes)  # one is read
        self.bytes = int(min(max(needed, self.bytes / 2, self._least_bytes), MOST_BYTES))
        self._measure_from(position, now_s)

    def _measure_from(self, position: int, now_s: float) -> None:
        self._from_position, self._from_s = position, now_s
