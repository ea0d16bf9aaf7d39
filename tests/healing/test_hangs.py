"""A process that hangs is replaced like one that died; one that is only slow is left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from sidecar.units import MIB
from tests.healing.conftest import VOLUME, Bucket, Start
from tests.mount.buckets import Refusing, bucket_sidecar, make_cloud
from tests.support.cgroups import new_cgroup
from tests.support.killer import serving_pid
from tests.support.sidecar import Sidecar
from tests.support.waiting import wait_until

CONTENT = os.urandom(3 * MIB)
LONGER_THAN_A_HANG_S = 14.0
DEADLOCKS = """
# On a signal the main thread takes a lock that the others need, and never gives it back.
import gc
import os
import signal

def say():
    open(f"{os.path.dirname(__file__)}/{os.getpid()}.hangs", "x").close()

def hold(kind):
    for found in gc.get_objects():
        if type(found).__name__ == kind:
            (getattr(found, "_lock", None) or found.lock).acquire()
    say()

def names(number, frame):
    hold("InodeTable")

def buffers(number, frame):
    hold("BufferPool")

def interpreter(number, frame):
    import ctypes
    say()
    ctypes.PyDLL(None).pause()  # with the lock of the interpreter held

signal.signal(signal.SIGUSR1, names)
signal.signal(signal.SIGUSR2, buffers)
signal.signal(signal.SIGALRM, interpreter)
"""


def hung(sidecar: Sidecar, process: str) -> float:
    return sidecar.metric("mount_sidecar_hung_processes_total", process=process)


def reader_pids(worker: int) -> list[int]:
    """The worker's children: the notifying process first, then the readers."""
    text = Path(f"/proc/{worker}/task/{worker}/children").read_text()
    return [int(pid) for pid in text.split()]


Hang = Callable[[int], None]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def deadlock_over_names(pid: int) -> None:
    os.kill(pid, signal.SIGUSR1)


def deadlock_over_buffers(pid: int) -> None:
    os.kill(pid, signal.SIGUSR2)


def deadlock_of_the_interpreter(pid: int) -> None:
    os.kill(pid, signal.SIGALRM)


@pytest.mark.parametrize(
    ("who", "hang"),
    [
        pytest.param("worker", stop, id="stopped worker"),
        pytest.param("reader", stop, id="stopped reader"),
        pytest.param("notifier", stop, id="stopped notifier"),
        pytest.param("worker", deadlock_over_names, id="deadlock in the request loop"),
        pytest.param("worker", deadlock_of_the_interpreter, id="interpreter of the worker"),
        pytest.param("reader", deadlock_over_buffers, id="deadlock in a reader"),
        pytest.param("reader", deadlock_of_the_interpreter, id="interpreter of a reader"),
    ],
)
def test_programs_go_on(
    bucket: Bucket, start: Start, mountpoint: Path, tmp_path: Path, who: str, hang: Hang
) -> None:
    """They wait, and what was acknowledged is there."""
    (tmp_path / "sitecustomize.py").write_text(DEADLOCKS)
    for number in range(16):
        bucket.put(f"{number}/file", CONTENT)
    sidecar = start(environment={"PYTHONPATH": str(tmp_path)})
    worker = serving_pid(sidecar, VOLUME)
    with (mountpoint / "new").open("xb", buffering=0) as file, ThreadPoolExecutor(17) as threads:
        file.write(b"acknowledged")
        notifier, *readers = reader_pids(worker)
        pids = {"worker": [worker], "reader": readers, "notifier": [notifier]}[who]
        for pid in pids:
            hang(pid)
        if hang is not stop:
            said = [tmp_path / f"{pid}.hangs" for pid in pids]
            wait_until(lambda: all(file.exists() for file in said), "they hang")
        written = threads.submit(file.write, b" and more")
        reads = [threads.submit((mountpoint / f"{number}/file").read_bytes) for number in range(16)]
        try:
            serving_pid(sidecar, VOLUME, other_than=worker)
        except AssertionError:
            sidecar.kill()  # else the threads wait for ever
            pytest.fail(sidecar.log())
        assert written.result() == len(b" and more")
        assert all(read.result() == CONTENT for read in reads)
    assert (mountpoint / "new").read_bytes() == b"acknowledged and more"
    sidecar.wait_for(lambda: hung(sidecar, "worker") == 1)
    log = sidecar.log()
    assert log.count('msg="hangs and is killed"') == 1, log
    assert log.count('msg="worker lost"') == 1, log
    assert sidecar.volume_status(VOLUME)["healed"] == {"resend": 1, "remount": 0}
    assert sidecar.volume_status(VOLUME)["error"] is None
    assert sidecar.stop() == 0
    assert bucket.keys().count("new") == 1


