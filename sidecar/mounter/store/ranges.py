"""Sets of byte offsets, kept as ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""The first byte, and the byte after the last."""

MOST_RANGES = 4096
"""A set of more ranges is widened, so that scattered writes cost bounded memory and time."""
_FIRST_GAP_BYTES = 4096


class Ranges:
    """A set of byte offsets. Not safe for several threads.

    Only :meth:`add` beyond ``MOST_RANGES`` makes the set larger than what was put in: it then fills
    the smallest gaps.

    Attributes:
        size_bytes: how many offsets are in it.
    """

    __slots__ = ("_ends", "_starts", "size_bytes")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.size_bytes = 0
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[Range]:
        """The ranges in order: none empty, none touching the next."""
        return zip(self._starts, self._ends, strict=True)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"

    def add(self, start: int, end: int) -> None:
        """Put a range in; an empty one changes nothing."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)  # the first that it touches, or the next one
        last = bisect_right(self._starts, end, first)
        if first == last:
            self._starts.insert(first, start)
            self._ends.insert(first, end)
            self.size_bytes += end - start
        else:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
            self.size_bytes += end - start - self._between(first, last)
            self._starts[first:last] = [start]
            self._ends[first:last] = [end]
        if len(self._starts) > MOST_RANGES:
            self._widen()

    def remove(self, start: int, end: int) -> None:
        """Take a range out."""
        if start >= end:
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        left: list[Range] = []
        if first < last:
            if self._starts[first] < start:
                left.append((self._starts[first], start))
            if self._ends[last - 1] > end:
                left.append((end, self._ends[last - 1]))
        self.size_bytes += sum(b - a for a, b in left) - self._between(first, last)
        self._starts[first:last] = [one[0] for one in left]
        self._ends[first:last] = [one[1] for one in left]

    def clear(self) -> None:
        """Take everything out."""
        self._starts.clear()
        self._ends.clear()
        self.size_bytes = 0

    def touches(self, start: int, end: int) -> bool:
        """Whether it has a byte of a range."""
        at = bisect_right(self._ends, start)
        return start < end and at < len(self._starts) and self._starts[at] < end

    def _between(self, first: int, last: int) -> int:
        return sum(self._ends[first:last]) - sum(self._starts[first:last])

    def _widen(self) -> None:
        gap_bytes = _FIRST_GAP_BYTES
        while len(self._starts) > MOST_RANGES // 2:
            starts, ends = self._starts[:1], self._ends[:1]
            for start, end in zip(self._starts[1:], self._ends[1:], strict=True):
                if start - ends[-1] <= gap_bytes:
                    ends[-1] = end
                else:
                    starts.append(start)
                    ends.append(end)
            self._starts, self._ends = starts, ends
            self.size_bytes = self._between(0, len(starts))
            gap_bytes *= 2
