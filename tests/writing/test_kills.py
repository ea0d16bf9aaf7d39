"""The worker is killed while programs write: no call fails, and no byte is lost."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecar.units import MIB
from tests.support.killer import Killer, kill_worker
from tests.support.servers import REPOSITORY
from tests.writing import writers
from tests.writing.buckets import VOLUME, Mounted, mounted

SHORT_KILLS, SOAK_KILLS = 2, 25  # nine workloads


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    with mounted(request, tmp_path_factory.mktemp("kills"), "s3") as found:
        yield found


@pytest.mark.parametrize("workload", sorted(writers.WORKLOADS))
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(SHORT_KILLS, id="short"),
        pytest.param(SOAK_KILLS, id="soak", marks=pytest.mark.soak),
    ],
)
def test_no_program_notices(
    place: Mounted, workload: str, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program writes until all kills are done, and reports what it wrote."""
    directory = place.fresh_directory()
    before = place.sidecar.volume_status(VOLUME)["healed"]["resend"]
    with (
        Writer(workload, directory) as writer,
        Killer(place.sidecar, VOLUME, kills, seed=kills) as killer,
    ):
        writer.wait_while(lambda: killer.busy)
        rounds, expected = writer.finish()
    with capsys.disabled():
        print(f"\n    {killer.killed} kills during {rounds} rounds of {workload}", end=" ")
    assert killer.killed == kills
    healed = place.sidecar.volume_status(VOLUME)["healed"]
    assert healed["remount"] == 0
    assert healed["resend"] >= before + kills
    if workload == "database":
        found = place.objects(directory)
        (place.local / "copy.db").write_bytes(found["base.db"])
        with sqlite3.connect(place.local / "copy.db") as base:
            assert base.execute("pragma integrity_check").fetchone() == ("ok",)
            assert base.execute("select count(*) from t").fetchone() == (rounds * 10,)
        base.close()
        return
    found_digests = {
        path: hashlib.sha256(content).hexdigest()
        for path, content in place.objects(directory).items()
    }
    assert found_digests == expected


class Writer:
    """A process that runs a workload of :mod:`tests.writing.writers`."""

    def __init__(self, workload: str, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", writers.__name__, workload, str(directory)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_while(self, busy: Callable[[], bool]) -> None:
        """Wait while ``busy()``. Fails if the program ends."""
        while busy():
            self.check()

    def check(self) -> None:
        """Wait a moment; fail if the program has ended."""
        try:
            self._process.wait(0.05)
        except subprocess.TimeoutExpired:
            return
        assert self._process.stderr is not None
        pytest.fail(f"the program ended: {self._process.stderr.read()}")

    def finish(self) -> tuple[int, dict[str, str]]:
        """End the program after its round; number of rounds, and path to SHA-256 of the content."""
        output, errors = self._process.communicate("stop\n")
        assert not errors, errors
        assert self._process.returncode == 0
        rounds, expected = json.loads(output)
        return rounds, expected

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize(
    ("mib", "kills"),
    [
        pytest.param(400, 2, id="short"),
        pytest.param(3000, 50, id="soak", marks=pytest.mark.soak),
    ],
)
def test_a_file_that_streams_is_whole(place: Mounted, mib: int, kills: int) -> None:
    """Most of it is given up while it is written, and what is not was in a killed worker."""
    path = place.fresh_directory() / "file"
    choose = random.Random(mib)
    killed_at = set(choose.sample(range(20, mib), kills))
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for number in range(mib):
            data = choose.randbytes(MIB)
            digest.update(data)
            assert file.write(data) == MIB
            if number in killed_at:
                kill_worker(place.sidecar, VOLUME)
        on_disk = sum(
            found.stat().st_blocks * 512 for found in place.sidecar.state.rglob("spool/*.data")
        )
        assert on_disk <= 8 * MIB
    digest_there = hashlib.sha256(place.objects(path.parent)["file"]).hexdigest()
    assert digest_there == digest.hexdigest()


def test_the_workloads_say_the_truth_on_a_local_directory(tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    for workload in writers.WORKLOADS:
        directory = tmp_path / workload
        directory.mkdir()
        with Writer(workload, directory) as writer:
            _rounds, expected = writer.finish()
        if workload == "database":
            continue
        found = {
            str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in directory.rglob("*")
            if path.is_file()
        }
        assert found == expected
        assert found or workload == "names"
    assert os.listdir(tmp_path)


def test_a_listing_goes_on_after_names_that_were_made_a_moment_ago(place: Mounted) -> None:
    """New names come after the others in a listing that is still fresh."""
    directory = place.fresh_directory()
    place.cloud.write(f"{directory.name}/link.rclonelink", b"b")
    for name in "bd":
        (directory / name).mkdir()
    assert sorted(os.listdir(directory)) == ["b", "d", "link"]
    for name in "ca":
        (directory / name).write_bytes(b"x")
    with os.scandir(directory) as lines:
        seen = [next(lines).name]
        kill_worker(place.sidecar, VOLUME)
        seen += [line.name for line in lines]
    assert sorted(seen) == ["a", "b", "c", "d", "link"]


def test_a_file_that_was_made_or_emptied_by_a_reader_is_saved(place: Mounted) -> None:
    """O_CREAT and O_TRUNC with O_RDONLY, as lock files are made."""
    directory = place.fresh_directory()
    os.close(os.open(directory / "lock", os.O_RDONLY | os.O_CREAT, 0o644))
    assert place.objects(directory) == {"lock": b""}
    (directory / "lock").write_bytes(b"content")
    os.close(os.open(directory / "lock", os.O_RDONLY | os.O_TRUNC))
    assert place.objects(directory) == {"lock": b""}


def test_a_listing_goes_on_behind_files_that_are_not_saved_yet(place: Mounted) -> None:
    """Unsaved files are listed last. The next worker has them in another order."""
    directory, other = place.fresh_directory(), place.fresh_directory()
    with ExitStack() as stack:
        stack.enter_context((other / "z").open("wb"))
        for name in "ab":
            stack.enter_context((directory / name).open("wb"))
        lines = stack.enter_context(os.scandir(directory))
        seen = [next(lines).name]  # The kernel requests all of them at once.
        (other / "z").rename(directory / "z")
        kill_worker(place.sidecar, VOLUME)
        seen += [line.name for line in lines]
    assert len(seen) == len(set(seen))
    assert {"a", "b"} <= set(seen) <= {"a", "b", "z"}
