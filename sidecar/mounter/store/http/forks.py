"""Renews locks and connections in a forked child.

A worker forks reader processes. In the child a lock that another thread of the parent held at that
moment would stay locked for ever, and a connection would be shared with the parent. Both are
replaced before the child runs.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """Something with locks or connections."""

    def after_fork(self) -> None:
        """Replace locks, and forget connections without closing them."""


_live: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def renew_in_child(thing: ForkAware) -> None:
    """Call ``thing.after_fork()`` in every child forked while ``thing`` is alive."""
    _live.add(thing)


def _after_fork() -> None:
    for thing in list(_live):
        thing.after_fork()


os.register_at_fork(after_in_child=_after_fork)
