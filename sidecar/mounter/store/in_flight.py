"""How many parts a process moves at a time, and which stream is next: as many as make it faster.

For either direction. Reasons: decision 65.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable
from typing import Final, Protocol

from sidecar.units import MIB

MOST: Final = 64
"""The most parts in flight in one process."""
_LEAST: Final = 2
"""The least, so that one part comes while another one is awaited."""
_HOPED_RATE: Final = 1.2e9
"""The highest rate that two cores reach, bytes a second."""
_LEAST_TRANSFER_S: Final = 0.1
_DELAYS: Final = 5
"""How many delays a part should take. Then a sixth of the time is lost."""
_LEAST_PART_BYTES: Final = 1 * MIB
_LEAST_ROUND: Final = 8
"""The least parts in a round."""
_LONGEST_S: Final = 2.5
"""The number does not grow while parts take longer than this: all must arrive before a silence
counts as an outage, and before a pod's last seconds are over."""
_PAYS: Final = 1.15
"""More parts in flight are kept if the rate rises by this factor."""
_SCALES: Final = 0.9
"""If each part keeps this much of its rate, four times as many are tried next, instead of twice."""
_COSTS_NOTHING: Final = 0.95
"""Fewer parts are kept if this much of the rate is left."""
_HALF_WRONG: Final = 0.35
"""If the first number reaches less than this of the expected rate, fewer are tried first."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 8.0
"""The pause between two trials, since stores and networks change."""


class Waiter(Protocol):
    """A stream that would have one more part in flight."""

    def go_on(self) -> None:
        """Try :meth:`InFlight.begin`: there may be room now."""


class InFlight:
    """The parts in flight of one process, of all its streams. Safe to use from any thread.

    A stream that lacks a part waits for its turn; the longest wait is first. So a stream with a
    slow reader asks for nothing, and the others share the room. The number of parts is found by
    trial: while a stream waits, the rate of all parts is measured. More parts are kept if they
    raise it, fewer if they do not lower it. The rate of a single connection gives the first number.
    Later it is no measure: connections that share a CPU or a network slow each other down.

    Args:
        part_bytes: the largest part.
        room_bytes: the most bytes of all parts together.
        least: the least parts, and the first number.
        hoped_rate: bytes a second. When a connection was measured, there are as many as reach this;
            0: the first number is doubled instead, as long as that makes it faster.
        tell: called with the number of parts that there may be, at first and at each change.

    Attributes:
        most: how many parts there may be.
        count: how many parts there are.
    """

    def __init__(
        self,
        part_bytes: int,
        room_bytes: float = math.inf,
        least: int = _LEAST,
        hoped_rate: float = _HOPED_RATE,
        tell: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._most_part_bytes = part_bytes
        self._room_bytes = room_bytes
        self._least = least
        self._hoped_rate = hoped_rate
        self.most = self._wanted = least
        self.count = 0
        self._tell = tell
        tell(least)
        self._lock = threading.Lock()
        self._waiting: dict[Waiter, None] = {}  # the longest wait first
        # A connection's best rate and least delay until the number is tried, the usual ones later.
        # Parts keep the size for the best rate: if connections share the CPU, smaller parts would
        # cost more of it.
        self._rate = self._best_rate = 0.0
        self._delay_s = math.inf
        self._climb = _Climb()
        self._changed_s = 0.0
        self._rates: list[float] = []  # rates of the parts of a round, bytes a second

    @property
    def part_bytes(self) -> int:
        """How large a part should be: a power of 2, or the largest."""
        transfer_s = max(_LEAST_TRANSFER_S, _DELAYS * min(self._delay_s, 1.0))
        wanted = min(self._best_rate * transfer_s or math.inf, self._most_part_bytes)
        size = _LEAST_PART_BYTES
        while size < wanted:
            size *= 2
        while size > 2 * _LEAST_PART_BYTES and size * self._wanted > self._room_bytes:
            size //= 2
        return min(size, self._most_part_bytes)

    @property
    def bytes(self) -> int:
        """The bytes that may be in flight, and one more part that waits for its turn."""
        return (self.most + 1) * self.part_bytes

    # --- turns --------------------------------------------------------------------------------

    def begin(self, stream: Waiter) -> bool:
        """Count one more part. False if there is no room: then the stream waits for its turn."""
        with self._lock:
            if self.count >= self.most:
                self._waiting.setdefault(stream)
                return False
            self._waiting.pop(stream, None)
            self.count += 1
            return True

    def give_up(self, stream: Waiter) -> None:
        """Take back a part that was begun, for lack of memory. The stream waits for its turn."""
        with self._lock:
            self.count -= 1
            self._waiting.setdefault(stream)

    def begin_now(self) -> None:
        """Count one more part, because a program waits for it."""
        with self._lock:
            self.count += 1

    @property
    def is_full(self) -> bool:
        """Whether there is no room for one more part, or a stream waits for its turn."""
        return self.count >= self.most or bool(self._waiting)

    def forget(self, stream: Waiter) -> None:
        """Let the stream wait no more."""
        with self._lock:
            self._waiting.pop(stream, None)

    def end(self, size: int, began_s: float, delay_s: float, now_s: float) -> None:
        """Count a part that has moved, or failed.

        Args:
            size: how many bytes of it moved.
            began_s: when it began (monotonic).
            delay_s: how long its first byte took; inf if that is not known.
        """
        with self._lock:
            self.count -= 1
            if size >= _LEAST_PART_BYTES:
                self._measure_connection(size, now_s - began_s, delay_s)
                self._measure_all(size, began_s, now_s)
            room = self.most - self.count
            turns = [stream for stream, _ in zip(self._waiting, range(room), strict=False)]
            for stream in turns:
                del self._waiting[stream]
        for stream in turns:
            stream.go_on()

    # --- how many: the lock is held -----------------------------------------------------------

    def _measure_connection(self, size: int, taken_s: float, delay_s: float) -> None:
        rate = size / max(taken_s - (delay_s if delay_s < math.inf else 0.0), 1e-4)
        if self._climb.has_begun:
            self._rate += (rate - self._rate) / 8
            self._delay_s += (min(delay_s, 2 * self._delay_s) - self._delay_s) / 8
            return
        self._rate = self._best_rate = max(rate, self._rate)
        self._delay_s = min(delay_s, self._delay_s)
        self._set(math.ceil(self._hoped_rate / self._each()))

    def _measure_all(self, size: int, began_s: float, now_s: float) -> None:
        """Measure a round: as many parts as are in flight, most of whose time had this number.

        If one part has the rate ``r``, ``n`` have ``n * r`` together (Little's law). The median
        ignores a part that stood still.
        """
        if not self._waiting:  # no stream lacked a part
            self._rates.clear()
            return
        if began_s + now_s < 2 * self._changed_s:
            return
        self._rates.append(size / max(now_s - began_s, 1e-4))
        if len(self._rates) >= max(self.most, _LEAST_ROUND):
            rate = self.most * statistics.median(self._rates)
            self._rates.clear()
            is_slow = self.most * self._most_part_bytes / rate > _LONGEST_S
            number = self._climb.next(self.most, rate, now_s, self._each(), is_slow=is_slow)
            if number != self.most:
                self._set(number)
                self._changed_s = now_s

    def _each(self) -> float:
        """A connection's rate, in bytes a second, if only the connection limits it."""
        size = self.part_bytes
        return size / (min(self._delay_s, 1.0) + size / self._rate)

    def _set(self, number: int) -> None:
        self._wanted = min(number, MOST)
        most = int(max(self._least, min(self._wanted, self._room_bytes // self.part_bytes)))
        if most != self.most:
            self.most = most
            self._tell(most)


class _Climb:
    """Tries other numbers, one after the other, and keeps the better ones."""

    def __init__(self) -> None:
        self.has_begun = False
        self._back: tuple[int, float] | None = None  # number and rate before a trial
        self._up = True
        self._pause_s = _FIRST_PAUSE_S
        self._next_s = 0.0

    def next(self, number: int, rate: float, now_s: float, each: float, *, is_slow: bool) -> int:
        """The next number, after this one was measured.

        Args:
            each: the rate that one part alone should have.
            is_slow: parts take so long that there must not be more of them.
        """
        scales = False
        if not self.has_begun:
            self.has_begun = True
            if rate < _HALF_WRONG * number * each:  # something else is the limit
                self._up, self._back = False, (number, rate)
                return math.ceil(2 * rate / each)
        if self._back is not None:
            before, best = self._back
            self._back = None
            if rate < best * (_PAYS if self._up else _COSTS_NOTHING):
                self._up = not self._up
                self._next_s = now_s + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
                return before
            self._pause_s = _FIRST_PAUSE_S
            scales = rate > _SCALES * best * number / before
        elif now_s < self._next_s or (self._up and is_slow):
            return number
        self._back = number, rate
        if not self._up:
            return number * 3 // 4
        return number * 4 if scales else number * 2
