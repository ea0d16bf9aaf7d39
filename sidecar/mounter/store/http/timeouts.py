"""How long a server may be silent, and how long it may be slow.

Why: docs/decisions/0008-silent-connections.md, docs/decisions/0031-what-a-store-may-answer.md.
"""

from __future__ import annotations

import time

from sidecar.units import KIB

SOCKET_TIMEOUT_S = 5.0
"""The longest time-out for a range, and the one before any response was measured."""
SHORTEST_TIMEOUT_S = 0.5
LEAST_WAIT_S = 2.5
"""The shortest time-out of requests that are not for a range: their time varies more."""
PROGRESS_BYTES = 64 * KIB
"""How much content must move before an attempt gets its whole time again."""

_LONGEST_FACTOR = 16
_PATIENCE = 2
"""How many times the longest silence an attempt may last without progress."""


class Deadline:
    """When an attempt without progress ends.

    An attempt goes on for ``limit_s`` after it began, after its request was sent, and after each
    ``PROGRESS_BYTES`` of content in either direction. Nothing else counts: no interim response,
    header, chunk size or trailer. So content that flows is never cut, however long it is, and
    everything else ends in time.

    Used by one thread, for one attempt after the other.
    """

    __slots__ = ("_due_bytes", "_ends_s", "_limit_s")

    def begin(self, limit_s: float) -> None:
        """Begin an attempt."""
        self._limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        """Give it its whole time again."""
        self._ends_s = time.monotonic() + self._limit_s
        self._due_bytes = PROGRESS_BYTES

    def moved(self, count: int) -> None:
        """Note that ``count`` bytes of content were sent or received."""
        self._due_bytes -= count
        if self._due_bytes <= 0:
            self.renew()

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() > self._ends_s

    def check(self) -> None:
        """Raise TimeoutError if no time is left. Call it before waiting again."""
        if self.is_over:
            raise TimeoutError("the server makes no progress")


class AdaptiveTimeout:
    """How long to wait for the first byte of a response before the request is sent again.

    As TCP estimates its retransmission time-out (RFC 6298): a moving mean of the time to the
    first byte plus four times its mean deviation lies above nearly all responses. The time-out is
    three times that, because a needless request costs more than a segment. Each stall doubles it
    until a response comes, so that a store which became slow is not hammered. Threads update it
    without a lock: a lost sample does no harm.

    Args:
        least_s: the shortest time-out; ``SHORTEST_TIMEOUT_S`` if it is not given.
        most_s: the longest time-out, and the one before any response was measured;
            ``SOCKET_TIMEOUT_S`` if it is not given. Equal to ``least_s`` for requests whose usual
            time says nothing.

    Attributes:
        limit_s: how long an attempt may take without progress (:class:`Deadline`).
    """

    def __init__(self, least_s: float | None = None, most_s: float | None = None) -> None:
        self._least_s = SHORTEST_TIMEOUT_S if least_s is None else least_s
        self._most_s = SOCKET_TIMEOUT_S if most_s is None else most_s
        self.limit_s = _PATIENCE * self._most_s
        self._mean_s: float | None = None
        self._deviation_s = 0.0
        self._factor = 1

    @property
    def timeout_s(self) -> float:
        """The time-out now."""
        if self._mean_s is None:
            return self._most_s
        usual_s = max(3 * (self._mean_s + 4 * self._deviation_s), self._least_s)
        return min(usual_s * self._factor, self._most_s)

    def answered(self, seconds: float) -> None:
        """Note that the first byte came after ``seconds``."""
        if self._mean_s is None:
            self._mean_s, self._deviation_s = seconds, seconds / 2
        else:
            self._deviation_s += (abs(seconds - self._mean_s) - self._deviation_s) / 4
            self._mean_s += (seconds - self._mean_s) / 8
        self._factor = 1

    def stalled(self) -> None:
        """Note that nothing came in time."""
        self._factor = min(self._factor * 2, _LONGEST_FACTOR)
