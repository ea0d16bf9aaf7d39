"""When a slow request that only reads is sent a second time.

"The tail at scale" (Dean and Barroso, 2013): of a thousand requests one is slow for no reason that
the next one shares. Reasons for not sending more:
docs/decisions/0064-slow-reads-are-asked-twice.md.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from sidecar.mounter.store.http.forks import renew_in_child

SHARE = 0.05
"""The most additional requests, as a part of all."""
_USUAL = 0.95
_FACTOR = 1.5
"""A request is slow when it takes this many times what 95 of 100 take."""
SHORTEST_S = 0.05
"""No request is slow before this: a process may wait so long for a core."""
_FEWEST = 20
"""How many answers must be known before a request can be slow."""
_MOST = 200
_LARGEST_BURST = 10
"""An address that dies makes several requests slow at once."""


class Hedging:
    """One kind of requests of one process. Safe to use from any thread.

    Args:
        hedged: called when a request is sent a second time.
    """

    def __init__(self, hedged: Callable[[], None]) -> None:
        self._hedged = hedged
        self._times_s: deque[float] = deque(maxlen=_MOST)
        self._slow_s: float | None = None
        self._answers = 0
        self._saved = 0.0
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Make the lock anew (see :mod:`sidecar.mounter.store.http.forks`)."""
        self._lock = threading.Lock()

    def slow_after_s(self) -> float | None:
        """Count a sent request; after how many seconds it is slow (None: not known yet)."""
        with self._lock:
            self._saved = min(self._saved + SHARE, _LARGEST_BURST)
            return self._slow_s

    def may_send(self) -> bool:
        """Whether a slow request may be sent a second time. If so, it is counted.

        If not, ask again later: other requests go on, and some of them make it possible.
        """
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
        self._hedged()
        return True

    def answered(self, seconds: float) -> None:
        """Note after how long the first byte came. No lock: a lost sample does no harm."""
        self._times_s.append(seconds)
        self._answers += 1
        if self._answers % _FEWEST == 0:
            times_s = sorted(self._times_s.copy())
            self._slow_s = max(SHORTEST_S, _FACTOR * times_s[int(_USUAL * len(times_s))])
