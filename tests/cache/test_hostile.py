"""A folder in which somebody else plants things, and holds locks for ever."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.mounter.cache import file_locks
from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES as B
from sidecar.mounter.cache.cache_folder import occupied_bytes
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.store.interface import ObjectInfo
from tests.cache.folders import an_object, disk_bytes, files, has_whole, keep, open_cache, read
from tests.support import planted
from tests.support.servers import REPOSITORY
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)  # a wait without limit shows

SIZE = 3 * B + 1000


def paths_of(folder: Path, info: ObjectInfo) -> tuple[Path, Path]:
    """The paths of an object's data and map."""
    with_files = open_cache(folder)
    data = keep(with_files, info, bytes(info.size_bytes))
    for path in files(folder):
        path.unlink()
    return data, data.with_suffix(".map")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    (path / "file").write_bytes(b"what nobody may change" * 1000)
    (path / "file.map").write_bytes(b"nor this")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def content_of(outside: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(outside.iterdir())]


# --- what stands where files are made ---------------------------------------------------------


def of_a_wrong_size(path: Path, outside: Path) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 10 * B)


@pytest.mark.parametrize("plant", [*planted.NOT_OURS, of_a_wrong_size])
@pytest.mark.parametrize("which", ["data", "map", "both"])
def test_what_was_planted_is_replaced_and_the_object_cached(
    folder: Path, outside: Path, plant: planted.Plant, which: str
) -> None:
    info, content = an_object(SIZE)
    data, map_ = paths_of(folder, info)
    before = content_of(outside)
    for path in {"data": [data], "map": [map_], "both": [data, map_]}[which]:
        plant(path, outside / "file")
    cache = open_cache(folder)
    keep(cache, info, content)
    wait_until(lambda: has_whole(cache, info), "whole")
    entry = cache.acquire(info)
    assert entry is not None
    assert read(entry, 0, SIZE) == content
    cache.release(entry)
    for path in (data, map_):
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode)
        assert (status.st_uid, status.st_nlink) == (os.geteuid(), 1)
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert content_of(outside) == before


@pytest.mark.parametrize("suffix", ["", ".map"])
def test_a_directory_in_place_of_a_file_is_no_reason_to_fail(
    folder: Path, outside: Path, suffix: str
) -> None:
    info, _ = an_object(SIZE)
    data, _ = paths_of(folder, info)
    (data.with_name(data.name + suffix) / "inner").mkdir(parents=True)
    cache = open_cache(folder, 10 * B)
    assert cache.acquire(info) is None  # the store is asked
    other, other_content = an_object(9 * B, "another")
    keep(cache, other, other_content)
    keep(cache, *an_object(8 * B, "a third"))  # makes room, whatever cannot be deleted
    assert disk_bytes(folder) <= 10 * B


@pytest.mark.parametrize("plant", planted.NOT_OURS)
def test_the_counter_is_a_file_of_ours(folder: Path, outside: Path, plant: planted.Plant) -> None:
    folder.mkdir(mode=0o700)
    before = content_of(outside)
    plant(folder / "usage", outside / "file")
    info, content = an_object(SIZE)
    cache = open_cache(folder)
    keep(cache, info, content)
    assert has_whole(cache, info)
    assert cache.used_bytes == disk_bytes(folder)
    assert content_of(outside) == before


# --- the folder itself ------------------------------------------------------------------------


@pytest.mark.parametrize("above", [True, False])
def test_a_folder_behind_a_link_is_not_used(folder: Path, outside: Path, above: bool) -> None:
    folder.symlink_to(outside)
    with pytest.raises(OSError, match="symbolic link"):
        open_cache(folder / "below" if above else folder)
    assert sorted(os.listdir(outside)) == ["file", "file.map"]


def test_a_folder_of_somebody_else_is_not_used(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, planted.NOBODY, planted.NOBODY)
    with pytest.raises(OSError, match="belongs to user 65534"):
        open_cache(folder)