@pytest.mark.parametrize("process", ["health", "fork-server"])
def test_those_that_serve_nobody_are_replaced_too(
    bucket: Bucket, start: Start, process: str
) -> None:
    sidecar = start(read_only=True)
    worker = serving_pid(sidecar, VOLUME)
    (stopped,) = sidecar.children_named(process)
    stop(stopped)
    if process == "fork-server":  # the next one is started when it is needed
        os.kill(worker, signal.SIGKILL)

    def is_replaced() -> bool:
        try:
            return hung(sidecar, process) == 1 and len(sidecar.children()) == 3
        except OSError:
            return False

    sidecar.wait_for(is_replaced)
    assert stopped not in sidecar.children()
    healed = int(process == "fork-server")
    sidecar.wait_for(lambda: sidecar.volume_status(VOLUME)["healed"]["resend"] == healed)


def test_a_suspicion_is_in_the_status(bucket: Bucket, start: Start) -> None:
    """Before the worker is killed: the pod's condition says it, too."""
    sidecar = start(read_only=True)
    stop(serving_pid(sidecar, VOLUME))

    def is_suspected() -> bool:
        error: dict[str, Any] | None = sidecar.volume_status(VOLUME)["error"]
        return error is not None and error["code"] == "SC1094"

    sidecar.wait_for(is_suspected)
    sidecar.wait_for(lambda: sidecar.volume_status(VOLUME)["error"] is None)
    sidecar.wait_for(lambda: sidecar.volume_status(VOLUME)["healed"]["resend"] == 1)


class Slow(Refusing):
    """An S3 server that answers nothing until a moment (monotonic)."""

    until_s = 0.0

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        self.refusal = None
        time.sleep(max(0.0, self.until_s - time.monotonic()))
        with contextlib.suppress(BrokenPipeError):  # asked again meanwhile
            super()._respond(handler)


def test_a_slow_store_is_no_hang(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = make_cloud(request, monkeypatch, "s3")
    store = Slow()
    settings: dict[str, Any] = {"secret": store.secret, "bucket": "bucket", "read_only": True}
    with store.server, bucket_sidecar(tmp_path, s3, **settings) as sidecar:
        store.until_s = time.monotonic() + LONGER_THAN_A_HANG_S
        assert (tmp_path / "m" / "file").read_bytes() == b"content"
        assert hung(sidecar, "worker") == 0
        assert sidecar.volume_status("train")["healed"] == {"resend": 0, "remount": 0}


def test_a_suspended_machine_is_no_hang(bucket: Bucket, start: Start, mountpoint: Path) -> None:
    """All processes stand still, as while a virtual machine or a container is paused."""
    bucket.put("file", CONTENT)
    sidecar = start(read_only=True)
    worker = serving_pid(sidecar, VOLUME)
    paused = sidecar.processes()
    with ThreadPoolExecutor(1) as threads:
        for pid in paused:
            os.kill(pid, signal.SIGSTOP)
        try:
            read = threads.submit((mountpoint / "file").read_bytes)
            time.sleep(LONGER_THAN_A_HANG_S)
        finally:
            os.kill(sidecar.pid, signal.SIGCONT)  # it sees the others stopped for a while
            time.sleep(1)
            for pid in paused:
                os.kill(pid, signal.SIGCONT)
        assert read.result() == CONTENT
    assert serving_pid(sidecar, VOLUME) == worker
    assert hung(sidecar, "worker") == hung(sidecar, "health") == hung(sidecar, "fork-server") == 0


def test_a_worker_without_processor_time_is_no_hang(
    bucket: Bucket, start: Start, mountpoint: Path
) -> None:
    bucket.put("file", CONTENT)
    sidecar = start(read_only=True)
    worker = serving_pid(sidecar, VOLUME)
    with new_cgroup("cpu") as group:
        for pid in (worker, *reader_pids(worker)):
            group.add(pid)
        group.limit(1)
        try:
            with ThreadPoolExecutor(1) as threads:
                read = threads.submit((mountpoint / "file").read_bytes)
                time.sleep(LONGER_THAN_A_HANG_S)
                group.limit(None)
                assert read.result() == CONTENT
            assert serving_pid(sidecar, VOLUME) == worker
            assert hung(sidecar, "worker") == 0
        finally:
            group.limit(None)
            sidecar.clean_up()  # then the group is empty
