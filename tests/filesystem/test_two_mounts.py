"""Two mounts of one bucket: what one changes, and what the other sees of it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.mounter.system import mounts
from sidecar.units import MIB
from tests.conformance import places

LIFETIME_S = 0.05


@pytest.fixture(params=["kernel", "libfuse"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(a mount of the transport, another mount of the same store)."""
    twin = tmp_path / "twin"
    twin.mkdir()
    options = ["--twin", str(twin), "--ttl", str(LIFETIME_S)]
    try:
        with places.mounted(
            request.param, tmp_path / "root", read_only=False, options=options
        ) as root:
            yield root, twin
    finally:
        mounts.clear(str(twin))


def outlive() -> None:
    """Wait until all caches have expired; libfuse adds its lifetime to ours."""
    time.sleep(2.5 * LIFETIME_S)


def read_or_stale(fd: int, offset: int) -> bytes:
    """A MiB of the file at ``offset``; empty on ESTALE."""
    try:
        return os.pread(fd, MIB, offset)
    except OSError as error:
        if error.errno == errno.ESTALE:
            return b""
        raise


def test_what_one_changes_the_other_sees(pair: tuple[Path, Path]) -> None:
    for here, there in (pair, pair[::-1]):
        (here / "file").write_text("content")
        (here / "inner").mkdir()
        outlive()
        assert sorted(os.listdir(there)) == ["file", "inner"]
        assert (there / "file").read_text() == "content"
        (here / "file").write_text("longer content")
        (here / "file").rename(here / "renamed")
        (here / "inner").rmdir()
        outlive()
        assert os.listdir(there) == ["renamed"]
        assert (there / "renamed").stat().st_size == 14
        assert (there / "renamed").read_text() == "longer content"
        (here / "renamed").unlink()
        outlive()
        assert os.listdir(there) == []


def test_an_old_handle_beside_a_new_one(
    pair: tuple[Path, Path], request: pytest.FixtureRequest
) -> None:
    here, there = pair
    old, new = b"o" * 8 * MIB, b"n" * 8 * MIB
    (there / "file").write_bytes(old)
    fd = os.open(here / "file", os.O_RDONLY)
    try:
        assert os.pread(fd, 100, 0) == old[:100]
        (there / "file").write_bytes(new)
        outlive()
        assert (here / "file").read_bytes() == new
        seen = set()
        for offset in range(0, len(old), MIB):
            seen |= set(read_or_stale(fd, offset))
    finally:
        os.close(fd)
    if request.node.callspec.params["pair"] == "kernel":
        assert seen <= set(b"o")
    else:
        assert seen & set(b"n")  # SEMANTICS.md, T1
