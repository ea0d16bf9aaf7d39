"""Blocks of one object: what was stored comes back, and nothing else ever does."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.mounter.cache import cache_entry
from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES as B
from tests.cache.folders import (
    Damage,
    acquire,
    an_object,
    has_whole,
    keep,
    open_cache,
    read,
    states,
)
from tests.support.waiting import wait_until

TAIL = 1000
SIZE = 3 * B + TAIL


# --- borders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [
        (0, B, "v---"),
        (0, B - 1, "----"),
        (1, 2 * B, "-v--"),
        (B, 2 * B + 1, "-v--"),
        (B - 1, 3 * B + 1, "-vv-"),
        (3 * B, SIZE, "---v"),
        (3 * B, SIZE - 1, "----"),
        (3 * B + 1, SIZE, "----"),
        (2 * B + 5, SIZE, "---v"),
        (0, SIZE, "vvvv"),
    ],
)
def test_only_whole_blocks_are_kept(tmp_path: Path, start: int, end: int, kept: str) -> None:
    info, content = an_object(SIZE)
    entry = acquire(open_cache(tmp_path), info)
    run = entry.claim(start, end)
    assert (run.start, run.end, run.state) == (start, end, "missing")
    entry.store(start, memoryview(content)[start:end])
    assert states(entry) == kept


@pytest.mark.parametrize("size", [1, B - 1, B, B + 1, 2 * B])
def test_every_size_comes_back_whole(tmp_path: Path, size: int) -> None:
    info, content = an_object(size)
    cache = open_cache(tmp_path)
    entry = acquire(cache, info)
    entry.store(0, memoryview(content))
    assert read(entry, 0, size) == content
    cache.release(entry)
    assert has_whole(cache, info)


@given(
    stored=st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=4),
    start=st.integers(0, SIZE - 1),
    size=st.integers(1, SIZE),
)
@settings(max_examples=60, deadline=None)
def test_a_read_gives_a_right_beginning_of_the_range(
    tmp_path_factory: pytest.TempPathFactory, stored: list[tuple[int, int]], start: int, size: int
) -> None:
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path_factory.mktemp("c"))
    entry = acquire(cache, info)
    for low, high in stored:
        if low < high:
            entry.store(low, memoryview(content)[low:high])
    end = min(start + size, SIZE)
    got = read(entry, start, end - start)
    assert content[start:end].startswith(got)
    known = states(entry)
    first_missing = known.find("-", start // B)
    right = end if first_missing < 0 else min(end, first_missing * B)
    assert len(got) == max(0, right - start)
    cache.release(entry)
    entry.close()


# --- damage -----------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, B + 10)


def hole(path: Path) -> None:
    """A page that a crash lost."""
    with path.open("r+b") as file:
        file.seek(B)
        file.write(bytes(4096))


def alter(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 * B - 1)
        byte = file.read(1)
        file.seek(2 * B - 1)
        file.write(bytes([byte[0] ^ 1]))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [cut, hole, alter, remove])
@pytest.mark.parametrize("reopened", [True, False])
def test_a_torn_or_altered_block_is_fetched_again(
    tmp_path: Path, harm: object, reopened: bool
) -> None:
    damage = Damage()
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path, damage=damage)
    harm(keep(cache, info, content))  # type: ignore[operator]
    if reopened:
        cache = open_cache(tmp_path, damage=damage)
    assert not (reopened and has_whole(cache, info))
    entry = acquire(cache, info)
    position = 0
    while position < SIZE:
        count = entry.read(position, memoryview(bytearray(SIZE - position)))
        assert read(entry, position, count) == content[position : position + count]
        position += count
        if position < SIZE:
            run = entry.claim(position, SIZE)
            assert run.state == "missing"
            entry.store(run.start, memoryview(content)[run.start : run.end])
    # An open file without a name is still intact.
    assert bool(damage.count) == (reopened or harm is not remove)
    assert read(entry, 0, SIZE) == content


@pytest.mark.parametrize("start", [B, B + 1])
def test_a_block_that_is_stored_while_it_is_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    damage = Damage()
    info, content = an_object(SIZE)
    reader = acquire(open_cache(tmp_path, damage=damage), info)
    writer = acquire(open_cache(tmp_path, damage=damage), info)

    def read_before_the_store(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        monkeypatch.undo()
        count = os.preadv(descriptor, buffers, offset)
        writer.store(0, memoryview(content))
        return count

    monkeypatch.setattr(os, "preadv", read_before_the_store)
    assert content[start : 3 * B].startswith(read(reader, start, 3 * B - start))
    assert damage.count == 0
    assert states(reader) == "vvvv"


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(100))


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


@pytest.mark.parametrize("harm", [garbage, emptied, longer, shorter])
def test_a_map_of_another_size_or_content_is_made_anew(tmp_path: Path, harm: object) -> None:
    info, content = an_object(SIZE)
    harm(keep(open_cache(tmp_path), info, content).with_suffix(".map"))  # type: ignore[operator]
    cache = open_cache(tmp_path)
    entry = acquire(cache, info)
    assert states(entry) == "----"
    entry.store(0, memoryview(content))
    assert read(entry, 0, SIZE) == content


def test_garbage_behind_a_right_header_is_no_valid_block(tmp_path: Path) -> None:
    damage = Damage()
    info, content = an_object(SIZE)
    path = keep(open_cache(tmp_path), info, content)
    with path.with_suffix(".map").open("r+b") as file:
        file.seek(64)
        file.write(os.urandom(64))
    entry = acquire(open_cache(tmp_path, damage=damage), info)
    assert read(entry, 0, SIZE) == b""
    assert entry.claim(0, SIZE).state == "missing"  # Leases expire.


@pytest.mark.parametrize("harm", [emptied, shorter])
def test_a_map_that_is_cut_while_it_is_used_ends_nothing(tmp_path: Path, harm: object) -> None:
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path)
    entry = acquire(cache, info)
    entry.store(0, memoryview(content))
    harm(entry.path.with_suffix(".map"))  # type: ignore[operator]
    try:
        got = read(entry, 0, SIZE)
    except OSError:
        got = b""  # The reader fetches it from the store.
    assert content.startswith(got)
    assert not has_whole(cache, info)


# --- leases -------------------------------------------------------------------------------------


def test_of_two_who_claim_one_gets_each_block(tmp_path: Path) -> None:
    info, _ = an_object(64 * B)
    entries = [acquire(open_cache(tmp_path), info) for _ in range(2)]
    mine: list[int] = []

    def claim(entry: cache_entry.CacheEntry) -> None:
        mine.extend(
            index for index in range(64) if entry.claim(index * B, index * B + B).state == "missing"
        )

    threads = [threading.Thread(target=claim, args=(entry,)) for entry in entries * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(mine) == list(range(64))


def test_a_failed_fetch_is_free_for_others_at_once(tmp_path: Path) -> None:
    info, _ = an_object(SIZE)
    one, other = (acquire(open_cache(tmp_path), info) for _ in range(2))
    assert one.claim(0, SIZE).state == "missing"
    assert other.claim(0, SIZE) == (0, SIZE, "leased")
    one.unclaim(0, 2 * B)
    assert other.claim(0, SIZE) == (0, 2 * B, "missing")
    assert other.claim(2 * B, SIZE) == (2 * B, SIZE, "leased")


def test_a_lease_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_entry, "LEASE_S", 0.05)
    info, _ = an_object(SIZE)
    one, other = (acquire(open_cache(tmp_path), info) for _ in range(2))
    one.claim(0, SIZE)
    wait_until(lambda: other.claim(0, SIZE).state == "missing", "the lease is over")


def test_a_clock_that_was_set_back_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, _ = an_object(SIZE)
    one, other = (acquire(open_cache(tmp_path), info) for _ in range(2))
    one.claim(0, SIZE)
    now_s = time.time()
    monkeypatch.setattr(cache_entry.time, "time", lambda: now_s - 3600)
    assert other.claim(0, SIZE).state == "missing"


# --- the whole file -------------------------------------------------------------------------------


def test_a_file_that_is_not_whole_is_not_given_out(tmp_path: Path) -> None:
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path)
    entry = acquire(cache, info)
    entry.store(0, memoryview(content)[: 3 * B])
    assert not has_whole(cache, info)
    entry.store(3 * B, memoryview(content)[3 * B :])
    assert has_whole(cache, info)
    assert has_whole(open_cache(tmp_path), info)


def test_a_file_that_was_touched_is_compared_first(tmp_path: Path) -> None:
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path)
    path = keep(cache, info, content)
    with path.open("r+b") as file:
        file.write(content[:1])  # The same byte: only the file's times change.
    assert not has_whole(cache, info)
    wait_until(lambda: has_whole(cache, info), "kept")


def test_an_altered_file_is_never_given_out(tmp_path: Path) -> None:
    damage = Damage()
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path, damage=damage)
    alter(keep(cache, info, content))
    assert not has_whole(cache, info)
    wait_until(lambda: damage.count, "damage is noticed")
    assert not has_whole(cache, info)
    keep(cache, info, content)  # the block that is missing
    assert not has_whole(cache, info)
    wait_until(lambda: has_whole(cache, info), "kept")


def test_what_is_altered_before_the_last_block_came_is_found(tmp_path: Path) -> None:
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path)
    entry = acquire(cache, info)
    entry.store(0, memoryview(content)[: 2 * B])
    time.sleep(0.02)  # a time stamp's grain
    alter(entry.path)
    entry.store(2 * B, memoryview(content)[2 * B :])
    assert entry.whole
    assert not has_whole(cache, info)


def test_after_a_restart_of_the_machine_files_are_compared_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, content = an_object(SIZE)
    half, half_content = an_object(SIZE, "half")
    cache = open_cache(tmp_path)
    lost = keep(cache, info, content)
    acquire(cache, half).store(0, memoryview(half_content)[: 2 * B])
    stamp = lost.stat()
    alter(lost)
    os.utime(lost, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    monkeypatch.setattr(cache_entry, "_boot_id", lambda: b"2ndstart")
    damage = Damage()
    cache = open_cache(tmp_path, damage=damage)
    assert not has_whole(cache, info)
    wait_until(lambda: damage.count, "damage is noticed")
    # Blocks from before and after do not add up to a sealed file.
    entry = acquire(cache, half)
    entry.store(2 * B, memoryview(half_content)[2 * B :])
    assert entry.whole
    assert not has_whole(cache, half)
    wait_until(lambda: has_whole(cache, half), "kept")
