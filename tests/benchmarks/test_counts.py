"""What reading and writing costs in requests, bytes, system calls and copies.

None of it depends on the machine. Instructions would be next, which virtual machines do not count.

Times are benchmarks; these are a guard against losing what was gained. A row that gets worse fails
here, and one that gets better is to be lowered.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.contract.spec import Volume
from sidecar.units import KIB, MIB
from tests.reading.buckets import fill, make_bucket
from tests.support.clouds import S3Cloud
from tests.support.killer import caches_kept
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar
from tests.support.system_calls import counted

MEGABYTE = b"x" * MIB
"""In memory: the kernel asks once for each page of a buffer that nobody has touched yet."""
LARGE = 64 * MIB
FILES = 300
FOLDERS = 6
OPERATIONS = ("list", "head", "get", "put", "part", "complete", "copy", "delete")

Counts = dict[str, float]


def sequential(root: Path) -> None:
    """One large object from start to end."""
    subprocess.run(["cat", str(root / "large")], stdout=subprocess.DEVNULL, check=True)


def at_random(root: Path) -> None:
    """Half of its blocks of 128 KiB, in random order."""
    with (root / "large").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for offset in random.Random(1).sample(range(0, LARGE, 128 * KIB), LARGE // MIB * 4):
            os.pread(file.fileno(), 128 * KIB, offset)


def listing(root: Path) -> None:
    """Names and attributes of a tree."""
    subprocess.run(["ls", "-lR", str(root)], stdout=subprocess.DEVNULL, check=True)


def small_files(root: Path) -> None:
    """A tree, and each of its files once."""
    for path in sorted(root.glob("tree/*/*")):
        path.read_bytes()


def one_large(root: Path) -> None:
    """A new file of several parts."""
    with (root / "new").open("wb") as file:
        for _ in range(24):
            file.write(MEGABYTE)


def many_small(root: Path) -> None:
    """New files, one after the other."""
    for number in range(50):
        (root / f"new{number}").write_bytes(b"x" * 1000)


def renamed(root: Path) -> None:
    """A checkpoint, as programs save it."""
    with (root / "part").open("wb") as file:
        file.write(MEGABYTE)
        os.fsync(file.fileno())
    os.replace(root / "part", root / "checkpoint")


READS: dict[Callable[[Path], None], Counts] = {
    sequential: {
        "get": 40,  # while it is tried how many at a time make it faster, some have 2 MiB
        "fetched": 1.2,
        "requests": 85,
        "answers": 85,
        "received": 180,  # a megabyte at a time: a READ is answered as soon as its bytes are here
        "sent": 115,
        "copies": 1.05,
    },
    at_random: {
        "get": 256,
        "fetched": 1.3,
        "requests": 320,
        "answers": 415,
        "received": 880,
        "sent": 580,
        "copies": 0.75,
    },
    listing: {"list": 2 * FOLDERS, "requests": 50, "answers": 50, "received": 20, "sent": 12},
    small_files: {
        "list": 2 * FOLDERS + 2,
        "get": FILES + 5,
        "fetched": 1.2,
        "requests": 825,
        "answers": 825,
        "received": 800,
        "sent": 400,
        "copies": 1.05,
    },
}
"""The most that each may cost: requests to the store by operation, and bytes fetched by those that
are read; system calls that take the kernel's requests, answer them, receive and send, and bytes
that are written, to the kernel for one, by those that are read.

