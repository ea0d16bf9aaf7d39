"""Process 1 does not grow, however many workers it replaces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.mounter.system.channel import Channel
from sidecar.units import MIB
from tests.healing.conftest import VOLUME, Bucket, Start
from tests.support.killer import kill_worker
from tests.support.waiting import wait_until

WARM_UP_RESTARTS = 10
GROWTH_BYTES = 2 * MIB


class Footprint(NamedTuple):
    """Resources of a process."""

    resident_bytes: int
    descriptors: int
    children: int
    zombies: int
    state_files: int


def footprint(pid: int, state: Path) -> Footprint:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    states = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2] for child in children]
    return Footprint(
        pages * os.sysconf("SC_PAGESIZE"),
        len(os.listdir(f"/proc/{pid}/fd")),
        len(children),
        sum(status.split()[0] == "Z" for status in states),
        sum(len(files) for _, _, files in os.walk(state)),
    )


@pytest.mark.parametrize(
    "restarts",
    [pytest.param(30, id="short"), pytest.param(500, id="soak", marks=pytest.mark.soak)],
)
def test_restarts_leave_nothing_in_the_supervisor(
    bucket: Bucket,
    start: Start,
    mountpoint: Path,
    restarts: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket.put("file", b"content")
    sidecar = start(read_only=True)

    def settled() -> Footprint:
        # The health process, the fork server and the worker.
        wait_until(lambda: len(sidecar.children()) == 3, "three children")
        return footprint(sidecar.pid, sidecar.state)

    with (mountpoint / "file").open("rb", buffering=0) as file:
        for _ in range(WARM_UP_RESTARTS):
            kill_worker(sidecar, VOLUME)
        first = settled()
        for _ in range(restarts):
            kill_worker(sidecar, VOLUME)
            assert os.pread(file.fileno(), 7, 0) == b"content"
        # While a child is being started there is one more descriptor.
        wait_until(lambda: settled()[1:] == first[1:], f"{first} again")
        last = settled()
    with capsys.disabled():
        print(f"\n    {restarts} restarts: {first} -> {last}", end=" ")
    assert last.resident_bytes - first.resident_bytes < GROWTH_BYTES
    assert last.zombies == 0
    healed = sidecar.volume_status(VOLUME)["healed"]
    assert healed == {"resend": WARM_UP_RESTARTS + restarts, "remount": 0}


def test_a_dead_workers_channel_is_not_waited_for() -> None:
    """Another process may hold the other end: a child of the worker that cannot end yet."""
    near, far = Channel.pair()
    with far:
        other = Channel(far.dup())
        other.send({"event": "said before"}, (far.fileno(),))
        other.close()
        message = near.receive(wait=False)
        assert message is not None
        assert message[0] == {"event": "said before"}
        for descriptor in message[1]:
            os.close(descriptor)
        assert near.receive(wait=False) is None
    near.close()


LAST_WORDS = """
import os, time
from sidecar.mounter.system.channel import Channel
from sidecar.mounter.system.processes import Processes

def two_words(far):
    for word in ("probing", "passed"):
        Channel(far).send({"event": word})

processes = Processes()
child = processes._fork(lambda far: two_words(far) or 0)
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
events = processes.events(time.monotonic() + 10)
assert next(events).message["event"] == "probing"
assert next(events).message["event"] == "passed"
# Whoever hears this gives up, as at a volume that cannot be mounted.
processes.end([child])
assert not child.running
"""


def test_last_words_may_be_the_last_that_anybody_listens_to() -> None:
    """In a separate process, because it installs signal handlers."""
    done = subprocess.run(
        [sys.executable, "-c", LAST_WORDS], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


CHECK = """
import os, time
from sidecar.mounter.system.processes import ChildEnded, Processes

reader, writer = os.pipe()  # as the connections that process 1 holds

def look() -> None:
    held = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{name}")}
    os._exit(1 if pipe in held else 0)

pipe = os.readlink(f"/proc/self/fd/{writer}")
processes = Processes()
child = processes.run(look)
while child.running:
    for event in processes.events(time.monotonic() + 10):
        pass
assert child.ending.exit_status == 0, "it holds what process 1 holds"
"""


def test_a_check_does_not_hold_the_connections_of_mounts() -> None:
    """A check that waits on a mount must not hold that mount's connection, or it waits forever."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
