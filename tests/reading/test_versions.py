"""An object that changes: an open file stays one version, and versions are never mixed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.units import MIB
from tests.reading.buckets import make_bucket, sidecar_behind
from tests.support.clouds import S3Cloud
from tests.support.faults import FaultProxy
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar

SIZE = 24 * MIB
CACHES = [Options(names_s=0.0), Options(names_s=0.0, cache="disk", cache_bytes=128 * MIB)]


def content(version: int, size: int = SIZE) -> bytes:
    unit = bytes([version]) + os.urandom(MIB)
    return (unit * (size // MIB + 1))[:size]


def drop_pages(file: int) -> None:
    """Drop the kernel's pages of a file, so that it is read from the store."""
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(file: int, expected: bytes) -> None:
    for offset in range(0, len(expected), MIB):
        assert os.pread(file, MIB, offset) == expected[offset : offset + MIB]


@pytest.fixture
def start(s3_server: S3Server, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Starts sidecars on one bucket, one after the other, with one state folder."""
    cloud = make_bucket(s3_server)
    with FaultProxy(s3_server.port) as proxy:

        def run(options: Options) -> tuple[Sidecar, S3Cloud, Path]:
            mount = tmp_path / "m"
            sidecar = sidecar_behind(proxy, cloud, tmp_path / "run", mount, options=options)
            return sidecar, cloud, mount

        yield run


Start = Callable[[Options], tuple[Sidecar, S3Cloud, Path]]


@pytest.mark.parametrize("options", CACHES, ids=["no cache", "cache"])
def test_a_changed_object_is_stale_under_an_open_handle_and_new_under_a_new_one(
    start: Start, options: Options
) -> None:
    sidecar, cloud, mount = start(options)
    old, new = content(1), content(2)
    cloud.write("key", old)
    with sidecar:
        handle = os.open(mount / "key", os.O_RDONLY)
        try:
            assert os.pread(handle, MIB, 0) == old[:MIB]
            cloud.write("key", new)
            drop_pages(handle)
            # Bytes fetched before may still be read, and must be the old version's.
            with pytest.raises(OSError, match="Stale") as caught:
                read_all(handle, old)
            assert caught.value.errno == errno.ESTALE
            assert (mount / "key").read_bytes() == new
            with pytest.raises(OSError, match="Stale"):
                os.pread(handle, MIB, SIZE - MIB)
        finally:
            os.close(handle)
        assert (mount / "key").read_bytes() == new


def test_a_handle_whose_version_is_whole_in_the_cache_goes_on_with_it(start: Start) -> None:
    sidecar, cloud, mount = start(CACHES[1])
    old, new = content(1), content(2)
    cloud.write("key", old)
    with sidecar:
        with (mount / "key").open("rb") as file:
            assert file.read() == old
            sidecar.wait_for(lambda: kept(sidecar) >= SIZE)
            cloud.write("key", new)
            drop_pages(file.fileno())
            file.seek(0)
            assert file.read() == old  # one version, all of it
        assert (mount / "key").read_bytes() == new


def kept(sidecar: Sidecar) -> int:
    """Bytes in the cache folder."""
    return sum(
        path.stat().st_blocks * 512 for path in sidecar.state.rglob("cache/*/*") if path.is_file()
    )


@pytest.mark.parametrize("same_size", [True, False])
def test_blocks_of_the_old_version_are_never_served_after_a_remount(
    start: Start, same_size: bool
) -> None:
    old, new = content(1), content(2, SIZE if same_size else SIZE - MIB)
    sidecar, cloud, mount = start(CACHES[1])
    cloud.write("key", old)
    with sidecar:
        assert (mount / "key").read_bytes() == old
        sidecar.wait_for(lambda: kept(sidecar) >= SIZE)
    cloud.write("key", new)
    sidecar, _, mount = start(CACHES[1])
    with sidecar:
        assert (mount / "key").read_bytes() == new
        assert sidecar.metric("mount_sidecar_passthrough_opens_total") == 0
    cloud.write("key", old)  # The same bytes have the same ETag, and so are the same version.
    sidecar, _, mount = start(CACHES[1])
    with sidecar:
        assert (mount / "key").read_bytes() == old
