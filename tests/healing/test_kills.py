"""The worker is killed at random moments, and no program notices more than a pause."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.units import MIB
from tests.support.killer import Killer, Stalls, drop_caches
from tests.support.servers import RcloneServer, S3Server
from tests.support.sidecar import Sidecar, bucket_volume

THREADS = 16
FILES_IN_A_DIRECTORY = 100


class Scale(NamedTuple):
    """Sizes and counts; ``kills`` for each workload.

    Attributes:
        small_files: what `find` walks.
        opened_files: how many of them one run opens and reads.
    """

    kills: int
    large_bytes: int
    small_files: int
    opened_files: int


SHORT = Scale(3, 64 * MIB, 2_000, 500)
# Five workloads, so 200 kills in all.
SOAK = Scale(40, 1024 * MIB, 20_000, 2_000)


class Mounted(NamedTuple):
    """Two mounted buckets and their content.

    Attributes:
        large: one large object below the mount of ``large``.
        original: the same bytes on local disk.
        small: the mount of many small objects.
        contents: path below ``small`` to bytes.
    """

    scale: Scale
    sidecar: Sidecar
    large: Path
    original: Path
    small: Path
    contents: dict[str, bytes]


@pytest.fixture(
    scope="module",
    params=[pytest.param(SHORT, id="short"), pytest.param(SOAK, id="soak", marks=pytest.mark.soak)],
)
def mounted(
    request: pytest.FixtureRequest,
    s3_server: S3Server,
    rclone_server: RcloneServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mounted]:
    scale: Scale = request.param
    directory = tmp_path_factory.mktemp("kills")
    bucket = f"kills-{scale.kills}"
    original = directory / "original"
    block = random.Random(1).randbytes(MIB)
    with original.open("wb") as file:
        for number in range(scale.large_bytes // MIB):
            file.write(number.to_bytes(8, "big") + block[8:])
    s3_server.create_bucket(bucket)
    s3_server.client().fput_object(bucket, "large", str(original))
    contents = {}
    for number in range(scale.small_files):
        path = f"{number // FILES_IN_A_DIRECTORY:04d}/{number:06d}"
        contents[path] = (b"%06d " % number) * (number % 300)
        target = rclone_server.data / bucket / path  # a bucket of this server is a folder
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents[path])
    sidecar = Sidecar(
        directory / "run",
        [
            bucket_volume("large", directory / "large", "s3", f"s3://{bucket}", read_only=True),
            bucket_volume("small", directory / "small", "s3", f"s3://{bucket}", read_only=True),
        ],
        secrets={
            "large": s3_server.credentials_json(),
            "small": rclone_server.credentials_json(),
        },
    )
    with sidecar:
        large = directory / "large" / "large"
        yield Mounted(scale, sidecar, large, original, directory / "small", contents)
    original.unlink()


Report = Callable[..., None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], mounted: Mounted) -> Report:
    """Print what happened, and check that every death was healed by resend."""

    def say(volume: str, killer: Killer, runs: int, stalls: Stalls, what: str = "runs") -> None:
        with capsys.disabled():
            print(
                f"\n    {killer.killed} kills during {runs} {what},"
                f" longest stall {stalls.longest_s:.3f} s",
                end=" ",
            )
        assert killer.killed == mounted.scale.kills
        status = mounted.sidecar.volume_status(volume)
        assert status["state"] == "serving"
        assert status["healed"]["remount"] == 0
        assert status["healed"]["resend"] >= killer.killed

    return say


def runs_until_done(killer: Killer) -> Iterator[int]:
    """Count runs until all kills are done, at least one, each with empty caches."""
    number = 0
    while number == 0 or killer.busy:
        drop_caches()
        number += 1
        yield number


def contents_of(archive: BytesIO) -> dict[str, bytes]:
    """The files of a tar archive, by path."""
    found = {}
    with tarfile.open(fileobj=archive) as members:
        for member in members:
            content = members.extractfile(member)
            if content is not None:  # a directory has none
                found[member.name] = content.read()
    return found


def test_sequential_read(mounted: Mounted, report: Report) -> None:
    expected = hashlib.sha256()
    with mounted.original.open("rb") as file:
        while block := file.read(MIB):
            expected.update(block)
    stalls, number = Stalls(), 0
    with Killer(mounted.sidecar, "large", mounted.scale.kills, seed=1) as killer:
        with stalls.watch():
            file = mounted.large.open("rb", buffering=0)
        with file:  # One handle across all kills.
            for number in runs_until_done(killer):  # noqa: B007 - its last value is reported
                file.seek(0)
                read = hashlib.sha256()
                while True:
                    with stalls.watch():
                        block = file.read(MIB)
                    if not block:
                        break
                    read.update(block)
                assert read.digest() == expected.digest()
    report("large", killer, number, stalls)


def test_random_reads_of_sixteen_threads(mounted: Mounted, report: Report) -> None:
    stalls = Stalls()

    def read_some(seed: int) -> int:
        """Read with one handle across all kills; the number of reads."""
        choose, number = random.Random(seed), 0
        with mounted.large.open("rb") as here, mounted.original.open("rb") as there:
            while killer.busy:
                size = choose.choice((4096, 65536, 262144))
                offset = choose.randrange(mounted.scale.large_bytes)
                with stalls.watch():
                    data = os.pread(here.fileno(), size, offset)
                assert data == os.pread(there.fileno(), size, offset), f"{size} at {offset}"
                number += 1
        return number

    with (
        ThreadPoolExecutor(THREADS) as threads,
        Killer(mounted.sidecar, "large", mounted.scale.kills, seed=2) as killer,
    ):
        reads = sum(threads.map(read_some, range(THREADS)))
    report("large", killer, reads, stalls, what="reads")


def test_find(mounted: Mounted, report: Report) -> None:
    expected = sorted(f"{path} {len(data)}" for path, data in mounted.contents.items())
    stalls, number = Stalls(), 0
    with Killer(mounted.sidecar, "small", mounted.scale.kills, seed=3) as killer:
        for number in runs_until_done(killer):  # noqa: B007
            command = ["find", str(mounted.small), "-type", "f", "-printf", "%P %s\n"]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as find:
                assert find.stdout is not None
                assert find.stderr is not None
                lines = []
                while True:
                    with stalls.watch():
                        line = find.stdout.readline()
                    if not line:
                        break
                    lines.append(line.rstrip("\n"))
                assert find.stderr.read() == ""
            assert find.returncode == 0
            assert sorted(lines) == expected
    report("small", killer, number, stalls)


def test_small_opens(mounted: Mounted, report: Report) -> None:
    paths = random.Random(4).sample(sorted(mounted.contents), mounted.scale.opened_files)
    stalls, number = Stalls(), 0
    with Killer(mounted.sidecar, "small", mounted.scale.kills, seed=4) as killer:
        for number in runs_until_done(killer):  # noqa: B007
            for path in paths:
                with stalls.watch():
                    data = (mounted.small / path).read_bytes()
                assert data == mounted.contents[path], path
    report("small", killer, number, stalls)


def test_tar(mounted: Mounted, report: Report) -> None:
    expected = dict(sorted(mounted.contents.items())[: mounted.scale.opened_files])
    directories = sorted({path.partition("/")[0] for path in expected})
    stalls, number = Stalls(), 0

    with Killer(mounted.sidecar, "small", mounted.scale.kills, seed=5) as killer:
        for number in runs_until_done(killer):  # noqa: B007
            command = ["tar", "c", "-f", "-", "-C", str(mounted.small), *directories]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tar:
                assert tar.stdout is not None
                assert tar.stderr is not None
                archive = BytesIO()
                while True:
                    with stalls.watch():
                        block = tar.stdout.read(tarfile.RECORDSIZE)
                    if not block:
                        break
                    archive.write(block)
                assert tar.stderr.read() == b""
            assert tar.returncode == 0
            archive.seek(0)
            assert contents_of(archive) == expected
    report("small", killer, number, stalls)
