"""After ESTALE the next open sees the store's current version, although names live a minute."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.contract.options import Options, TransportName
from sidecar.units import MIB
from tests.mount.buckets import bucket_sidecar
from tests.support.clouds import Cloud
from tests.support.sidecar import Sidecar

SIZES = {"small": 10_000, "large": 24 * MIB}
SHORTER, LONGER = -5_000, 5_000


class Mounted(NamedTuple):
    """A read-only mount of a bucket with the files of SIZES in ``folder``."""

    cloud: Cloud
    sidecar: Sidecar
    folder: Path


@pytest.fixture(params=["none", "disk"])
def mounted(
    tmp_path: Path, s3: Cloud, transport: TransportName, request: pytest.FixtureRequest
) -> Iterator[Mounted]:
    for name, size_bytes in SIZES.items():
        s3.write(f"folder/{name}", b"o" * size_bytes)
    options = Options(cache=request.param, transport=transport)
    with bucket_sidecar(tmp_path, s3, read_only=True, options=options) as sidecar:
        folder = tmp_path / "m/folder"
        # Everything is cached for a minute.
        assert {entry.name for entry in os.scandir(folder) if entry.stat().st_size} == set(SIZES)
        yield Mounted(s3, sidecar, folder)
        assert sidecar.stop() == 0
    assert "Traceback" not in sidecar.log()


def read_until_stale(descriptor: int, size_bytes: int) -> None:
    """Read without the kernel's pages: the old version's bytes, and then ESTALE."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read() -> None:
        for offset in range(0, size_bytes, 4096):
            assert set(os.pread(descriptor, 4096, offset)) <= {ord("o")}

    with pytest.raises(OSError, match=rf"^\[Errno {errno.ESTALE}\] "):
        read()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("change", [SHORTER, LONGER])
def test_the_next_open_is_of_the_new_version(mounted: Mounted, name: str, change: int) -> None:
    path, size_bytes = mounted.folder / name, SIZES[name]
    with path.open("rb", buffering=0) as file:
        mounted.cloud.write(f"folder/{name}", b"n" * (size_bytes + change))
        read_until_stale(file.fileno(), size_bytes)
        with path.open("rb", buffering=0) as again:
            assert os.fstat(again.fileno()).st_size == size_bytes + change
            assert again.readall() == b"n" * (size_bytes + change)
        assert path.stat().st_size == size_bytes + change
        if mounted.sidecar.spec.volumes[0].options.transport == "kernel":  # see T1 of SEMANTICS.md
            read_until_stale(file.fileno(), size_bytes)
    assert sorted(os.listdir(mounted.folder)) == sorted(SIZES)
    other = next(iter(SIZES.keys() - {name}))
    assert (mounted.folder / other).read_bytes() == b"o" * SIZES[other]


@pytest.mark.parametrize("name", SIZES)
def test_the_next_open_of_what_was_deleted_finds_nothing(mounted: Mounted, name: str) -> None:
    path = mounted.folder / name
    with path.open("rb", buffering=0) as file:
        mounted.cloud.delete(f"folder/{name}")
        read_until_stale(file.fileno(), SIZES[name])
        with pytest.raises(FileNotFoundError):
            os.close(os.open(path, os.O_RDONLY))
        with pytest.raises(FileNotFoundError):
            path.stat()
