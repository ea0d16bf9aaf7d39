"""The sidecar's container is killed while its experiment writes: no half file, no upload left."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator

import pytest

from tests.cluster.pods.conftest import BUCKET, Run, cloud
from tests.cluster.pods.test_caches import metric
from tests.cluster.pods.test_sub_path import DEAD, kill_sidecar
from tests.support.cluster_pods import ClusterPod
from tests.support.node import Nodes
from tests.support.stores_in_a_pod import Stores

MB = 1_000_000
BEFORE, AFTER = 30, 100
"""Megabytes of each file: written before the store is slow, and then."""

# What it prints: a word, or what became of the files that it had open, and of their directory.
WRITES = """
import json, os, sys, time
before, after = map(int, sys.argv[1:])
path = os.environ["POLYAXON_RUN_OUTPUTS_PATH"] + "/"

def write(file, first, count):
    for number in range(first, first + count):
        file.write(bytes([number]) * 1_000_000)

def make(name, first, count):
    with open(path + name, "wb", buffering=0) as file:
        write(file, first, count)

make("closed", 0, before)
make("replaced", 1, before)
print("closed", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.1)
files = [open(path + name, "wb", buffering=0) for name in ("streamed", "replaced")]
for file in files:
    write(file, 2, after)
print("written", flush=True)

seen = set()
while True:
    try:
        os.stat(path)  # which asks no store, that is slow
        if seen:
            break
    except OSError as error:
        seen.add(error.strerror)
    time.sleep(0.05)
open_files = set()
for file in files:
    for call in (lambda: file.write(b"more"), lambda: os.fsync(file.fileno())):
        try:
            call()
            open_files.add("worked")
        except OSError as error:
            open_files.add(error.strerror)
make("later", 3, before)
with open(path + "closed", "rb") as file:
    is_whole = file.read() == b"".join(bytes([n]) * 1_000_000 for n in range(before))
print(json.dumps([sorted(seen), sorted(open_files), is_whole]), flush=True)
os._exit(0)  # The files' closing fails, and is said where the last line is looked for.
"""

pytestmark = pytest.mark.timeout(500)


def digest(first: int, megabytes: int) -> str:
    """The digest of what the program writes."""
    found = hashlib.sha256()
    for number in range(first, first + megabytes):
        found.update(bytes([number]) * MB)
    return found.hexdigest()


@pytest.fixture
def slow(stores: Stores) -> Iterator[Stores]:
    """The stores; a pace of S3 ends with the test."""
    try:
        yield stores
    finally:
        stores.s3.pace()


def objects(stores: Stores, run: str) -> dict[str, str]:
    """SHA-256 of each by name."""
    bucket = cloud(stores, "s3")
    keys = [key for key in bucket.keys() if key.startswith(f"{run}/")]  # noqa: SIM118 - no dict
    return {
        key.removeprefix(f"{run}/"): hashlib.sha256(bucket.read(key)).hexdigest()
        for key in keys
        if not key.endswith("/")
    }


def uploads(stores: Stores, run: str) -> list[str]:
    """Keys of those that are not ended."""
    listed = stores.s3.client()._list_multipart_uploads(BUCKET, prefix=f"{run}/")
    return [upload.object_name for upload in listed.uploads]


def last_line(pod: ClusterPod) -> str:
    return pod.logs().splitlines()[-1]


def test_what_was_closed_is_whole_and_the_rest_is_as_it_was_saved(
    run: Run, slow: Stores, nodes: Nodes
) -> None:
    name = "killed-while-writing"
    command = ["python3", "-c", WRITES, str(BEFORE), str(AFTER)]
    pod = run(name, command, outputs="s3", run=name)
    pod.wait_until_ready()
    pod.wait_for(lambda: "closed" in pod.logs(), "two files are closed")
    saved = {"closed": digest(0, BEFORE), "replaced": digest(1, BEFORE)}
    assert objects(slow, name) == saved
    slow.s3.pace(bytes_per_s=2 * MB)
    pod.execute("touch", "/tmp/go")
    pod.wait_for(lambda: last_line(pod) == "written", "the others are written")
    # The gauge is brought up to date every second, and the program wrote within one.
    pod.wait_for(
        lambda: metric(pod, "mount_sidecar_spool_memory_used_bytes") > AFTER * MB / 2,
        "much of it is in memory",
    )
    assert f"{name}/streamed" in uploads(slow, name)

    kill_sidecar(pod, nodes)
    slow.s3.pace()
    assert pod.wait_until_ended() == "Succeeded"
    seen, of_open_files, is_whole = json.loads(last_line(pod))
    assert DEAD in seen
    assert set(seen) <= {DEAD, os.strerror(errno.ECONNABORTED)}  # of a call that is under way
    assert of_open_files == [DEAD]
    assert is_whole
    pod.wait_for(lambda: not uploads(slow, name), "no upload is left")
    found = objects(slow, name)
    # Whole either way: as it was saved, or as it was written, if no part of it was in memory.
    assert found.pop("replaced") in (saved.pop("replaced"), digest(2, AFTER))
    assert found == saved | {"later": digest(3, BEFORE)}
    pod.delete(grace_s=1)
    assert pod.is_gone
    assert nodes.mounts_of(pod.uid) == []
