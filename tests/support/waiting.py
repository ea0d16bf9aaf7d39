"""Waiting for another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable

_POLL_S = 0.005


def wait_until(
    done: Callable[[], object],
    what: str | Callable[[], object],
    timeout_s: float = 300.0,
    *,
    running: Callable[[], object] = lambda: True,
    poll_s: float = _POLL_S,
) -> None:
    """Wait for ``done()``.

    Args:
        what: named by the error; a function tells it then, as from a log.
        running: whether it can still come.

    Raises:
        AssertionError: it did not come.
    """
    deadline_s = time.monotonic() + timeout_s
    while not done():
        in_time = running() and time.monotonic() < deadline_s
        assert in_time, f"not within {timeout_s:g} s: {what() if callable(what) else what}"
        time.sleep(poll_s)
