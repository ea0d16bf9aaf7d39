"""How a store behaves that is far away: speed of connections, delays of answers, and counts."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_LATE_S = 0.5
"""A late answer comes after this and, by the same again in the mean, more."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a store does to each connection and each request.

    Attributes:
        bytes_per_s: of each connection, in each direction; None: no limit.
        delay_s: median of the time until the first byte of an answer.
        spread: of its logarithm; 0: always the same, 0.4: one in ten later than 1.7 times this.
        late: share of the answers that come after half a second or, rarely, seconds.
        never: share of the requests that get no answer.
        reset: share of the requests whose connection is reset in the midst.
        dying_s: for how long each address but the first is dead, one after the other; 0: none is.
        seed: of the delays: the same requests in the same order have the same delays.
    """

    bytes_per_s: int | None = None
    delay_s: float = 0.0
    spread: float = 0.0
    late: float = 0.0
    never: float = 0.0
    reset: float = 0.0
    dying_s: float = 0.0
    seed: int = 1

    def options(self) -> list[str]:
        """The options of the command :mod:`benchmarks.sendfile_server`."""
        values = {
            "mb-per-s": self.bytes_per_s and self.bytes_per_s / 1e6,
            "delay-ms": self.delay_s * 1000,
            "spread": self.spread,
            "late": self.late,
            "never": self.never,
            "reset": self.reset,
            "dying-s": self.dying_s,
            "seed": self.seed,
        }
        return [f"--{name}={value}" for name, value in values.items() if value]


class Delays:
    """When the answers come. Used by all threads."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._lock = threading.Lock()
        self._random = random.Random(behaviour.seed)

    def reset(self) -> None:
        """Begin again with the first delay."""
        with self._lock:
            self._random.seed(self._behaviour.seed)

    def next(self) -> float:
        """Seconds until an answer; infinite: no answer comes."""
        with self._lock:
            is_special, size = self._random.random(), self._random.random()
            normal = self._random.normalvariate()
        way = self._behaviour
        if is_special < way.never:
            return math.inf
        if is_special < way.late:
            return _LATE_S - _LATE_S * math.log(1.0 - size)
        if not way.spread:
            return way.delay_s
        return way.delay_s * math.exp(way.spread * normal)


class Accidents:
    """What goes wrong with connections. Used by all threads.

    Args:
        behaviour: of the store.
        dying: the number of addresses that die.
    """

    def __init__(self, behaviour: Behaviour, dying: int) -> None:
        self._behaviour = behaviour
        self._dying = dying
        self._random = random.Random(behaviour.seed)
        self._began_s = time.monotonic()

    def resets(self) -> bool:
        """Whether the next request's connection is reset."""
        return self._random.random() < self._behaviour.reset

    def dead_s(self, address: str) -> float:
        """How many seconds an address is dead from now; 0: it is not. 127.0.0.2 is the first."""
        number, each_s = _number(address), self._behaviour.dying_s
        if not each_s or not self._dying:
            return 0.0
        passed_s = (time.monotonic() - self._began_s) % (each_s * self._dying)
        return max(0.0, number * each_s - passed_s) if passed_s >= (number - 1) * each_s else 0.0


def refuses(address: str) -> bool:
    """Whether an address that is dead refuses connections; otherwise it is silent."""
    return _number(address) % 2 == 1


def _number(address: str) -> int:
    return int(address.rpartition(".")[2]) - 1


class Counts:
    """The number of a store's requests and bytes. Used by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0
        self._changed_s = time.monotonic()
        self.reset()

    def reset(self) -> None:
        """Count from nothing. Requests in progress stay counted as busy."""
        with self._lock:
            self._advance()
            self._most_busy = self._busy
            self._busy_s = self._any_busy_s = 0.0
            self._requests: Counter[str] = Counter()
            self._connections: Counter[str] = Counter()
            self._bytes: Counter[str] = Counter()
            self._accidents: Counter[str] = Counter()

    @contextmanager
    def busy(self, operation: str) -> Iterator[None]:
        """A block in which a request is answered."""
        with self._lock:
            self._advance()
            self._requests[operation] += 1
            self._busy += 1
            self._most_busy = max(self._most_busy, self._busy)
        try:
            yield
        finally:
            with self._lock:
                self._advance()
                self._busy -= 1

    def connected(self, address: str) -> None:
        """Count a connection to one of the addresses."""
        with self._lock:
            self._connections[address] += 1

    def moved(self, direction: str, size_bytes: int) -> None:
        """Count bytes of a body, ``in`` or ``out``."""
        with self._lock:
            self._bytes[direction] += size_bytes

    def accident(self, kind: str) -> None:
        """Count a connection that was ``reset``, or a request without an answer: ``silent``."""
        with self._lock:
            self._accidents[kind] += 1

    def facts(self) -> dict[str, Any]:
        """Everything since the reset.

        ``busy_most``: requests at the same time; ``busy_mean``: their mean while there was at least
        one, for ``busy_s`` seconds. ``connections``: by the address that they came to.
        """
        with self._lock:
            self._advance()
            mean = self._busy_s / self._any_busy_s if self._any_busy_s else 0.0
            return {
                "requests": dict(self._requests),
                "connections": dict(self._connections),
                "accidents": dict(self._accidents),
                "bytes_in": self._bytes["in"],
                "bytes_out": self._bytes["out"],
                "busy_most": self._most_busy,
                "busy_mean": round(mean, 2),
                "busy_s": round(self._any_busy_s, 3),
            }

    def _advance(self) -> None:
        """Account for the time that has passed. The lock is held."""
        now_s = time.monotonic()
        passed_s = now_s - self._changed_s
        self._changed_s = now_s
        if self._busy:
            self._busy_s += self._busy * passed_s
            self._any_busy_s += passed_s
