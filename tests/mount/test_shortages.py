"""Process 1 lacks what it shares with others: processes, descriptors, room on a disk.

Nothing is unmounted for it, and what could not be done is done once there is room again.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.contract.pod import READY_FILE
from tests.mount.buckets import bucket_sidecar
from tests.support.cgroups import Cgroup, new_cgroup
from tests.support.clouds import Cloud
from tests.support.killer import serving_pid
from tests.support.sidecar import Sidecar
from tests.support.waiting import wait_until

VOLUME = "train"
CONTENT = b"content"
NO_RESOURCES = 'msg="lacks resources'
NOT_FORKED = "nothing can be forked; trying again"


@pytest.fixture
def pids() -> Iterator[Cgroup]:
    """A group whose processes share a limit of processes, as the containers of a pod do."""
    with new_cgroup("pids") as group:
        yield group


def health_pid(sidecar: Sidecar) -> int:
    """The process that serves /metrics."""
    return sidecar.children_named("health")[0]


def is_settled(pids: Cgroup) -> bool:
    """Whether nothing has ended that is still counted."""
    before = pids.tasks()
    time.sleep(0.5)
    return pids.tasks() == before


def answers(sidecar: Sidecar) -> bool:
    try:
        return sidecar.get("/livez")[0] == 200
    except OSError:
        return False


def shortages(sidecar: Sidecar) -> float:
    return sidecar.metric("mount_sidecar_supervisor_shortages_total")


@pytest.mark.parametrize("left", [0, 3])
def test_no_process_can_be_started(tmp_path: Path, s3: Cloud, pids: Cgroup, left: int) -> None:
    """Programs wait, and go on. Three are enough for a worker, but not for its reader processes."""
    s3.write("file", CONTENT)
    with bucket_sidecar(tmp_path, s3, prefix=pids.entering) as sidecar:
        worker = serving_pid(sidecar, VOLUME)
        with (
            (tmp_path / "m" / "new").open("xb", buffering=0) as file,
            ThreadPoolExecutor() as threads,
        ):
            file.write(CONTENT)
            os.kill(sidecar.pid, signal.SIGSTOP)
            try:
                os.kill(worker, signal.SIGKILL)
                os.kill(health_pid(sidecar), signal.SIGKILL)
                wait_until(lambda: is_settled(pids), "they are gone")
                pids.limit(pids.tasks() + left - 2)  # both are zombies, and will be reaped
                written = threads.submit(file.write, CONTENT)
                read = threads.submit((tmp_path / "m" / "file").read_bytes)
                os.kill(sidecar.pid, signal.SIGCONT)
                if left:
                    sidecar.wait_for(lambda: sidecar.log().count('msg="worker lost"') > 4)
                else:
                    sidecar.wait_for(lambda: NOT_FORKED in sidecar.log())
                assert sidecar.mounted() == [str(tmp_path / "m")] * 2, "the guard and the mount"
                assert not read.done()
            finally:
                os.kill(sidecar.pid, signal.SIGCONT)
                pids.limit(None)
            assert written.result() == len(CONTENT)
            assert read.result() == CONTENT
        assert (tmp_path / "m" / "new").read_bytes() == 2 * CONTENT
        sidecar.wait_for(lambda: answers(sidecar))
        assert left or shortages(sidecar) >= 1
        assert sidecar.volume_status(VOLUME)["healed"] == {"resend": 1, "remount": 0}
        assert "Traceback" not in sidecar.log()
        assert sidecar.stop() == 0
    assert s3.read("new") == 2 * CONTENT


def test_no_process_can_be_started_at_first(tmp_path: Path, s3: Cloud, pids: Cgroup) -> None:
    sidecar = bucket_sidecar(tmp_path, s3, prefix=pids.entering)
    pids.limit(2)  # the supervisor and one more: not even the worker's first child
    try:
        sidecar.start(wait=False)
        sidecar.wait_for(lambda: NOT_FORKED in sidecar.log())
        pids.limit(None)
        sidecar.wait_ready()
        assert sidecar.stop() == 0
    finally:
        pids.limit(None)
        sidecar.clean_up()


def test_no_descriptor_is_left(tmp_path: Path, s3: Cloud) -> None:
    """Programs wait, and go on."""
    s3.write("file", CONTENT)
    with bucket_sidecar(tmp_path, s3) as sidecar, ThreadPoolExecutor() as threads:
        worker, health = serving_pid(sidecar, VOLUME), health_pid(sidecar)
        limits = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
        assert limits[0] == limits[1]  # it takes what it may have
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            os.kill(health, signal.SIGKILL)
            sidecar.wait_for(lambda: NO_RESOURCES in sidecar.log())
            os.kill(worker, signal.SIGKILL)
            read = threads.submit((tmp_path / "m" / "file").read_bytes)
            sidecar.wait_for(lambda: 'what="start the worker of data/train"' in sidecar.log())
        finally:
            resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, limits)
        assert read.result() == CONTENT
        sidecar.wait_for(lambda: answers(sidecar))
        assert shortages(sidecar) >= 2
        serving_pid(sidecar, VOLUME, other_than=worker)
        assert sidecar.volume_status(VOLUME)["healed"] == {"resend": 1, "remount": 0}
        assert sidecar.stop() == 0


def test_the_end_without_descriptors(tmp_path: Path, s3: Cloud) -> None:
    """What cannot be unmounted at first is tried again, and there is no traceback."""
    with bucket_sidecar(tmp_path, s3) as sidecar:
        limits = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(sidecar.pid, signal.SIGTERM)
        sidecar.wait_for(lambda: 'what="unmount data/train"' in sidecar.log())
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, limits)
        assert sidecar.wait() == 0
        assert "Traceback" not in sidecar.log()
        assert sidecar.mounted() == []


def fill(path: Path) -> None:
    """Write to a file until its disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_below_the_status_file(tmp_path: Path, s3: Cloud) -> None:
    """A worker that dies meanwhile is replaced."""
    s3.write("file", CONTENT)
    state = tmp_path / "run" / "state"
    state.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=32M", "tmpfs", str(state)]
    subprocess.run(command, check=True)
    try:
        with bucket_sidecar(tmp_path, s3) as sidecar, ThreadPoolExecutor() as threads:
            worker = serving_pid(sidecar, VOLUME)
            with pytest.raises(OSError, match="No space left"):
                fill(state / "fill")
            try:
                os.kill(worker, signal.SIGKILL)
                read = threads.submit((tmp_path / "m" / "file").read_bytes)
                sidecar.wait_for(lambda: NO_RESOURCES in sidecar.log())
            finally:
                (state / "fill").unlink()
            assert read.result() == CONTENT
            serving_pid(sidecar, VOLUME, other_than=worker)
            sidecar.wait_for(lambda: sidecar.log().count('what="write the status"') == 2)
            assert shortages(sidecar) >= 1
            assert sidecar.volume_status(VOLUME)["healed"] == {"resend": 1, "remount": 0}
            assert sidecar.stop() == 0
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def test_a_full_disk_when_everything_is_ready(tmp_path: Path, s3: Cloud) -> None:
    """Others may have been told already: it is not given up, but told as soon as there is room."""
    sidecar = bucket_sidecar(tmp_path, s3)
    shared = sidecar.shared
    shared.mkdir(parents=True)
    # Room for the first status, which must be written, and for nothing else.
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(shared)]
    subprocess.run(command, check=True)
    try:
        sidecar.start(wait=False)
        sidecar.wait_for(lambda: 'what="tell that it is ready"' in sidecar.log())
        assert not (shared / ".sidecar" / "ready").exists()
        subprocess.run(["mount", "-o", "remount,size=1M", str(shared)], check=True)
        sidecar.wait_ready()
        sidecar.wait_for(lambda: "msg=ready" in sidecar.log())
        assert (sidecar.state / READY_FILE).exists()
        assert sidecar.stop() == 0
    finally:
        sidecar.clean_up()
        subprocess.run(["umount", "--lazy", str(shared)], check=True)
