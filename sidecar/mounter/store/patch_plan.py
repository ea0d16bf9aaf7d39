"""Plans an object of ranges of an older version and new bytes.

A multipart upload has parts that are sent and parts that the store copies from an object. Each part
but the last has a smallest size, each has a largest one, and their number is limited. So more must
be sent than what changed: a part that is too small takes bytes of its neighbours, and a range
between two changes may be too short to be copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sidecar.mounter.store.interface import Limits
from sidecar.mounter.store.ranges import Range


class Piece(NamedTuple):
    """One part: the bytes ``start`` to ``end`` of the new object.

    ``copied``: the old object has them at the same place; else they are sent.
    """

    start: int
    end: int
    copied: bool


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

    They are legal by ``limits``, cover every byte once, and copy each range that can be copied. If
    that makes too many parts, the shortest ranges between changes are sent, too.

    Args:
        changed: ranges, in order, that differ from the old object. Everything after the old
            object's end differs in any case.
        sent_part_bytes, copied_part_bytes: the wanted sizes of parts.

    Returns:
        None if nothing can be copied, or not within the limits.
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
    # Equal parts are smaller than the wanted size, and must not become too small.
    most = max(1, (end - start) // limits.min_part_bytes)
    least = -(-(end - start) // limits.max_part_bytes)
    count = max(least, min(count, most))
    cuts = [start + (end - start) * number // count for number in range(count + 1)]
    return list(itertools.pairwise(cuts))


def _kept(end: int, changed: Iterable[Range]) -> list[Range]:
    """The unchanged ranges of the old object, in order."""
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
    """The ranges that are copied, trimmed: every one that can be, from the first on.

    Bytes that are sent between two of them must be a part of their own. If they are too few, the
    earlier range gives what it can spare of its end, and the later one the rest of its beginning.
    """
    copied: list[Range] = []
    for start, end in kept:
        before, sent_from = copied[-1] if copied else (0, 0)
        wanted = max(0, least - (start - sent_from)) if start else 0
        given = min(wanted, max(0, sent_from - before - least))
        taken = start + wanted - given
        if end - taken >= (1 if end == size_bytes else least):
            if copied:
                copied[-1] = before, sent_from - given
            copied.append((taken, end))
    return copied


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
