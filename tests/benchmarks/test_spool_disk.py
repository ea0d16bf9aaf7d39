"""A disk for what mounts spool: it is counted, slowed down, and always removed."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import spool_disk
from benchmarks.failure import BenchFailure
from benchmarks.spool_disk import FREE_DISK, NODE_DISK
from sidecar.units import MIB
from tests.benchmarks.test_runs import LOOP

SIZE_BYTES = 256 * MIB
THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not LOOP.exists(), reason="needs root and loop devices"
)
throttled = pytest.mark.skipif(not THROTTLE.exists(), reason="needs cgroup v1")


def assert_removed(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["disk"]
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    listed = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True)
    assert str(folder) not in listed.stdout


def test_what_reaches_it_is_counted(tmp_path: Path) -> None:
    with spool_disk.spool_disk(tmp_path, SIZE_BYTES, FREE_DISK) as disk:
        before = disk.written_bytes()
        (disk.path / "file").write_bytes(os.urandom(5_000_000))
        os.sync()
        assert 5_000_000 <= disk.written_bytes() - before < 7_000_000
    assert_removed(tmp_path)


@throttled
def test_it_is_slow_and_no_longer_than_it_is_there(tmp_path: Path) -> None:
    with spool_disk.spool_disk(tmp_path, SIZE_BYTES, NODE_DISK) as disk:
        number = Path(f"/sys/block/{disk.device}/dev").read_text().strip()
        pages = Path(f"/sys/class/bdi/{number}")
        assert f"{number} {NODE_DISK.bytes_per_s}" in THROTTLE.read_text()
        assert (pages / "strict_limit").read_text().strip() == "1"
        # The kernel keeps it as a share of the memory that is free, and that changes.
        assert int((pages / "max_bytes").read_text()) < 2 * NODE_DISK.dirty_bytes
    assert number not in THROTTLE.read_text()
    assert (pages / "strict_limit").read_text().strip() == "0"
    assert_removed(tmp_path)


@throttled
def test_what_fails_halfway_is_removed(tmp_path: Path) -> None:
    impossible = replace(NODE_DISK, dirty_bytes=-1)
    with (
        pytest.raises(BenchFailure, match="slow disk"),
        spool_disk.spool_disk(tmp_path, SIZE_BYTES, impossible),
    ):
        pytest.fail("it was made")
    assert_removed(tmp_path)


def test_a_failure_of_who_uses_it_removes_it(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        spool_disk.spool_disk(tmp_path, SIZE_BYTES, FREE_DISK) as disk,
        (disk.path / "open").open("wb"),
    ):
        raise RuntimeError
    assert_removed(tmp_path)
