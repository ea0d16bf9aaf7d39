"""A pod whose sidecar has little memory: everything works, slower."""

from __future__ import annotations

import hashlib
import random

import pytest

from sidecar.units import MIB
from tests.cluster.pods.conftest import BUCKET, Run
from tests.support.clouds import S3Cloud
from tests.support.cluster_pods import MAIN, SIDECAR
from tests.support.stores_in_a_pod import Stores

LARGE_BYTES = 96 * MIB
SMALL = 300

# It reads with three threads, at random with one, small files with one, and writes with one. The
# last line says how much; a wrong byte ends it.
WORKS = """
import hashlib, os, random, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
root, seconds = os.environ["POLYAXON_RUN_OUTPUTS_PATH"], float(sys.argv[1])
digests = dict(line.split() for line in open(f"{root}/data/digests"))
end_s = time.monotonic() + seconds
def whole(name):
    with open(f"{root}/data/{name}", "rb", buffering=0) as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digests[name], name
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
def read(names):
    choose, count = random.Random(threading.get_ident()), 0
    while time.monotonic() < end_s:
        whole(choose.choice(names))
        count += 1
    return count
def at_random():
    choose, count = random.Random(7), 0
    with open(f"{root}/data/large-0", "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while time.monotonic() < end_s:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(50):
                assert len(os.pread(file.fileno(), 4096, choose.randrange(size - 4096))) == 4096
                count += 1
    return count
def write():
    count = 0
    while time.monotonic() < end_s:
        content = random.Random(count).randbytes(24 << 20)
        with open(f"{root}/new-{count % 8}", "wb") as file:
            file.write(content)
        print("saved", f"new-{count % 8}", hashlib.sha256(content).hexdigest(), flush=True)
        count += 1
    return count
large = [name for name in digests if name.startswith("large")]
small = [name for name in digests if not name.startswith("large")]
with ThreadPoolExecutor(6) as threads:
    jobs = [(read, large)] * 3 + [(read, small), (at_random,), (write,)]
    print("passes", *[f.result() for f in [threads.submit(*job) for job in jobs]], flush=True)
"""


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        # docs/sizing.md: enough for one bucket.
        pytest.param("160Mi", 30, id="short", marks=pytest.mark.timeout(400)),
        pytest.param("160Mi", 600, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(1200)]),
    ],
)
def test_everything_works_with_little_memory(
    stores: Stores, run: Run, limit: str, seconds: int
) -> None:
    runs = S3Cloud(stores.s3, BUCKET)
    contents = {f"large-{number}": LARGE_BYTES for number in range(3)}
    contents |= {f"small-{number}": 20_000 for number in range(SMALL)}
    digests = []
    for name, size in contents.items():
        content = random.Random(name).randbytes(size)
        runs.write(f"small-memory/data/{name}", content)
        digests.append(f"{name} {hashlib.sha256(content).hexdigest()}\n")
    runs.write("small-memory/data/digests", "".join(digests).encode())

    pod = run(
        "small-memory",
        ["python3", "-c", WORKS, str(seconds)],
        outputs="s3",
        run="small-memory",
        annotations={"memory-limit": limit},
    )
    [sidecar] = [c for c in pod.get()["spec"]["initContainers"] if c["name"] == SIDECAR]
    assert sidecar["resources"]["limits"]["memory"] == limit
    assert pod.wait_until_ended(seconds + 200) == "Succeeded", pod.logs()
    lines = pod.logs(MAIN).splitlines()
    print(f"\n{lines[-1]}: whole large files by three, small ones, random reads, writes")
    assert all(int(count) for count in lines[-1].split()[1:])
    for _, name, digest in {line.split()[1]: line.split() for line in lines[:-1]}.values():
        assert hashlib.sha256(runs.read(f"small-memory/{name}")).hexdigest() == digest
    status = pod.status(SIDECAR)
    assert status["restartCount"] == 0
    said = pod.logs(SIDECAR)
    assert status["state"]["terminated"]["exitCode"] == 0, said
    print(f"workers that were replaced: {said.count('worker lost')}")
