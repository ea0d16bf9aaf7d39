"""Which threads of this process have stood still over a request without a reason.

The threads that serve need not cooperate: their stacks show from outside what they do, and the
kernel whether they have run (:mod:`sidecar.mounter.system.watchdog`).

A request may wait for the store as long as the store's time-outs let it. Its own thread need not be
the one that asks the store: it may wait for another one's page, part or upload. So while any thread
is in a call to the store, no thread counts as stuck. A thread in such a call runs now and then,
because each of its waits has a time-out; one that has not run for longer is no longer in the call.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import thread as pool
from types import FrameType
from typing import Any, Final, NamedTuple

from sidecar.mounter.system.watchdog import Ticks, thread_use

_STUCK_S: Final = 10.0
_STORE_MARGIN_S: Final = 60.0
_STORE: Final = "sidecar.mounter.store."


class _Place(NamedTuple):
    """What a thread does.

    Attributes:
        function: the innermost of ours, for the log.
    """

    busy: bool
    at_store: bool
    function: str


class StuckThreads:
    """Checks the threads of this process. :meth:`look` is called once in a tick.

    Args:
        serving: a thread has one of these functions on its stack while it serves a request. A
            thread of a pool at work always counts.
        store_wait_s: how long a call to the store may take, retries included.
    """

    def __init__(self, serving: Iterable[Callable[..., Any]], store_wait_s: float) -> None:
        self._serving = {function.__code__ for function in serving}
        self._serving.add(pool._WorkItem.run.__code__)
        self._store_wait_s = store_wait_s + _STORE_MARGIN_S
        self._ticks = Ticks()
        self._ran: dict[int, tuple[float, float]] = {}  # thread: its processor time, and since when

    def look(self) -> str | None:
        """What is stuck, in words, or None."""
        now_s = time.monotonic()
        if not self._ticks.next(now_s):
            self._ran.clear()
        names = {thread.ident: thread.native_id for thread in threading.enumerate()}
        places = {
            native: self._place(frame)
            for ident, frame in _current_frames().items()
            if (native := names.get(ident)) is not None
        }
        if not any(place.busy for place in places.values()):
            self._ran.clear()
            return None
        still_s = self._still_s(now_s)
        for thread, place in places.items():
            if place.at_store and still_s.get(thread, 0.0) < self._store_wait_s:
                return None
        for thread, place in places.items():
            if place.busy and (passed_s := still_s.get(thread, 0.0)) >= _STUCK_S:
                return f"a thread has stood still for {passed_s:.0f} s in {place.function}"
        return None

    def _still_s(self, now_s: float) -> dict[int, float]:
        """How long each thread has neither run, nor wanted to, nor waited for a disk."""
        use = thread_use("self")
        self._ran = {
            thread: known
            if (known := self._ran.get(thread)) and known[0] == ran_s and state not in "RD"
            else (ran_s, now_s)
            for thread, (state, ran_s, _) in use.items()
        }
        return {thread: now_s - since_s for thread, (_, since_s) in self._ran.items()}

    def _place(self, frame: FrameType | None) -> _Place:
        busy = False
        function = ""
        while frame is not None:
            module = str(frame.f_globals.get("__name__"))
            busy = busy or frame.f_code in self._serving
            if not function and module.startswith("sidecar."):
                function = f"{module}.{frame.f_code.co_name}"
            frame = frame.f_back
        # The innermost function: callbacks of the store may wait for something else.
        return _Place(busy, function.startswith(_STORE), function)


def _current_frames() -> dict[int, FrameType]:
    """The current frame of each thread, by its identifier.

    CPython before 3.12 allocates while it holds its lock of threads. A garbage collection at that
    moment that found a ``threading.local`` would wait for that lock for ever (gh-106883).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if was_enabled:
            gc.enable()
