"""A stopped worker, and one that runs out of memory."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.units import MIB
from tests.healing.conftest import VOLUME, Bucket, Start
from tests.support.killer import Stalls, serving_pid

LARGE_BYTES = 48 * MIB
THREADS = 16
FILE_BYTES = 3 * MIB


def read_whole(path: Path, stalls: Stalls, block_bytes: int = MIB) -> str:
    """Its digest, read in blocks."""
    digest = hashlib.sha256()
    with stalls.watch():
        file = path.open("rb", buffering=0)
    with file:
        while True:
            with stalls.watch():
                block = file.read(block_bytes)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def test_a_worker_that_is_stopped_for_a_moment_is_waited_for(
    bucket: Bucket, start: Start, mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is stopped for longer: test_hangs.py."""
    seconds = 2
    data = random.Random(1).randbytes(LARGE_BYTES)
    bucket.put("large", data)
    sidecar = start(read_only=True)
    pid = serving_pid(sidecar, VOLUME)
    stalls = Stalls()
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as threads:
            read = threads.submit(read_whole, mountpoint / "large", stalls)
            time.sleep(seconds)
            still_waiting = not read.done()
            os.kill(pid, signal.SIGCONT)
            assert read.result() == hashlib.sha256(data).hexdigest()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert still_waiting
    assert sidecar.volume_status(VOLUME)["healed"] == {"resend": 0, "remount": 0}
    with capsys.disabled():
        print(f"\n    stopped for {seconds} s, longest stall {stalls.longest_s:.3f} s", end=" ")


def _address_space_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGESIZE")


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("spare_mib", [0, 4, 24])
@pytest.mark.parametrize("who", ["worker", "readers"])
def test_a_worker_without_memory_is_replaced(
    bucket: Bucket, start: Start, mountpoint: Path, who: str, spare_mib: int
) -> None:
    """What fails depends on what is left: a buffer, a thread, any object."""
    # Each in its own directory, so that the worker waits for the store for each.
    contents = {f"{n}/file": random.Random(n).randbytes(FILE_BYTES) for n in range(THREADS)}
    for name, data in contents.items():
        bucket.put(name, data)
    sidecar = start(read_only=True)
    worker = serving_pid(sidecar, VOLUME)
    for pid in [worker] if who == "worker" else _children(worker):
        limit_bytes = _address_space_bytes(pid) + spare_mib * MIB
        resource.prlimit(pid, resource.RLIMIT_AS, (limit_bytes, resource.RLIM_INFINITY))
    with ThreadPoolExecutor(THREADS) as threads:
        digests = list(threads.map(lambda name: read_whole(mountpoint / name, Stalls()), contents))
    assert digests == [hashlib.sha256(data).hexdigest() for data in contents.values()]
    status = sidecar.volume_status(VOLUME)
    assert status["worker_pid"] != worker, sidecar.log()
    assert status["healed"]["resend"] >= 1
    assert status["healed"]["remount"] == 0
