"""How long to wait before the next attempt of something that failed. Standard library only."""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds that double from ``first_s`` up to ``longest_s``.

    Args:
        jitter: each delay is drawn from its upper half, so that clients that failed together
            do not come back together.
    """

    def __init__(self, first_s: float, longest_s: float, *, jitter: bool = False) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._jitter = jitter
        self._delay_s = first_s

    def next_s(self) -> float:
        """The delay before the next attempt."""
        delay_s = self._delay_s
        self._delay_s = min(delay_s * 2, self._longest_s)
        return random.uniform(delay_s / 2, delay_s) if self._jitter else delay_s  # noqa: S311

    def reset(self) -> None:
        """Begin anew: an attempt worked."""
        self._delay_s = self._first_s
