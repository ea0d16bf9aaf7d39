"""Waiting for another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable

_POLL_S = 0.005


def wait_until(done: Callable[[], object], what: str, timeout_s: float = 300.0) -> None:
    """Wait for ``done()``. Raises AssertionError that names ``what``."""
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(_POLL_S)
