"""Checks that threads take the product's locks in the order of ``docs/architecture.md``.

The table there gives each lock a level. A thread that holds a lock waits only for locks of higher
levels, so threads cannot wait for each other in a circle. :func:`install` puts functions in the
place of what makes locks in ``threading``. A lock that a module below ``sidecar`` makes then notes
which thread holds it. A wrong order is found even if no other thread is near.

Standard library only: sidecars that tests start check their locks, too
(``checked_locks/sitecustomize.py``).
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

VARIABLE: Final = "MOUNT_SIDECAR_LOCK_ORDER"
"""Names the folder of a run: its locks, and the errors that were found."""
LOCKS, FOUND = "locks.json", "found"
MAKERS: Final = ("Lock", "RLock", "Condition", "BoundedSemaphore")


class Rank(NamedTuple):
    """A lock's place in the order.

    Attributes:
        by: the owner's attribute whose value grows where a thread holds several of these locks;
            None: a thread holds one of them at most.
    """

    name: str
    level: int
    by: str | None = None


class _Held(threading.local):
    """The locks that a thread holds, in the order in which it took them."""

    def __init__(self) -> None:
        self.locks: list[_CheckedLock] = []


_held = _Held()
_make_rlock = threading.RLock


def forget_held() -> None:
    """Take it that this thread holds no lock.

    In a forked child nobody waits for what the parent's thread holds; and a test may drop a
    connection with its slot, which nobody gives back.
    """
    _held.locks.clear()


os.register_at_fork(after_in_child=forget_held)


class _CheckedLock:
    """In the place of a lock or a semaphore."""

    __slots__ = ("__weakref__", "_holder", "_lock", "_order", "number", "rank")
    is_reentrant = False

    def __init__(self, lock: Any, rank: Rank, order: LockOrder, number: int) -> None:
        self._lock = lock
        self._order = order
        self.rank = rank
        self.number = number
        self._holder: list[_CheckedLock] = []  # what the thread holds that took it last

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        held = _held.locks
        if held and blocking:  # who does not wait is in no circle
            self._order.check(self, held)
        limits = (blocking,) if timeout is None else (blocking, timeout)
        if not self._lock.acquire(*limits):
            return False
        held.append(self)
        self._holder = held
        return True

    def release(self) -> None:
        held = _held.locks
        holder = held if self in held else self._holder  # another thread took it
        if self in holder:
            holder.remove(self)
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class _CheckedRLock(_CheckedLock):
    """In the place of an RLock, with what ``threading.Condition`` asks of one."""

    __slots__ = ()
    is_reentrant = True

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())

    def _release_save(self) -> tuple[int, Any]:
        held = _held.locks
        count = held.count(self)
        held[:] = [lock for lock in held if lock is not self]
        return count, self._lock._release_save()

    def _acquire_restore(self, saved: tuple[int, Any]) -> None:
        count, state = saved
        self._order.check(self, _held.locks)
        self._lock._acquire_restore(state)
        _held.locks += [self] * count


class LockOrder:
    """The order of a set of locks.

    Args:
        names: of the locks, by the place that makes one (``module:line``).
        report: called with the text of an error, once for each pair of locks.
    """

    def __init__(
        self, names: Mapping[str, str], ranks: list[Rank], report: Callable[[str], object]
    ) -> None:
        by_name = {rank.name: rank for rank in ranks}
        self._ranks = {place: by_name.get(name, Rank(name, 0)) for place, name in names.items()}
        self._report = report
        self._seen: set[tuple[Rank, Rank]] = set()

    def check(self, taken: _CheckedLock, held: list[_CheckedLock]) -> None:
        """Report if a thread that holds these locks must not wait for another one."""
        if taken.is_reentrant and taken in held:
            return
        for lock in held:
            pair = lock.rank, taken.rank
            if pair[0] is pair[1] and pair[0].by and lock.number < taken.number:
                continue
            if pair not in self._seen:
                self._seen.add(pair)
                if lock.rank.level >= taken.rank.level:
                    self._report(_error(*pair))

    def checked(self, maker: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """What makes checked locks at the places that are known, and ordinary ones elsewhere."""
        kind = _CheckedRLock if maker in {"RLock", "Condition"} else _CheckedLock

        def make(*args: Any, **named: Any) -> Any:
            frame = sys._getframe(1)
            rank = self._ranks.get(f"{frame.f_globals.get('__name__')}:{frame.f_lineno}")
            if rank is None:
                return original(*args, **named)
            number = getattr(frame.f_locals["self"], rank.by) if rank.by else 0
            if maker == "Condition":
                return original(kind(_make_rlock(), rank, self, number))
            return kind(original(*args, **named), rank, self, number)

        return make

    def install(self) -> None:
        """Check the locks that this process makes from now on."""
        for maker in MAKERS:
            setattr(threading, maker, self.checked(maker, getattr(threading, maker)))


def _error(held: Rank, taken: Rank) -> str:
    import traceback

    lines = [
        f"{held.name} (level {held.level}) is held, {taken.name} (level {taken.level}) is taken:"
    ]
    frames = traceback.extract_stack()[:-2]
    lines += [f"    {frame.filename}:{frame.lineno}: {frame.line}" for frame in frames[-16:]]
    return "\n".join(lines)


def install() -> None:
    """Check the locks of this process, which belongs to a run."""
    folder = Path(os.environ[VARIABLE])

    def report(error: str) -> None:
        with (folder / FOUND).open("a") as file:
            file.write(f"process {os.getpid()}: {error}\n")

    names, ranks = json.loads((folder / LOCKS).read_text())
    LockOrder(names, [Rank(*rank) for rank in ranks], report).install()