With room for a machine that drops pages: measured are 11 to 27 GETs; 233 and 0.92; 7; 7 to 11 and
300.
System calls have 1.3 times what was measured. What waits and wakes (futex, poll) is not counted: it
depends on the machine, as does what looks at memory and time.
"""
READ_BYTES = {sequential: LARGE, at_random: LARGE, small_files: FILES * 20 * KIB}
WRITES: dict[Callable[[Path], None], Counts] = {
    one_large: {
        "head": 1,
        "put": 1,
        "part": 3,
        "complete": 1,
        "requests": 40,
        "answers": 40,
        "received": 10,
        "sent": 10,
        "copies": 2.1,
    },
    many_small: {"put": 50, "requests": 455, "answers": 455, "received": 65, "sent": 65},
    renamed: {
        "head": 2,
        "list": 1,
        "put": 1,
        "copy": 1,
        "delete": 1,
        "requests": 25,
        "answers": 25,
        "received": 15,
        "sent": 15,
    },
}
"""A file costs one request, and a rename those of its copy. The LIST is there where the bucket was
last listed ten seconds ago: what is missing may be the bucket; and so is the HEAD where the machine
is so busy that the new name has to be confirmed meanwhile. Each byte is written to the spool
and to the socket."""
WRITTEN_BYTES = {one_large: 24 * MIB}
RECEIVE = ("recvfrom", "recvmsg")
SEND = ("sendto", "sendmsg")
ANSWER = ("writev", "vmsplice", "splice")


@pytest.fixture(scope="module")
def data(s3_server: S3Server) -> S3Cloud:
    cloud = make_bucket(s3_server)
    tree = {f"tree/{n % FOLDERS}/{n:03}": 20 * KIB for n in range(FILES)}
    fill(cloud, {"large": LARGE, **tree})
    return cloud


def cost(sidecar: Sidecar, work: Callable[[Path], None], folder: Path) -> Counts:
    """What was needed from ready on; ``fetched`` and ``copies`` in bytes."""

    def now() -> Counts:
        name = "mount_sidecar_store_request_duration_seconds_count"
        found = {one: sidecar.metric(name, operation=one) for one in OPERATIONS}
        return {**found, "fetched": sidecar.metric("mount_sidecar_fetched_bytes_total")}

    before = now()
    # Dropping caches would make the kernel ask again.
    with caches_kept(), counted(sidecar.processes(), folder) as calls:
        work(Path(sidecar.spec.volumes[0].path))
    found = {name: count - before[name] for name, count in now().items() if count > before[name]}
    return {
        **found,
        "requests": calls.counts["readv"],
        "answers": sum(calls.counts[name] for name in ANSWER),
        "received": sum(calls.counts[name] for name in RECEIVE),
        "sent": sum(calls.counts[name] for name in SEND),
        "copies": calls.written_bytes,
    }


@pytest.fixture
def mounted(tmp_path: Path, s3_server: S3Server) -> Iterator[Callable[[S3Cloud, bool], Sidecar]]:
    made = []

    def mount(cloud: S3Cloud, read_only: bool) -> Sidecar:
        volume = Volume(
            name="v",
            kind="data" if read_only else "outputs",
            path=str(tmp_path / "mount"),
            read_only=read_only,
            source=replace(cloud.source(), secret="s3"),
            options=Options(names_s=600),
        )
        secrets = {"s3": s3_server.credentials_json()}
        made.append(Sidecar(tmp_path / "run", [volume], secrets=secrets).start())
        return made[-1]

    yield mount
    for sidecar in made:
        sidecar.stop()


def compare(
    work: Callable[[Path], None], found: Counts, most: Counts, moved_bytes: int | None
) -> None:
    for name in ("fetched", "copies"):
        if moved_bytes is None:
            found.pop(name, None)
        elif name in found:
            found[name] /= moved_bytes
    print(f"{work.__name__}: {found}")
    worse = {name: count for name, count in found.items() if count > most.get(name, 0)}
    assert worse == {}, f"{work.__name__} costs more than {most}"


Mount = Callable[[S3Cloud, bool], Sidecar]


@pytest.mark.parametrize("work", READS, ids=lambda work: work.__name__)
def test_reading(
    mounted: Mount, data: S3Cloud, work: Callable[[Path], None], tmp_path: Path
) -> None:
    found = cost(mounted(data, True), work, tmp_path)
    compare(work, found, READS[work], READ_BYTES.get(work))


@pytest.mark.parametrize("work", WRITES, ids=lambda work: work.__name__)
def test_writing(
    mounted: Mount, s3_server: S3Server, work: Callable[[Path], None], tmp_path: Path
) -> None:
    found = cost(mounted(make_bucket(s3_server), False), work, tmp_path)
    compare(work, found, WRITES[work], WRITTEN_BYTES.get(work))
