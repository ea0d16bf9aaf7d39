"""Workers that die again and again: the supervisor stops resuming, but mounts again."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from sidecar.mounter.system.status import METRICS_DIRECTORY
from sidecar.units import MIB
from tests.healing.conftest import VOLUME, Bucket, Start, held_open
from tests.support.killer import serving_pid, while_dead
from tests.support.mounted import mounts_at
from tests.support.sidecar import Sidecar
from tests.support.waiting import wait_until

DEAD = rf"\[Errno ({errno.ENOTCONN}|{errno.ECONNABORTED})\]"
FAILED_RESUMES = 3
MANY_DEATHS = 25


def deaths(sidecar: Sidecar) -> int:
    return sidecar.log().count('msg="worker lost"')


def journal_path(sidecar: Sidecar) -> Path:
    return sidecar.state / f"data-{VOLUME}" / "journal"


@pytest.mark.parametrize("damage", ["garbage", "records", "gone"])
def test_a_useless_journal_ends_in_a_new_mount(
    bucket: Bucket, start: Start, mountpoint: Path, damage: str
) -> None:
    content = os.urandom(4 * MIB)
    bucket.put("file", content)
    sidecar = start(read_only=True)
    path = journal_path(sidecar)
    with held_open(mountpoint / "file") as old:
        with while_dead(sidecar, VOLUME):
            if damage == "gone":
                path.unlink()
            elif damage == "garbage":
                path.write_bytes(os.urandom(8192))
            else:  # a good header, and behind it nothing that can be read
                data = path.read_bytes()
                path.write_bytes(data[:16] + bytes(b ^ 0x55 for b in data[16:]))
        assert (mountpoint / "file").read_bytes() == content
        with pytest.raises(OSError, match=DEAD):
            os.pread(old, 4096, len(content) - 4096)
    assert sidecar.volume_status(VOLUME)["healed"] == {"resend": 0, "remount": 1}
    assert deaths(sidecar) == 1 + FAILED_RESUMES


def test_workers_that_die_at_once(bucket: Bucket, start: Start, mountpoint: Path) -> None:
    """Each worker finds a file where its metrics go; once it is gone, the mount comes back."""
    bucket.put("file", b"content")
    sidecar = start(read_only=True)
    pid = serving_pid(sidecar, VOLUME)
    metrics, aside = sidecar.state / METRICS_DIRECTORY, sidecar.state / "aside"
    metrics.rename(aside)
    metrics.write_bytes(b"")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: deaths(sidecar) > FAILED_RESUMES, "resuming fails")
    wait_until(lambda: len(mounts_at(str(mountpoint))) == 1, "the guard alone")
    with pytest.raises(OSError, match=rf"\[Errno {errno.ENOTCONN}\]"):
        (mountpoint / "lost").write_bytes(b"")
    wait_until(lambda: deaths(sidecar) >= MANY_DEATHS, f"{MANY_DEATHS} deaths")
    assert sidecar.volume_status(VOLUME)["state"] == "restarting"
    assert sidecar.get("/livez")[0] == 200
    metrics.unlink()
    aside.rename(metrics)
    wait_until(lambda: sidecar.volume_status(VOLUME)["state"] == "serving", "a mount")
    assert (mountpoint / "file").read_bytes() == b"content"
    assert sidecar.volume_status(VOLUME)["healed"] == {"resend": 0, "remount": 1}
    assert sidecar.stop() == 0
