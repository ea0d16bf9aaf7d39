"""Buffers that are lent, kept and freed. Those that are used again have their old content."""

from __future__ import annotations

from sidecar.mounter.reading.buffers import BufferPool
from sidecar.units import MIB


def used(pool: BufferPool, count: int, size: int = MIB) -> int:
    """Take so many at a time, mark them and give them back; how many had been used before."""
    buffers = [pool.take(size) for _ in range(count)]
    again = 0
    for buffer in buffers:
        assert buffer is not None
        again += buffer[0]
        buffer[0] = 1
        pool.give_back(buffer)
    return again


def test_buffers_are_used_again() -> None:
    pool = BufferPool(8 * MIB)
    assert used(pool, 3) == 0
    assert used(pool, 4) == 3
    assert pool.lent_bytes == 0


def test_what_nobody_has_used_for_a_while_is_freed() -> None:
    pool = BufferPool(8 * MIB)
    used(pool, 5)
    pool.drop_unused()  # they have been used since the call before, which there was none of
    used(pool, 2)
    pool.drop_unused()
    assert used(pool, 5) == 2
    pool.drop_unused()
    pool.drop_unused()
    assert used(pool, 5) == 0


def test_sizes_are_freed_each_for_itself() -> None:
    pool = BufferPool(8 * MIB)
    used(pool, 2)
    used(pool, 1, 2 * MIB)
    pool.drop_unused()
    used(pool, 2)
    pool.drop_unused()
    assert used(pool, 1, 2 * MIB) == 0
    assert used(pool, 2) == 2


def test_a_smaller_budget_frees_what_it_has_no_room_for() -> None:
    pool = BufferPool(8 * MIB)
    used(pool, 6)
    pool.shrink(0.5)
    pool.drop_unused()
    pool.drop_unused()
    assert used(pool, 4) == 0
    assert pool.take(5 * MIB) is None
