"""Small objects in the disk cache: what was stored comes back whole, or nothing does."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.mounter.cache.cache_folder import USE_STAMP_S
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import MIB
from tests.cache.folders import Damage, an_object, disk_bytes, files, keep, open_cache
from tests.support import planted

SIZE = 110_000


def found(cache: DiskCache, info: ObjectInfo, start: int = 0, size: int | None = None) -> bytes:
    """A range of the object, or nothing."""
    buffer = memoryview(bytearray(info.size_bytes if size is None else size))
    return bytes(buffer) if cache.read_small(info, start, buffer) else b""


def kept(cache: DiskCache, info: ObjectInfo, content: bytes) -> Path:
    """Store an object; its file."""
    before = set(files(cache_folder(cache)))
    cache.store_small(info, memoryview(content))
    (made,) = set(files(cache_folder(cache))) - before
    return made


def cache_folder(cache: DiskCache) -> Path:
    return cache._directory


@pytest.mark.parametrize("size", [1, 4079, 4080, 4081, SIZE, MIB])
def test_every_size_comes_back_whole_and_in_parts(tmp_path: Path, size: int) -> None:
    info, content = an_object(size)
    cache = open_cache(tmp_path)
    assert found(cache, info) == b""
    cache.store_small(info, memoryview(content))
    for reader in (cache, open_cache(tmp_path)):
        assert found(reader, info) == content
        assert found(reader, info, size // 3, size // 2) == content[size // 3 :][: size // 2]
    assert open_cache(tmp_path).used_bytes == disk_bytes(tmp_path)


def test_another_version_is_another_object(tmp_path: Path) -> None:
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path)
    cache.store_small(info, memoryview(content))
    assert found(cache, info._replace(version="2")) == b""
    assert found(cache, info._replace(key="other")) == b""


def test_what_is_stored_twice_is_counted_once(tmp_path: Path) -> None:
    info, content = an_object(SIZE)
    caches = [open_cache(tmp_path) for _ in range(2)]
    for cache in caches * 3:
        cache.store_small(info, memoryview(content))
    for cache in caches:
        cache.close()
    counted = int.from_bytes((tmp_path / "usage").read_bytes(), "little")
    assert counted == disk_bytes(tmp_path)


# --- damage -----------------------------------------------------------------------------------


def hole(path: Path) -> None:
    """A page that a crash lost."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))


def altered(path: Path) -> None:
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))


def without_end(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(SIZE)
        file.write(bytes(16))


@pytest.mark.parametrize("harm", [hole, altered, without_end])
def test_what_was_torn_or_altered_is_fetched_again(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    damage = Damage()
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path, damage=damage)
    path = kept(cache, info, content)
    harm(path)
    assert found(cache, info, 10, 20) == b""
    assert damage.count == 1
    assert not path.exists()
    assert found(cache, info) == b""
    assert damage.count == 1
    cache.store_small(info, memoryview(content))
    assert found(cache, info) == content


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    """As a writer that was killed leaves it."""
    os.truncate(path, 5000)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(100))


@pytest.mark.parametrize("harm", [emptied, cut, longer])
def test_a_file_that_is_not_whole_is_written_anew(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    info, content = an_object(SIZE)
    cache = open_cache(tmp_path)
    harm(kept(cache, info, content))
    assert found(cache, info) == b""
    cache.store_small(info, memoryview(content))
    assert found(cache, info) == content


# --- who shares it ----------------------------------------------------------------------------


def test_readers_and_writers_of_one_object_at_once(tmp_path: Path) -> None:
    info, content = an_object(MIB)
    wrong: list[bytes] = []

    def use() -> None:
        cache = open_cache(tmp_path)
        for _ in range(40):
            got = found(cache, info)
            if got not in (b"", content):
                wrong.append(got)
            cache.store_small(info, memoryview(content))
            for path in files(tmp_path):  # as eviction does
                path.unlink(missing_ok=True)
        cache.close()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 8 * MIB)
    made = [an_object(MIB - 5000, f"key{number}") for number in range(7)]
    now_s = time.time()
    for number, (info, content) in enumerate(made):
        path = kept(cache, info, content)
        used_s = now_s - 100 * USE_STAMP_S + number
        os.utime(path, (used_s, used_s))
    assert found(cache, made[0][0])  # used again
    cache.store_small(*_content(an_object(MIB, "new")))
    assert [bool(found(cache, info)) for info, _ in made] == [True, False, *[True] * 5]
    assert disk_bytes(tmp_path) <= 8 * MIB


