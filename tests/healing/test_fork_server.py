"""The process that workers are forked from may end at any time, and nobody notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.healing.conftest import VOLUME, Bucket, Start
from tests.support.killer import kill_worker, serving_pid
from tests.support.sidecar import Sidecar
from tests.support.waiting import wait_until

CONTENT = b"content"


def fork_server_pid(sidecar: Sidecar) -> int:
    """Waits for it."""
    wait_until(lambda: sidecar.children_named("fork-server"), "a fork server")
    return sidecar.children_named("fork-server")[0]


def test_workers_are_children_of_process_1(bucket: Bucket, start: Start) -> None:
    sidecar = start(read_only=True)
    assert serving_pid(sidecar, VOLUME) in sidecar.children()


@pytest.mark.parametrize("order", ["before the worker", "after the worker", "with the worker"])
def test_its_death_is_not_noticed(
    bucket: Bucket, start: Start, mountpoint: Path, order: str
) -> None:
    bucket.put("file", CONTENT)
    sidecar = start()
    with (mountpoint / "file").open("rb", buffering=0) as file:
        for _ in range(5):
            worker = serving_pid(sidecar, VOLUME)
            if not sidecar.children_named("fork-server"):  # it ended after the last fork
                worker = kill_worker(sidecar, VOLUME)
            server = fork_server_pid(sidecar)
            if order == "before the worker":
                os.kill(server, signal.SIGKILL)
                wait_until(lambda: server not in sidecar.children(), "the fork server's end")  # noqa: B023
                os.kill(worker, signal.SIGKILL)
            elif order == "after the worker":
                os.kill(worker, signal.SIGKILL)
                os.kill(server, signal.SIGKILL)
            else:
                os.kill(sidecar.pid, signal.SIGSTOP)  # it hears of both at once
                os.kill(worker, signal.SIGKILL)
                os.kill(server, signal.SIGKILL)
                os.kill(sidecar.pid, signal.SIGCONT)
            serving_pid(sidecar, VOLUME, other_than=worker)
            assert os.pread(file.fileno(), len(CONTENT), 0) == CONTENT
        (mountpoint / "new").write_bytes(CONTENT)
    assert sidecar.volume_status(VOLUME)["healed"]["remount"] == 0
    assert bucket.keys() == ["file", "new"]


def test_a_fork_server_that_stands_still_delays_nothing_that_works(
    bucket: Bucket, start: Start, mountpoint: Path
) -> None:
    bucket.put("file", CONTENT)
    sidecar = start()
    server = fork_server_pid(sidecar)
    os.kill(server, signal.SIGSTOP)
    try:
        assert (mountpoint / "file").read_bytes() == CONTENT
        worker = serving_pid(sidecar, VOLUME)
        os.kill(worker, signal.SIGKILL)
    finally:
        os.kill(server, signal.SIGCONT)
    serving_pid(sidecar, VOLUME, other_than=worker)
    assert (mountpoint / "file").read_bytes() == CONTENT
    kill_worker(sidecar, VOLUME)


EARLY = """
import os, signal, time
from sidecar.mounter.system.processes import ChildEnded, Processes

processes = Processes()
child, far = processes.expect()
reader, writer = os.pipe()
middle = os.fork()
if middle == 0:
    orphan = os.fork()
    if orphan == 0:
        signal.pause()
    os.write(writer, str(orphan).encode())
    os._exit(0)
orphan = int(os.read(reader, 16))
os.kill(orphan, signal.SIGKILL)
if {reaped_first}:
    while os.path.exists(f"/proc/{{orphan}}"):  # events() reaps every orphan
        list(processes.events(time.monotonic() + 0.1))
processes.identify(child, orphan)
while child.running:
    for event in processes.events(time.monotonic() + 1):
        assert isinstance(event, ChildEnded) and event.child is child, event
assert child.ending.signal == signal.SIGKILL
"""


@pytest.mark.parametrize("reaped_first", [True, False])
def test_a_worker_that_ends_before_it_is_known_has_ended(reaped_first: bool) -> None:
    """In a process of its own, since process 1 takes the signals."""
    program = EARLY.format(reaped_first=reaped_first)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
