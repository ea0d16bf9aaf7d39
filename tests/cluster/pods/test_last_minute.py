"""An experiment with open files is ended: every file is in the bucket, or is named as not saved."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import minio
import pytest

from tests.cluster.pods.conftest import BUCKET, Run
from tests.support.cluster import Refused
from tests.support.cluster_pods import ClusterPod
from tests.support.stores_in_a_pod import Stores

MB = 1_000_000
FILES = 5
_MARGIN_S = 10.0
"""What the kubelet and the API server take, on a loaded machine."""

# Begins when it is told to. Its arguments: the way it ends, how many files, and the bytes of each.
WRITES = """
import os, signal, sys, time
way, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.chdir(os.environ["POLYAXON_RUN_OUTPUTS_PATH"])

def close_all(*_):
    for number, file in enumerate(files):
        try:
            file.close()
            print("saved", number, flush=True)
        except OSError as error:
            print("failed", number, error.strerror, flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, {
    "exits": lambda *_: os._exit(0),
    "closes": close_all,
    "ignores": signal.SIG_IGN,
    "hangs in close": signal.SIG_IGN,
}[way])
while not os.path.exists("/tmp/go"):
    time.sleep(0.1)
files = [open(str(number), "wb", buffering=0) for number in range(count)]
for number, file in enumerate(files):
    for _ in range(size // 1_000_000):
        file.write(bytes([number]) * 1_000_000)
print("dirty", flush=True)
if way == "hangs in close":
    close_all()
while True:
    time.sleep(1)
"""


class Ended(NamedTuple):
    """How the pod ended.

    Attributes:
        took_s: from the deletion until it was gone.
        message: the sidecar's last termination message.
        events: reason and message of each.
        whole: numbers of the files that are whole in the bucket.
        named: those that the message names.
    """

    took_s: float
    message: str
    events: list[tuple[str, str]]
    whole: set[int]
    named: set[int]


@pytest.fixture
def slow(stores: Stores) -> Iterator[Stores]:
    """The stores; a pace of S3 ends with the test."""
    try:
        yield stores
    finally:
        stores.s3.pace()


def _write(pod: ClusterPod, stores: Stores, rate: int) -> None:
    """Let it write, to a store that takes ``rate`` megabytes a second."""
    pod.wait_until_ready()
    stores.s3.pace(bytes_per_s=rate * MB)
    pod.execute("touch", "/tmp/go")
    pod.wait_for(lambda: "dirty" in pod.logs(), "it has written")


def _end(pod: ClusterPod, stores: Stores, place: str, size_bytes: int, *options: str) -> Ended:
    """Delete the pod, and look at it until it is gone."""
    began_s = time.monotonic()
    pod.kubectl("delete", "pod", pod.name, "--wait=false", *options)
    message = ""
    while not pod.is_gone:
        with contextlib.suppress(Refused):  # gone just now
            message = pod.termination_message() or message
        assert time.monotonic() - began_s < 240, pod.described()
    took_s = time.monotonic() - began_s
    print(f"gone after {took_s:.1f} s; the sidecar's termination message:\n{message}")
    events = pod.events()
    print("\n".join(f"{reason}: {text}" for reason, text in events))
    named = {int(number) for number in re.findall(rf"{place}/(\d+) \(", message)}
    whole = _whole(stores, place, size_bytes)
    print(f"whole in the bucket: {sorted(whole)}; named in the message: {sorted(named)}")
    return Ended(took_s, message, events, whole, named)


def _whole(stores: Stores, place: str, size_bytes: int) -> set[int]:
    whole = set()
    for number in range(FILES):
        try:
            found = stores.s3.client().stat_object(BUCKET, f"{place}/{number}")
        except minio.error.S3Error as error:
            print(f"{place}/{number}: {error.code}")
            continue
        if found.size == size_bytes:
            whole.add(number)
        else:
            print(f"{place}/{number}: {found.size} bytes of {size_bytes}")
    return whole


def _cases() -> Iterator[object]:
    for way in ("exits", "closes", "hangs in close"):
        yield pytest.param(way, 50, 20, True, id=f"{way}, 50 MB at 20 MB/s")
    for way in ("exits", "closes", "hangs in close", "ignores"):
        for rate in (3, 9, 30):
            name = f"{way}, 500 MB at {rate} MB/s"
            yield pytest.param(way, 500, rate, rate > 3, id=name, marks=pytest.mark.soak)


@pytest.mark.parametrize(("way", "megabytes", "rate", "all_saved"), list(_cases()))
@pytest.mark.timeout(400)
def test_what_is_not_saved_is_told(
    run: Run, slow: Stores, way: str, megabytes: int, rate: int, all_saved: bool
) -> None:
    """All is saved where the line is fast enough, and nothing outlives the grace period."""
    size_bytes = megabytes // FILES * MB
    name = f"last-{way.replace(' ', '-')}-{megabytes}-{rate}"
    command = ["python3", "-c", WRITES, way, str(FILES), str(size_bytes)]
    pod = run(name, command, outputs="s3", run=name, grace_s=30)
    _write(pod, slow, rate)
    given_s = pod.get()["spec"]["terminationGracePeriodSeconds"]
    ended = _end(pod, slow, name, size_bytes)
    assert ended.took_s < given_s + _MARGIN_S
    every = set(range(FILES))
    assert ended.whole | ended.named == every, "none is lost without a word"
    if all_saved:
        assert ended.whole == every
        assert "NotSaved" not in dict(ended.events)
    else:
        assert f"; {size_bytes} bytes)" in ended.message
        assert "NotSaved" in dict(ended.events)


def test_who_ignores_sigterm_has_its_own_grace_period_and_no_more(run: Run, slow: Stores) -> None:
    """The node's janitor ends it, as a kubelet would without the sidecar; then all is saved."""
    size_bytes = 10 * MB
    command = ["python3", "-c", WRITES, "ignores", str(FILES), str(size_bytes)]
    pod = run("ignores", command, outputs="s3", run="ignores", grace_s=5)
    _write(pod, slow, 10)
    given_s = pod.get()["spec"]["terminationGracePeriodSeconds"]
    assert given_s == 5 + 60
    ended = _end(pod, slow, "ignores", size_bytes)
    assert 5 <= ended.took_s < given_s / 2
    assert ended.whole == set(range(FILES))
    assert "NotSaved" not in dict(ended.events)


def test_a_grace_period_that_was_shortened(run: Run, slow: Stores) -> None:
    """The API says so: what cannot be saved any more is told before the kubelet kills."""
    size_bytes = 10 * MB
    command = ["python3", "-c", WRITES, "ignores", str(FILES), str(size_bytes)]
    pod = run("shortened", command, outputs="s3", run="shortened", grace_s=60)
    _write(pod, slow, 1)
    ended = _end(pod, slow, "shortened", size_bytes, "--grace-period=5")
    assert ended.took_s < 5 + _MARGIN_S
    assert ended.whole | ended.named == set(range(FILES))
    lost, told = ended.named - ended.whole, dict(ended.events)["NotSaved"]
    assert lost
    assert all(f"shortened/{n} ({size_bytes} bytes)" in told for n in lost)


def test_a_drain_waits_for_what_is_written(run: Run, slow: Stores) -> None:
    size_bytes = 10 * MB
    command = ["python3", "-c", WRITES, "exits", str(FILES), str(size_bytes)]
    pod = run("drained", command, outputs="s3", run="drained", grace_s=20)
    _write(pod, slow, 10)
    node = pod.get()["spec"]["nodeName"]
    pod.kubectl("label", "pod", pod.name, "drain=this")
    try:
        options = "--pod-selector=drain=this", "--delete-emptydir-data", "--force"
        pod.cluster.kubectl("drain", node, *options, "--timeout=100s")
    finally:
        pod.cluster.kubectl("uncordon", node)
    assert pod.is_gone
    assert _whole(slow, "drained", size_bytes) == set(range(FILES)), pod.events()
