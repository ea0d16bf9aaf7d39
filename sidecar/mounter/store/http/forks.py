"""What must be made anew in a forked child.

A worker may fork children that read objects. A lock that another thread of the parent held
at that moment stays locked for ever in the child, and a connection is shared with the
parent: both are thrown away before the child runs.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """Something with locks or connections."""

    def after_fork(self) -> None:
        """Make locks anew and forget connections without closing them for the parent."""


_live: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def renew_in_child(thing: ForkAware) -> None:
    """Call ``thing.after_fork()`` in every child forked while ``thing`` is alive."""
    _live.add(thing)


def _after_fork() -> None:
    for thing in list(_live):
        thing.after_fork()


os.register_at_fork(after_in_child=_after_fork)