def test_a_folder_of_ours_is_closed_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o1777)  # as an emptyDir has it
    info, content = an_object(SIZE)
    data = keep(open_cache(folder), info, content)
    for path in (folder, data.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_folder_that_others_use_is_not_closed_to_them(folder: Path) -> None:
    """The node's /tmp, say: everybody else on the node lost it."""
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "somebody's").touch()
    with pytest.raises(OSError, match="others use it"):
        open_cache(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


def test_a_disk_of_its_own_is_a_cache_s(folder: Path) -> None:
    (folder / "lost+found").mkdir(parents=True)
    folder.chmod(0o755)  # as mkfs makes it
    info, content = an_object(SIZE)
    keep(open_cache(folder), info, content)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("full", [True, False])
def test_a_subfolder_that_is_a_link_is_neither_scanned_nor_emptied(
    folder: Path, outside: Path, full: bool
) -> None:
    """Eviction deletes: what a link led to was lost."""
    info, _ = an_object(SIZE)
    data, _ = paths_of(folder, info)
    data.parent.rmdir()
    data.parent.symlink_to(outside)
    (folder / "zz").symlink_to(outside)
    before = content_of(outside)
    cache = open_cache(folder, 4 * B if full else 64 * B)
    assert cache.used_bytes == 0
    assert occupied_bytes(folder) == 0
    for number in range(3):
        keep(cache, *an_object(3 * B, f"key{number}"))
    assert cache.acquire(info, create=False) is None
    assert cache.acquire(info) is None
    assert content_of(outside) == before


@pytest.mark.parametrize("change", ["owner", "mode", "link"])
def test_a_sealed_file_that_others_may_write_is_not_given_out(
    folder: Path, tmp_path: Path, change: str
) -> None:
    info, content = an_object(SIZE)
    cache = open_cache(folder)
    data = keep(cache, info, content)
    assert has_whole(cache, info)
    if change == "owner":
        os.chown(data, planted.NOBODY, planted.NOBODY)
    elif change == "mode":
        data.chmod(0o622)
    else:
        (tmp_path / "elsewhere").hardlink_to(data)
    for _ in range(3):
        assert not has_whole(cache, info)  # nor sealed anew
    # What is opened from now on is a file of ours again.
    again = open_cache(folder)

    def is_whole() -> bool:
        keep(again, info, content)  # what the comparison found missing meanwhile
        return has_whole(again, info)

    wait_until(is_whole, "whole")


# --- locks ------------------------------------------------------------------------------------

_HOLD = """
import fcntl, os, struct, sys
for path in sys.argv[2:]:
    descriptor = os.open(path, os.O_RDWR)
    if sys.argv[1] == "flock":
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    elif sys.argv[1] == "shared":
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    else:
        whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, whole)
print("held", flush=True)
sys.stdin.read()
"""


class Holders:
    """Processes that hold locks until the test ends."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def hold(self, how: str, *paths: Path) -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLD, how, *map(str, paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        self._started.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

    def end(self) -> None:
        for holder in self._started:
            holder.kill()
            with holder:
                pass
        self._started.clear()


@pytest.fixture
def holders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Holders]:
    monkeypatch.setattr(file_locks, "LOCK_S", 0.2)
    started = Holders()
    yield started
    started.end()


def use(cache: DiskCache, info: ObjectInfo, content: bytes) -> None:
    """As a reader does: what the cache cannot give or keep is an OSError, or nothing."""
    try:
        entry = cache.acquire(info)
        if entry is None:
            return
        try:
            if entry.claim(0, info.size_bytes).state == "missing":
                entry.store(0, memoryview(content))
        finally:
            cache.release(entry)
    except OSError:
        pass


@pytest.mark.parametrize("how", ["flock", "shared", "bytes"])
@pytest.mark.parametrize("which", ["usage", "data", "map"])
@pytest.mark.parametrize("opened", [True, False])
def test_a_lock_that_is_held_for_ever_holds_nobody_up(
    folder: Path, holders: Holders, how: str, which: str, opened: bool
) -> None:
    info, content = an_object(SIZE)
    cache = open_cache(folder)
    data = keep(cache, info, content[:B] + bytes(SIZE - B))
    if not opened:
        cache = open_cache(folder)
    held = {"usage": folder / "usage", "data": data, "map": data.with_suffix(".map")}[which]
    holders.hold(how, held)
    for _ in range(3):
        use(cache, info, content)
    for number in range(3):
        use(open_cache(folder), *an_object(SIZE, f"key{number}"))
    holders.end()
    other, other_content = an_object(SIZE, "once the lock is free")
    fresh = open_cache(folder)
    keep(fresh, other, other_content)
    assert has_whole(fresh, other)


def test_who_waited_in_vain_does_not_wait_again_at_once(folder: Path, holders: Holders) -> None:
    """Else each range of a file would be late."""
    info, _ = an_object(64 * B)
    cache = open_cache(folder)
    entry = cache.acquire(info)
    assert entry is not None
    holders.hold("bytes", entry.path.with_suffix(".map"))
    for number in range(64):
        with pytest.raises(OSError, match="lock"):
            entry.claim(number * B, number * B + B)
    cache.release(entry)
    assert read(entry, 0, B) == b""
