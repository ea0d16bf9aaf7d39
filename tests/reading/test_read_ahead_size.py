"""How far a stream reads ahead. No clock runs."""

from __future__ import annotations

import pytest

from sidecar.mounter.reading.read_ahead_size import FIRST_BYTES, ReadAheadSize
from sidecar.units import GIB, MIB


def test_what_may_be_in_flight_is_asked_for() -> None:
    """Once as much was read that the rest is likely wanted, too."""
    size = ReadAheadSize(0)
    size.waited(8 * MIB, 256 * MIB, is_limit=False)
    assert size.bytes == 64 * MIB
    size.waited(64 * MIB, 256 * MIB, is_limit=False)
    assert size.bytes == 256 * MIB


def test_random_reads_that_happen_to_follow_each_other_get_little() -> None:
    """The kernel makes three requests of 1 MiB from two reads in sequence."""
    size = ReadAheadSize(0)
    for position in (MIB, 2 * MIB, 3 * MIB):
        size.waited(position, 256 * MIB, is_limit=False)
    assert size.bytes <= 3 * 3 * MIB


def test_who_reads_in_bursts_has_a_whole_one_ready() -> None:
    size = ReadAheadSize(0)
    for burst in range(1, 8):
        size.waited(burst * 256 * MIB, 16 * MIB, is_limit=True)
    assert size.bytes >= 256 * MIB


def test_who_waits_for_a_turn_needs_no_more() -> None:
    size = ReadAheadSize(0)
    for position in range(0, GIB, 16 * MIB):
        size.waited(position, 32 * MIB, is_limit=False)
    assert size.bytes == 32 * MIB


def test_what_was_never_needed_is_given_back() -> None:
    size = ReadAheadSize(0)
    size.waited(GIB, 256 * MIB, is_limit=False)
    position = GIB
    while position < 4 * GIB:
        position += 8 * MIB
        size.went_on(position, ready_bytes=size.bytes - MIB)
    assert size.bytes == 8 * MIB


def test_what_is_needed_is_kept() -> None:
    size = ReadAheadSize(0)
    size.waited(GIB, 256 * MIB, is_limit=False)
    for position in range(GIB, 4 * GIB, 8 * MIB):
        size.went_on(position, ready_bytes=64 * MIB)
    assert size.bytes == 256 * MIB


@pytest.mark.parametrize("start", [0, 3 * GIB])
def test_a_stream_that_begins_anew_begins_small(start: int) -> None:
    size = ReadAheadSize(0)
    size.waited(GIB, 256 * MIB, is_limit=False)
    assert size.has_grown
    size.restart(start)
    assert size.bytes == FIRST_BYTES
    assert not size.has_grown
    size.waited(start + MIB, 256 * MIB, is_limit=False)
    assert size.bytes == 2 * MIB
