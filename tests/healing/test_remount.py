"""Healing on kernels that cannot resend (`healing: remount`), and the mountpoint's guard."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.mounter.system import mounts
from sidecar.units import MIB
from tests.healing.conftest import VOLUME, Bucket, Start, held_open
from tests.support.killer import serving_pid
from tests.support.mounted import mounts_at
from tests.support.waiting import wait_until

REMOUNT = Options(healing="remount")

DEAD = rf"\[Errno ({errno.ENOTCONN}|{errno.ECONNABORTED})\]"
"""Errors of a connection without a server (fs/fuse/dev.c)."""


def write_error(directory: Path) -> int | None:
    """The errno of creating a file in ``directory``; None on success."""
    try:
        os.close(os.open(directory / "lost", os.O_CREAT | os.O_WRONLY))
    except OSError as error:
        return error.errno
    return None


def test_a_new_mount_takes_the_place_of_a_dead_one(
    bucket: Bucket, start: Start, mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = os.urandom(4 * MIB)
    bucket.put("file", content)
    sidecar = start(options=REMOUNT, read_only=True)
    pid = serving_pid(sidecar, VOLUME)
    with held_open(mountpoint / "file") as old:
        began_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        serving_pid(sidecar, VOLUME, other_than=pid)
        assert (mountpoint / "file").read_bytes() == content
        healed_s = time.monotonic() - began_s
        with pytest.raises(OSError, match=DEAD):
            os.pread(old, 4096, len(content) - 4096)
    with capsys.disabled():
        print(f"\n    mounted anew {healed_s:.3f} s after the kill", end=" ")
    assert sidecar.volume_status(VOLUME)["healed"] == {"resend": 0, "remount": 1}
    assert '"remount": 1' in sidecar.get("/statusz")[1]
    name = "mount_sidecar_worker_restarts_total"
    assert sidecar.metric(name, volume=f"data/{VOLUME}", healed="remount") == 1
    assert sidecar.metric(name, volume=f"data/{VOLUME}", healed="resend") == 0
    assert "healed=remount" in sidecar.log()
    assert [mount.fstype for mount in mounts_at(str(mountpoint))] == [
        mounts.FSTYPE,
        mounts.FSTYPE,
    ]


def test_nothing_is_written_while_a_dead_mount_is_replaced(
    bucket: Bucket, start: Start, mountpoint: Path
) -> None:
    sidecar = start(options=REMOUNT)
    pid = serving_pid(sidecar, VOLUME)
    bucket.server.pause()  # A worker asks the store before it mounts again.
    try:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(mounts_at(str(mountpoint))) == 1, "the guard alone")
        assert write_error(mountpoint) == errno.ENOTCONN
        wait_until(lambda: sidecar.volume_status(VOLUME)["state"] != "serving", "it says so")
    finally:
        bucket.server.resume()
    serving_pid(sidecar, VOLUME, other_than=pid)
    assert write_error(mountpoint) is None
    (mountpoint / "lost").unlink()


def test_nothing_is_written_before_the_mount(
    bucket: Bucket, start: Start, mountpoint: Path
) -> None:
    mountpoint.mkdir()
    bucket.server.pause()
    try:
        sidecar = start(wait=False)
        wait_until(lambda: len(mounts_at(str(mountpoint))) == 1, "the guard")
        assert write_error(mountpoint) == errno.ENOTCONN
        with pytest.raises(OSError, match=DEAD):
            os.listdir(mountpoint)
    finally:
        bucket.server.resume()
    sidecar.wait_ready()
    assert write_error(mountpoint) is None
    (mountpoint / "lost").unlink()


def test_a_clean_end_leaves_a_directory_that_can_be_deleted(
    bucket: Bucket, start: Start, mountpoint: Path
) -> None:
    mountpoint.mkdir()
    sidecar = start()
    assert sidecar.stop() == 0
    assert mounts_at(str(mountpoint)) == []
    assert os.listdir(mountpoint) == []
    mountpoint.rmdir()


def test_a_second_start_clears_what_a_killed_one_left(
    bucket: Bucket, start: Start, mountpoint: Path
) -> None:
    bucket.put("file", b"content")
    mountpoint.mkdir()
    sidecar = start(read_only=True)
    sidecar.kill()
    left = [mount.fstype for mount in mounts_at(str(mountpoint))]
    assert left == [mounts.FSTYPE] * 2
    with pytest.raises(OSError, match=DEAD):
        os.listdir(mountpoint)
    readies = sidecar.log().count("msg=ready")  # Logged after the ready file is written.
    sidecar.start(wait=False)  # The first run's ready file still exists.
    sidecar.wait_for(lambda: sidecar.log().count("msg=ready") > readies)
    assert (mountpoint / "file").read_bytes() == b"content"
    assert len(mounts_at(str(mountpoint))) == 2
    assert sidecar.stop() == 0
    assert mounts_at(str(mountpoint)) == []
    mountpoint.rmdir()


def test_between_two_starts_every_call_says_that_nothing_is_there(
    bucket: Bucket, start: Start, mountpoint: Path
) -> None:
    """A directory without its bucket is neither empty nor forbidden: that would be an answer."""
    bucket.put("file", b"content")
    sidecar = start()
    found: list[object] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            for call in (os.listdir, os.stat, write_error):
                try:
                    found.append(call(mountpoint))
                except OSError as error:
                    found.append(error.errno)

    looking = threading.Thread(target=look)
    sidecar.kill()
    looking.start()
    bucket.server.pause()
    try:
        sidecar.start(wait=False)
        sidecar.wait_for(lambda: "cleared stale mounts" in sidecar.log())
        sidecar.wait_for(lambda: len(sidecar.children_named("worker")) == 1)
    finally:
        is_over.set()
        looking.join()
        bucket.server.resume()
    assert found
    assert [one for one in found if one != errno.ENOTCONN] == []
    sidecar.wait_for(lambda: sidecar.log().count("msg=ready") == 2)
    assert (mountpoint / "file").read_bytes() == b"content"
    assert len(mounts_at(str(mountpoint))) == 2
