"""The folder: one budget for all processes, the order of eviction, failures of the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sidecar.mounter.cache import cache_entry
from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES as B
from sidecar.units import MIB
from tests.cache.folders import (
    acquire,
    an_object,
    disk_bytes,
    has_whole,
    keep,
    open_cache,
    read,
)
from tests.cache.user import ONE_SIZE
from tests.support.servers import REPOSITORY
from tests.support.waiting import wait_until

User = subprocess.Popen[str]


class Users:
    """Other processes."""

    def __init__(self) -> None:
        self._started: list[User] = []

    def start(self, what: str, folder: Path, budget: int, seed: int) -> User:
        """Start a process that waits for :meth:`go`."""
        command = [sys.executable, "-m", "tests.cache.user", what, str(folder)]
        user = subprocess.Popen(
            [*command, str(budget), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        self._started.append(user)
        assert user.stdout is not None
        assert user.stdout.readline() == "ready\n"
        return user

    def end(self) -> None:
        for user in self._started:
            user.kill()
            with user:
                pass


def go(user: User) -> None:
    assert user.stdin is not None
    user.stdin.write("\n")
    user.stdin.flush()


def said(user: User) -> str:
    assert user.stdout is not None
    return user.stdout.readline().strip()


@pytest.fixture
def users() -> Iterator[Users]:
    started = Users()
    yield started
    started.end()


# --- several processes --------------------------------------------------------------------------


@given(seeds=st.lists(st.integers(0, 10**6), min_size=3, max_size=3), blocks_=st.integers(4, 40))
@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.generate],  # Shrinking a race of processes takes minutes.
    suppress_health_check=[HealthCheck.too_slow],
)
def test_the_budget_holds_at_every_moment(
    tmp_path_factory: pytest.TempPathFactory, seeds: list[int], blocks_: int
) -> None:
    folder = tmp_path_factory.mktemp("shared")
    budget = blocks_ * B
    users = Users()
    try:
        running = [users.start("random", folder, budget, seed) for seed in seeds]
        for user in running:
            go(user)
        while any(user.poll() is None for user in running):
            assert snapshot(folder) <= budget
        assert [said(user) for user in running] == ["right"] * 3
    finally:
        users.end()
    cache = open_cache(folder, budget)
    assert 0 < cache.used_bytes <= budget


def test_what_is_accounted_is_what_the_disk_has(tmp_path: Path, users: Users) -> None:
    budget = 30 * B
    running = [users.start("random", tmp_path, budget, seed) for seed in range(2)]
    for user in running:
        go(user)
    assert [said(user) for user in running] == ["right"] * 2
    used = open_cache(tmp_path, budget).used_bytes  # counted anew
    assert used == disk_bytes(tmp_path)


def test_readers_of_one_object_fetch_it_once(tmp_path: Path, users: Users) -> None:
    running = [users.start("read", tmp_path, 64 * MIB, 1) for _ in range(3)]
    for user in running:
        go(user)
    assert sum(int(said(user)) for user in running) <= ONE_SIZE * 1.2


def test_a_fetcher_that_is_killed_holds_nobody_up_for_long(tmp_path: Path, users: Users) -> None:
    dead = users.start("claim", tmp_path, 64 * MIB, 1)
    go(dead)
    assert said(dead) == "claimed"
    info, _ = an_object(ONE_SIZE, "one1")
    entry = acquire(open_cache(tmp_path), info)
    assert entry.claim(0, ONE_SIZE).state == "leased"
    dead.kill()
    other = users.start("read", tmp_path, 64 * MIB, 1)
    go(other)
    assert int(said(other)) == ONE_SIZE


def snapshot(folder: Path) -> int:
    """The bytes on disk, under the lock that space is taken and freed with."""
    with (folder / "usage").open("rb") as usage:
        fcntl.flock(usage, fcntl.LOCK_SH)
        return disk_bytes(folder)


# --- eviction -------------------------------------------------------------------------------------


def age(path: Path, seconds: float) -> None:
    """Make an object's last use this long ago."""
    used_s = time.time() - seconds
    os.utime(path.with_suffix(".map"), (used_s, used_s))


def test_the_least_recently_used_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_entry, "USE_STAMP_S", 0.0)
    cache = open_cache(tmp_path, 10 * B)
    made = [an_object(2 * B, f"key{number}") for number in range(4)]
    for number, (info, content) in enumerate(made):
        age(keep(cache, info, content), 100 - number)
    cache.release(acquire(cache, made[0][0]))  # used again
    keep(cache, *an_object(2 * B, "new"))
    assert [has_whole(cache, info) for info, _ in made] == [True, False, True, True]


def test_what_is_in_use_stays_and_what_has_no_room_is_not_kept(tmp_path: Path) -> None:
    cache, other = open_cache(tmp_path, 10 * B), open_cache(tmp_path, 10 * B)
    info, content = an_object(8 * B, "in use")
    entry = acquire(cache, info)
    entry.store(0, memoryview(content))
    age(entry.path, 1000)
    for number in range(3):
        little, little_content = an_object(4 * B, f"key{number}")
        little_entry = other.acquire(little)
        assert little_entry is not None
        little_entry.store(0, memoryview(little_content))
        assert read(little_entry, 0, 4 * B) == b""
        assert little_entry.claim(0, 4 * B).state == "missing"  # no lease is left
        other.release(little_entry)
    assert read(entry, 0, 8 * B) == content
    cache.release(entry)
    keep(other, *an_object(4 * B, "key9"))
    assert has_whole(other, an_object(4 * B, "key9")[0])
    assert not entry.path.exists()


