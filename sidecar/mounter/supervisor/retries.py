"""Acts of process 1 that a lack of resources may fail: each is tried again until it works.

The experiment's containers share the limit of processes, and everybody on the node shares the disk.
So fork(2), open(2) or write(2) may fail at any time through no fault of this container, and nothing
is given up because of that. Standard library only.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.errors import MountFailed

log = logging.getLogger("sidecar.supervisor")

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0


class _Act:
    """One act that is still to be done."""

    def __init__(self, act: Callable[[], None], due_s: float) -> None:
        self.act = act
        self.due_s = due_s
        self.why = ""  # why it failed; empty before the first try
        self.backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)


class Retries:
    """Acts that are still to be done, by their names in the log.

    Attributes:
        shortages: how often each resource was lacking, by the errno's name.
    """

    def __init__(self) -> None:
        self.shortages: Counter[str] = Counter()
        self._acts: dict[str, _Act] = {}

    def do(self, what: str, act: Callable[[], None], delay_s: float = 0.0) -> None:
        """Do something now, or after ``delay_s``. If it fails, it is tried again.

        It replaces an act of the same name. An act raises OSError or MountFailed if resources are
        lacking; any other error is raised here or by :meth:`turn`.
        """
        earlier = self._acts.get(what)
        pending = self._acts[what] = _Act(act, time.monotonic() + delay_s)
        if earlier is not None:
            pending.why, pending.backoff = earlier.why, earlier.backoff
        if not delay_s:
            self._try(what, pending)

    def count(self, code: int | None) -> None:
        """Count a shortage by its errno."""
        self.shortages[errno.errorcode.get(code or 0, "unknown")] += 1

    def turn(self) -> None:
        """Do all acts that are due."""
        now_s = time.monotonic()
        for what, pending in list(self._acts.items()):
            if pending.due_s <= now_s and self._acts.get(what) is pending:
                self._try(what, pending)

    def is_pending(self, what: str) -> bool:
        """Whether an act is still to be done."""
        return what in self._acts

    def forget_all(self) -> None:
        """Drop all acts."""
        self._acts.clear()

    @property
    def due_s(self) -> float:
        """When the next act is due (monotonic); infinite if there is none."""
        return min((pending.due_s for pending in self._acts.values()), default=float("inf"))

    @property
    def failing(self) -> str:
        """Which acts fail at present, and why, in words; empty if none does."""
        return ", ".join(f"cannot {what} ({p.why})" for what, p in self._acts.items() if p.why)

    def _try(self, what: str, pending: _Act) -> None:
        try:
            pending.act()
        except (OSError, MountFailed) as error:
            is_new = not pending.why
            if isinstance(error, OSError):
                pending.why = error.strerror or str(error)
                self.count(error.errno)
            else:
                pending.why = error.what
                self.shortages[error.name] += 1
            pending.due_s = time.monotonic() + pending.backoff.next_s()
            if is_new:
                message = "lacks resources, tries again"
                logs.event(log, message, logging.WARNING, what=what, why=pending.why)
        else:
            if self._acts.get(what) is pending:
                del self._acts[what]
            if pending.why:
                logs.event(log, "has the resources again", what=what)
