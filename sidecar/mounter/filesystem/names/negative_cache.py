"""Names that the store said do not exist, and until when that answer is valid."""

from __future__ import annotations

import time

_MAX_NAMES = 10_000


class NegativeCache:
    """The absent names of one directory. Safe to use from any thread."""

    __slots__ = ("_until_s",)

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether any name is remembered."""
        return bool(self._until_s)

    def holds(self, name: str, now_s: float) -> bool:
        """Whether ``name`` is known to be absent at ``now_s`` (monotonic)."""
        return self._until_s.get(name, 0.0) > now_s

    def remaining_s(self, name: str) -> float:
        """For how many more seconds ``name`` is known to be absent; 0 if it is not."""
        return max(0.0, self._until_s.get(name, 0.0) - time.monotonic())

    def add(self, name: str, until_s: float) -> None:
        """Note that ``name`` does not exist, until ``until_s`` (monotonic)."""
        if len(self._until_s) >= _MAX_NAMES:
            self._until_s.clear()
        self._until_s[name] = until_s

    def discard(self, name: str) -> None:
        """Note that ``name`` may exist again."""
        self._until_s.pop(name, None)

    def clear(self) -> None:
        """Note that every name may exist again."""
        self._until_s.clear()

    def drop_expired(self, now_s: float) -> None:
        """Forget the answers that are not valid any more at ``now_s`` (monotonic)."""
        # Other threads add and discard meanwhile. Replacing the dict by a filtered copy would
        # bring back a name that one of them has just made.
        for name, until_s in list(self._until_s.items()):
            if until_s <= now_s:
                self._until_s.pop(name, None)