def test_a_copy_that_the_kernel_serves_stays(tmp_path: Path) -> None:
    cache, other = open_cache(tmp_path, 10 * B), open_cache(tmp_path, 10 * B)
    info, content = an_object(6 * B)
    path = keep(cache, info, content)
    copy = cache.open_whole(info)
    assert copy is not None
    keep(other, *an_object(6 * B, "another"))
    assert path.exists()
    copy.close()
    keep(other, *an_object(6 * B, "another"))
    assert not path.exists()


def test_an_object_evicted_by_another_process_is_entered_anew(tmp_path: Path) -> None:
    cache, other = open_cache(tmp_path, 10 * B), open_cache(tmp_path, 10 * B)
    info, content = an_object(6 * B)
    keep(cache, info, content)  # stays open in this one
    keep(other, *an_object(6 * B, "another"))
    assert not has_whole(cache, info)
    keep(cache, info, content)
    assert has_whole(other, info)


def test_an_object_larger_than_the_budget_is_left_out(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 4 * B)
    assert cache.acquire(an_object(5 * B)[0]) is None
    assert cache.acquire(an_object(0)[0]) is None


# --- restarts -------------------------------------------------------------------------------------


def test_a_used_folder_is_accounted_right_at_the_next_start(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    made = [an_object(B * 3 + 5, f"key{number}") for number in range(20)]
    for info, content in made:
        keep(cache, info, content)
    used = cache.used_bytes
    assert used == disk_bytes(tmp_path)
    (tmp_path / "usage").write_bytes(b"garbage!")
    again = open_cache(tmp_path)
    assert again.used_bytes == used
    assert all(has_whole(again, info) for info, _ in made)


def test_a_smaller_budget_makes_room_at_the_next_store(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 64 * MIB)
    for number in range(20):
        keep(cache, *an_object(4 * B, f"key{number}"))
    small = open_cache(tmp_path, 10 * B)
    keep(small, *an_object(4 * B, "new"))
    assert disk_bytes(tmp_path) <= 10 * B
    assert has_whole(small, an_object(4 * B, "new")[0])


def test_half_of_a_pair_of_files_is_no_leak(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 10 * B)
    for number in range(2):
        path = keep(cache, *an_object(4 * B, f"key{number}"))
        (path if number else path.with_suffix(".map")).unlink()
    again = open_cache(tmp_path, 10 * B)
    assert again.used_bytes == disk_bytes(tmp_path)
    keep(again, *an_object(9 * B, "large"))
    assert has_whole(again, an_object(9 * B, "large")[0])
    assert disk_bytes(tmp_path) <= 10 * B


# --- bad days -----------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_and_nothing_worse(tiny_disk: Path) -> None:
    cache = open_cache(tiny_disk, 64 * MIB)
    info, content = an_object(3 * MIB)
    entry = acquire(cache, info)
    entry.store(0, memoryview(content)[: 4 * B])
    with pytest.raises(OSError, match="No space"):
        entry.store(4 * B, memoryview(content)[4 * B :])
    assert read(entry, 0, 4 * B) == content[: 4 * B]
    assert cache.used_bytes == disk_bytes(tiny_disk)
    released: list[bool] = []
    entry.claim(4 * B, info.size_bytes)
    rest = memoryview(content)[4 * B :]
    cache.store_later(info, entry, 4 * B, rest, lambda: released.append(True))
    wait_until(lambda: released, "released")
    assert entry.claim(4 * B, info.size_bytes).state == "missing"


def test_without_a_thread_it_is_stored_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(tmp_path)
    info, content = an_object(4 * B)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    entry = acquire(cache, info)
    entry.claim(0, info.size_bytes)
    cache.store_later(info, entry, 0, memoryview(content), lambda: None)
    assert read(entry, 0, 4 * B) == content


def test_no_room_for_a_map(tiny_disk: Path) -> None:
    cache = open_cache(tiny_disk, 64 * MIB)
    (tiny_disk / "ballast").write_bytes(bytes(MIB - 8 * 4096))
    entered = [cache.acquire(an_object(B, f"key{number}")[0]) for number in range(20)]
    assert None in entered


def test_a_folder_deleted_under_a_running_process_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = open_cache(folder)
    info, content = an_object(4 * B)
    entry = acquire(cache, info)
    entry.store(0, memoryview(content)[: 2 * B])
    shutil.rmtree(folder)
    assert read(entry, 0, 2 * B) == content[: 2 * B]
    entry.store(0, memoryview(content))  # Stores nothing.
    cache.release(entry)
    assert not has_whole(cache, info)
    keep(cache, info, content)
    assert has_whole(cache, info)
    assert cache.used_bytes == disk_bytes(folder)
    assert open_cache(folder).used_bytes == disk_bytes(folder)


OBJECTS = 5000


def test_many_small_objects_leak_no_descriptor(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 8 * MIB)  # most are evicted again
    before = len(os.listdir("/proc/self/fd"))
    for number in range(OBJECTS):
        keep(cache, *an_object(1000, f"key{number}"))
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * 128
    assert disk_bytes(tmp_path) <= 8 * MIB