def _content(made: tuple[ObjectInfo, bytes]) -> tuple[ObjectInfo, memoryview]:
    return made[0], memoryview(made[1])


def test_large_and_small_objects_make_room_for_each_other(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 8 * MIB)
    for number in range(30):
        cache.store_small(*_content(an_object(SIZE * 3, f"small{number}")))
    keep(cache, *an_object(7 * MIB, "large"))
    assert disk_bytes(tmp_path) <= 8 * MIB
    for number in range(30):
        cache.store_small(*_content(an_object(SIZE * 3, f"small{number}")))
    assert disk_bytes(tmp_path) <= 8 * MIB
    assert found(cache, an_object(SIZE * 3, "small29")[0])


def test_an_object_larger_than_the_budget_is_left_out(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, MIB)
    cache.store_small(*_content(an_object(MIB)))
    assert disk_bytes(tmp_path) == 0


def test_many_leak_no_descriptor(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 8 * MIB)  # most are evicted again
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3000):
        info, content = an_object(5000, f"key{number}")
        cache.store_small(info, memoryview(content))
        assert found(cache, info) == content
    assert len(os.listdir("/proc/self/fd")) - before <= 16
    assert disk_bytes(tmp_path) <= 8 * MIB
    cache.close()
    assert len(os.listdir("/proc/self/fd")) <= before


# --- bad days ---------------------------------------------------------------------------------


def test_a_full_disk_leaves_no_half_of_a_file(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(tiny_disk, 64 * MIB)
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(MIB - 40 * 4096))
    info, content = an_object(50 * 4096)
    cache.store_small(info, memoryview(content))
    assert "No space left" in caplog.text
    assert not list(files(tiny_disk))
    ballast.unlink()
    cache.store_small(info, memoryview(content))
    assert found(cache, info) == content


def test_a_folder_deleted_under_a_running_process_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = open_cache(folder)
    made = [an_object(SIZE, f"key{number}") for number in range(40)]  # in each subfolder
    for info, content in made:
        cache.store_small(info, memoryview(content))
    shutil.rmtree(folder)
    assert not any(found(cache, info) for info, _ in made)
    for info, content in made:
        cache.store_small(info, memoryview(content))
        assert found(cache, info) == content
    assert open_cache(folder).used_bytes == disk_bytes(folder)


@pytest.mark.timeout(300)  # a wait without limit shows
@pytest.mark.parametrize("plant", planted.NOT_OURS)
def test_what_was_planted_is_replaced(tmp_path: Path, plant: planted.Plant) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"what nobody may change" * 1000)
    info, content = an_object(SIZE)
    path = kept(open_cache(tmp_path / "cache"), info, content)
    for read_first in (True, False):
        path.unlink()
        plant(path, outside)
        cache = open_cache(tmp_path / "cache")
        if read_first:
            assert found(cache, info) == b""
        cache.store_small(info, memoryview(content))
        assert found(cache, info) == content
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode)
        assert (status.st_uid, status.st_nlink) == (os.geteuid(), 1)
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert outside.read_bytes() == b"what nobody may change" * 1000


def test_a_subfolder_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    info, content = an_object(SIZE)
    path = kept(open_cache(tmp_path / "cache"), info, content)
    shutil.rmtree(path.parent)
    path.parent.symlink_to(outside)
    cache = open_cache(tmp_path / "cache")
    cache.store_small(info, memoryview(content))
    assert found(cache, info) == b""
    assert not os.listdir(outside)
