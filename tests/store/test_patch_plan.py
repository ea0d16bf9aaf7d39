"""Which bytes are sent and which are copied when an object is made from an older one."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.mounter.store.azure.store import AzureStore
from sidecar.mounter.store.gcs.store import GcsStore
from sidecar.mounter.store.interface import Limits
from sidecar.mounter.store.patch_plan import Piece, plan, split
from sidecar.mounter.store.ranges import MOST_RANGES, Range, Ranges
from sidecar.mounter.store.s3.store import S3Store
from sidecar.units import GIB, MIB

STORES = [S3Store.limits, GcsStore.limits, AzureStore.limits]


def check(
    pieces: list[Piece], base_bytes: int, size_bytes: int, changed: list[Range], limits: Limits
) -> None:
    """The plan obeys the limits, has every byte once, and copies only unchanged bytes."""
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == size_bytes
    assert len(pieces) <= limits.max_parts
    for piece in pieces:
        assert 0 < piece.end - piece.start <= limits.max_part_bytes
        if piece.copied:
            assert piece.end <= base_bytes
            assert not Ranges(changed).touches(piece.start, piece.end)
    for piece in pieces[:-1]:
        assert piece.end - piece.start >= limits.min_part_bytes


def sent_bytes(pieces: list[Piece]) -> int:
    return sum(piece.end - piece.start for piece in pieces if not piece.copied)


@st.composite
def revisions(draw: st.DrawFn, most: int) -> tuple[int, int, list[Range]]:
    size = draw(st.integers(1, most))
    base = draw(st.integers(0, most))
    edges = draw(st.lists(st.integers(0, most), max_size=24))
    return base, size, list(_pairs(edges))


def _pairs(edges: list[int]) -> Ranges:
    ordered = sorted(edges)
    return Ranges(zip(ordered[::2], ordered[1::2], strict=False))


@settings(max_examples=400, deadline=None)
@given(
    revision=revisions(40),
    least=st.integers(1, 6),
    wanted=st.integers(1, 12),
)
def test_little_more_is_sent_than_the_limits_demand(
    revision: tuple[int, int, list[Range]], least: int, wanted: int
) -> None:
    base, size, changed = revision
    limits = Limits(1 << 40, least, 2 * least + wanted, 1000)
    unlike = {byte for start, end in changed for byte in range(start, end)}

    @cache
    def best(position: int) -> float:
        """The fewest bytes to send from here on."""
        if position == size:
            return 0
        found = float("inf")
        for end in range(position + 1, min(size, position + limits.max_part_bytes) + 1):
            if end - position < least and end != size:
                continue
            rest = best(end)
            found = min(found, end - position + rest)
            if end <= base and unlike.isdisjoint(range(position, end)):
                found = min(found, rest)
        return found

    pieces = plan(base, size, changed, limits, sent_part_bytes=wanted, copied_part_bytes=3 * wanted)
    if pieces is None:
        assert best(0) == size
    else:
        check(pieces, base, size, changed, limits)
        assert sent_bytes(pieces) <= best(0) + least * len(changed)


@settings(max_examples=200, deadline=None)
@given(
    revision=revisions(3000),
    least=st.integers(1, 50),
    spread=st.integers(0, 400),
    parts=st.integers(1, 12),
)
def test_few_parts_are_kept_to(
    revision: tuple[int, int, list[Range]], least: int, spread: int, parts: int
) -> None:
    base, size, changed = revision
    limits = Limits(1 << 40, least, 2 * least + spread, parts)
    pieces = plan(base, size, changed, limits, sent_part_bytes=least, copied_part_bytes=4 * least)
    if pieces is not None:
        check(pieces, base, size, changed, limits)


@pytest.mark.parametrize("limits", STORES)
@settings(max_examples=60, deadline=None)
@given(
    base=st.integers(0, 60 * GIB),
    size=st.integers(1, 60 * GIB),
    edges=st.lists(st.integers(0, 60 * GIB), max_size=40),
)
def test_what_real_stores_allow(limits: Limits, base: int, size: int, edges: list[int]) -> None:
    changed = list(_pairs(edges))
    pieces = plan(base, size, changed, limits, sent_part_bytes=8 * MIB, copied_part_bytes=GIB)
    if pieces is not None:
        check(pieces, base, size, changed, limits)


def test_a_small_base_is_sent_again() -> None:
    assert (
        plan(
            3 * MIB,
            20 * MIB,
            [],
            S3Store.limits,
            sent_part_bytes=8 * MIB,
            copied_part_bytes=GIB,
        )
        is None
    )


def test_what_is_appended_is_all_that_is_sent() -> None:
    pieces = plan(
        12 * MIB, 12 * MIB + 5, [], S3Store.limits, sent_part_bytes=8 * MIB, copied_part_bytes=GIB
    )
    assert pieces == [Piece(0, 12 * MIB, True), Piece(12 * MIB, 12 * MIB + 5, False)]


def test_one_byte_in_the_middle_takes_as_much_as_a_part_must_have() -> None:
    at = 50 * MIB
    pieces = plan(
        100 * MIB,
        100 * MIB,
        [(at, at + 1)],
        S3Store.limits,
        sent_part_bytes=8 * MIB,
        copied_part_bytes=GIB,
    )
    assert pieces is not None
    assert sent_bytes(pieces) == 5 * MIB


def test_more_than_one_part_may_hold_is_several() -> None:
    pieces = plan(
        12 * MIB, 30 * GIB, [], S3Store.limits, sent_part_bytes=8 * GIB, copied_part_bytes=GIB
    )
    assert pieces is not None
    assert max(piece.end - piece.start for piece in pieces) <= 5 * GIB


def test_a_range_is_cut_into_legal_parts() -> None:
    limits = Limits(1 << 40, 5, 20, 100)
    for size in range(1, 100):
        for wanted in range(1, 40):
            parts = split(0, size, wanted, limits)
            assert [start for start, _ in parts] == [0, *(end for _, end in parts[:-1])]
            assert parts[-1][1] == size
            assert all(end - start <= 20 for start, end in parts)
            assert size < 5 or all(end - start >= 5 for start, end in parts)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 30), st.integers(0, 30))
    )
)
def test_ranges_are_a_set_of_bytes(changes: list[tuple[str, int, int]]) -> None:
    ranges = Ranges()
    expected: set[int] = set()
    for how, start, end in changes:
        getattr(ranges, how)(start, end)
        expected = (
            expected | set(range(start, end)) if how == "add" else expected - set(range(start, end))
        )
        assert {byte for first, last in ranges for byte in range(first, last)} == expected
        assert ranges.size_bytes == len(expected)
        assert ranges.touches(start, end) == (not expected.isdisjoint(range(start, end)))
    ordered = list(ranges)
    assert all(before[1] < behind[0] for before, behind in itertools.pairwise(ordered))


def test_scattered_ranges_are_widened_and_lose_nothing() -> None:
    ranges = Ranges((number * 10_000, number * 10_000 + 1) for number in range(20_000))
    assert len(list(ranges)) <= MOST_RANGES
    assert all(ranges.touches(at, at + 1) for at in range(0, 200_000_000, 10_000))
