"""How fast requests may go to a store that says there are too many.

Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the increase and decrease
algorithms for congestion avoidance in computer networks", 1989): independent mounts together stay
at about what a prefix allows, and get about equal shares. Without it each refused request is sent
again after its own delay, and a third or more of all requests are in vain
(docs/decisions/0056-pacing.md).
"""

from __future__ import annotations

import math
import threading

from sidecar.mounter.store.http.forks import renew_in_child

DECREASE = 0.8
"""The part of the rate that is left after a refusal."""
DECREASE_EVERY_S = 1.0
"""Refusals within this time count as one: their requests were sent before the first answer."""
INCREASE_PER_S = 2.0
"""How much the rate, in requests per second, grows in a second. It is the same for all mounts, so
their shares become equal."""
MOST_INCREASE_PER_S = 0.1
"""The growth is at most this part of the rate, so that a thousand mounts do not grow too fast."""
GROWTH_PER_S = 0.02
"""The growth is at least this part of the rate, so that a large rate recovers as soon."""
LEAST_RATE = 1.0
MOST_DELAY_S = 5.0
_WINDOW_S = 1.0
_LEAST_WINDOW_S = 0.1


class Pacing:
    """The pace of one kind of requests of one process. Safe to use from any thread.

    Nothing waits until the store refuses something. Nothing waits any more once the rate has grown,
    without another refusal, to twice what it was at the first one.

    Attributes:
        taken_s: when the store last took a request, as the caller says.
    """

    def __init__(self) -> None:
        self.after_fork()
        self.taken_s = -math.inf
        self._rate: float | None = None  # requests per second; None: no limit is known
        self._grown_s = 0.0  # when the rate last grew
        self._refused_rate = 0.0
        self._decreased_s: float | None = None
        self._turn_s = 0.0  # when the next request may go
        self._window_s: float | None = None  # when the window began
        self._sent = 0  # in this window
        self._sent_rate = 0.0  # in the previous window
        renew_in_child(self)

    def after_fork(self) -> None:
        """Make the lock anew (see :mod:`sidecar.mounter.store.http.forks`)."""
        self._lock = threading.Lock()

    @property
    def is_limiting(self) -> bool:
        """Whether requests must wait."""
        return self._rate is not None

    def delay_s(self, now_s: float) -> float:
        """How long the next request has to wait, in seconds.

        Args:
            now_s: of a clock that never goes back.
        """
        with self._lock:
            self._count(now_s)
            rate = self._grow(now_s)
            if rate is None:
                return 0.0
            turn_s = min(max(self._turn_s, now_s), now_s + MOST_DELAY_S)
            self._turn_s = turn_s + 1 / rate
            return turn_s - now_s

    def refused(self, now_s: float) -> None:
        """Note that the store answered that there are too many requests."""
        with self._lock:
            rate = self._grow(now_s)
            is_early = self._decreased_s is not None and (
                now_s - self._decreased_s < DECREASE_EVERY_S
            )
            if not is_early:
                self._refused_rate = self._measured(now_s) if rate is None else rate
                self._rate = max(LEAST_RATE, DECREASE * self._refused_rate)
                self._decreased_s = self._grown_s = now_s

    def _count(self, now_s: float) -> None:
        """Count requests, so that the rate is known at the first refusal."""
        if self._window_s is None:
            self._window_s = now_s
        passed_s = now_s - self._window_s
        if passed_s >= _WINDOW_S:
            self._sent_rate = self._sent / passed_s
            self._window_s, self._sent = now_s, 0
        self._sent += 1

    def _measured(self, now_s: float) -> float:
        """Requests per second in the last window, or in this one if there are more."""
        passed_s = now_s - (self._window_s if self._window_s is not None else now_s)
        return max(self._sent_rate, self._sent / max(_LEAST_WINDOW_S, passed_s))

    def _grow(self, now_s: float) -> float | None:
        """The rate at ``now_s``."""
        if self._rate is None:
            return None
        passed_s = max(0.0, now_s - self._grown_s)
        increase = min(INCREASE_PER_S, MOST_INCREASE_PER_S * self._rate)
        self._rate += passed_s * (increase + GROWTH_PER_S * self._rate)
        self._grown_s = now_s
        if self._rate > 2 * self._refused_rate + LEAST_RATE:
            self._rate = self._decreased_s = None
        return self._rate
