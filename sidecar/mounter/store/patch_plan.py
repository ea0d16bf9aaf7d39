"""Plans an object of ranges of an older version and new bytes. Knows no store.

A multipart upload has parts that are sent and parts that the store copies from an object.
Each but the last has a smallest size, each has a largest one, and their number is limited. So
more must be sent than what changed: a part that is too small takes bytes of its neighbours, and a
range between two changes may be too short to be copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sidecar.mounter.store.interface import Limits
from sidecar.mounter.store.ranges import Range

_LONGEST_STEP = 3
"""Of three neighbours that could each be copied, one is: its neighbours are large enough."""


class Piece(NamedTuple):
    """One part: the bytes ``start`` to ``end`` of the new object.

    ``copied``: the old object has them at the same place; else they are sent.
    """

    start: int
    end: int
    copied: bool


class _Copy(NamedTuple):
    """A way to put together everything up to the end of one copied range.

    Attributes:
        sent_bytes: what is sent before it.
        spare_bytes: what it can give of its end to a part behind it that is too small.
        start: where the copied range begins, once the part before it had its share.
        kept: which of the ranges that the old object has.
        before: the copied range before it.
        given_bytes: what that one gives of its end to the part between the two.
    """

    sent_bytes: int
    spare_bytes: int
    start: int
    kept: int
    before: _Copy | None = None
    given_bytes: int = 0


def plan(
    base_bytes: int,
    size_bytes: int,
    changed: Iterable[Range],
    limits: Limits,
    *,
    sent_part_bytes: int,
    copied_part_bytes: int,
) -> list[Piece] | None:
    """The parts of an object of ``size_bytes`` that began as one of ``base_bytes``.

    They are legal by ``limits``, cover every byte once, and send as little as that allows:
    unless there would be too many, when the shortest ranges between changes are sent as well.

    Args:
        changed: ranges in order that the old object does not have as they shall be. What is
            behind its end it does not have in any case.
        sent_part_bytes, copied_part_bytes: how large parts are where nothing speaks against it.

    Returns:
        None where nothing can be copied, or not within the limits.
    """
    kept = _kept(min(base_bytes, size_bytes), changed)
    least_gap_bytes = 1
    while kept:
        copied = _choose(kept, size_bytes, limits.min_part_bytes)
        for factor in (1, 2, 4, 8, 1 << 40):
            pieces = _cut(
                copied, size_bytes, limits, sent_part_bytes * factor, copied_part_bytes * factor
            )
            if len(pieces) <= limits.max_parts:
                return pieces if copied else None
        least_gap_bytes *= 2
        kept = [one for one in kept if one[1] - one[0] >= least_gap_bytes]
    return None


def split(start: int, end: int, wanted_bytes: int, limits: Limits) -> list[Range]:
    """A range in parts of about one size: ``wanted_bytes``, or what the limits make of it."""
    if start == end:
        return []
    wanted_bytes = max(limits.min_part_bytes, min(wanted_bytes, limits.max_part_bytes))
    count = -(-(end - start) // wanted_bytes)
    # Parts of equal size are smaller than what was wanted, and must not become too small.
    most = max(1, (end - start) // limits.min_part_bytes)
    least = -(-(end - start) // limits.max_part_bytes)
    count = max(least, min(count, most))
    cuts = [start + (end - start) * number // count for number in range(count + 1)]
    return list(itertools.pairwise(cuts))


def _kept(end: int, changed: Iterable[Range]) -> list[Range]:
    """What the old object has, as ranges in order."""
    kept: list[Range] = []
    position = 0
    for start, stop in changed:
        if position < min(start, end):
            kept.append((position, min(start, end)))
        position = max(position, stop)
    if position < end:
        kept.append((position, end))
    return kept


def _choose(kept: Sequence[Range], size_bytes: int, least: int) -> list[Range]:
    """Which ranges are copied, and how much of each, so that the least is sent.

    Dynamic programming over the ranges that could be copied. Two ways up to the same range
    differ in what they send and in what the range can still spare; one that is worse in both
    is forgotten. A step leaves out at most two neighbours.
    """
    able = [
        number
        for number, (start, end) in enumerate(kept)
        if end - start >= least or end == size_bytes
    ]
    ways: list[list[_Copy]] = []
    best_bytes, best = size_bytes, None
    for position, index in enumerate(able):
        found = _from_start(kept, index, size_bytes, least)
        for earlier in ways[max(0, position - _LONGEST_STEP) :]:
            for way in earlier:
                found += _step(kept, way, index, size_bytes, least)
        ways.append(_undominated(found))
        for way in ways[-1]:
            total_bytes = way.sent_bytes + size_bytes - kept[index][1]
            if total_bytes < best_bytes:
                best_bytes, best = total_bytes, way
    return _ranges(kept, best)


def _from_start(kept: Sequence[Range], index: int, size_bytes: int, least: int) -> list[_Copy]:
    """Everything before a range is sent."""
    gap_bytes = kept[index][0]
    wanted = max(0, least - gap_bytes) if gap_bytes else 0
    return _take(kept, _Copy(gap_bytes, 0, 0, index), wanted, size_bytes, least)


def _step(
    kept: Sequence[Range], before: _Copy, index: int, size_bytes: int, least: int
) -> list[_Copy]:
    """From one copied range to another: what is between them is sent."""
    gap_bytes = kept[index][0] - kept[before.kept][1]
    wanted = max(0, least - gap_bytes)
    # What the earlier one can spare is of no use to anybody else.
    given = min(wanted, before.spare_bytes)
    way = _Copy(before.sent_bytes + gap_bytes + given, 0, 0, index, before, given)
    return _take(kept, way, wanted - given, size_bytes, least)


def _take(
    kept: Sequence[Range], way: _Copy, wanted: int, size_bytes: int, least: int
) -> list[_Copy]:
    """The way, if its range can give ``wanted`` bytes of its beginning to the part before it."""
    start, end = kept[way.kept]
    needs = 1 if end == size_bytes else least
    spare = end - start - wanted - needs
    if spare < 0:
        return []
    return [
        way._replace(
            sent_bytes=way.sent_bytes + wanted,
            spare_bytes=min(spare, least),  # no part wants more
            start=start + wanted,
        )
    ]


def _undominated(ways: list[_Copy]) -> list[_Copy]:
    """Those that no other one beats in both respects, the cheapest first."""
    best: list[_Copy] = []
    for way in sorted(ways, key=lambda way: (way.sent_bytes, -way.spare_bytes)):
        if not best or way.spare_bytes > best[-1].spare_bytes:
            best.append(way)
    return best


def _ranges(kept: Sequence[Range], way: _Copy | None) -> list[Range]:
    """The copied ranges of a way, in order."""
    found: list[Range] = []
    given = 0
    while way is not None:
        found.append((way.start, kept[way.kept][1] - given))
        given, way = way.given_bytes, way.before
    return found[::-1]


def _cut(
    copied: Sequence[Range],
    size_bytes: int,
    limits: Limits,
    sent_part_bytes: int,
    copied_part_bytes: int,
) -> list[Piece]:
    pieces: list[Piece] = []
    position = 0
    for start, end in [*copied, (size_bytes, size_bytes)]:
        for first, last in split(position, start, sent_part_bytes, limits):
            pieces.append(Piece(first, last, copied=False))
        for first, last in split(start, end, copied_part_bytes, limits):
            pieces.append(Piece(first, last, copied=True))
        position = end
    return pieces
