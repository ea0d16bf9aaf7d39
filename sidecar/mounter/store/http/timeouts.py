"""How long a silent connection is waited for. Knows neither requests nor connections."""

from __future__ import annotations

SOCKET_TIMEOUT_S = 5.0
"""The longest time-out, and the one before any response was measured."""
SHORTEST_TIMEOUT_S = 0.5

_LONGEST_FACTOR = 16


class AdaptiveTimeout:
    """How long to wait for the first byte of a response before the request is sent again.

    As TCP estimates its retransmission time-out (RFC 6298): a moving mean of the time to the
    first byte plus four times its mean deviation, which together lie above nearly all responses.
    The time-out is three times that, because a needless request costs more than a segment. Each
    stall doubles it until a response comes, so that a store which became slow is not hammered.
    Threads update it without a lock: a lost sample does no harm.

    Args:
        steady_s: a fixed time-out instead, for requests whose usual time says nothing.
    """

    def __init__(self, *, steady_s: float | None = None) -> None:
        self._steady_s = steady_s
        self._mean_s: float | None = None
        self._deviation_s = 0.0
        self._factor = 1

    @property
    def timeout_s(self) -> float:
        """``steady_s``, or between ``SHORTEST_TIMEOUT_S`` and ``SOCKET_TIMEOUT_S``."""
        if self._steady_s is not None:
            return self._steady_s
        if self._mean_s is None:
            return SOCKET_TIMEOUT_S
        usual_s = max(3 * (self._mean_s + 4 * self._deviation_s), SHORTEST_TIMEOUT_S)
        return min(usual_s * self._factor, SOCKET_TIMEOUT_S)

    def answered(self, seconds: float) -> None:
        """The first byte came after ``seconds``."""
        if self._mean_s is None:
            self._mean_s, self._deviation_s = seconds, seconds / 2
        else:
            self._deviation_s += (abs(seconds - self._mean_s) - self._deviation_s) / 4
            self._mean_s += (seconds - self._mean_s) / 8
        self._factor = 1

    def stalled(self) -> None:
        """Nothing came in time."""
        self._factor = min(self._factor * 2, _LONGEST_FACTOR)
