"""Open files stay one version, and changes happen once, although workers die."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.units import MIB
from tests.healing.conftest import VOLUME, Bucket, Start
from tests.support.killer import Killer, drop_caches, kill_worker, while_dead

SIZE_BYTES = 8 * MIB
CACHED_BYTES = 1 * MIB
STEP_BYTES = 64 * 1024


def read_or_errno(descriptor: int, offset: int) -> bytes | int:
    try:
        return os.pread(descriptor, STEP_BYTES, offset)
    except OSError as error:
        return error.errno or 0


@pytest.mark.parametrize("new_bytes", [SIZE_BYTES, SIZE_BYTES // 2, 2 * SIZE_BYTES])
def test_an_open_file_is_never_a_mixture(
    bucket: Bucket, start: Start, mountpoint: Path, new_bytes: int
) -> None:
    """The object changes while no worker is alive."""
    old, new = b"o" * SIZE_BYTES, b"n" * new_bytes
    bucket.put("file", old)
    sidecar = start(read_only=True, options=Options(names_s=0.2))
    path = mountpoint / "file"
    with path.open("rb", buffering=0) as opened:
        assert opened.read(CACHED_BYTES) == old[:CACHED_BYTES]
        with while_dead(sidecar, VOLUME):
            bucket.put("file", new)
        drop_caches()
        outcomes = {
            read_or_errno(opened.fileno(), offset) for offset in range(0, SIZE_BYTES, STEP_BYTES)
        }
        # Pages in the kernel are the old version's; all others must be fetched.
        assert errno.ESTALE in outcomes
        assert outcomes <= {errno.ESTALE, old[:STEP_BYTES]}
        sidecar.wait_for(lambda: path.stat().st_size == new_bytes or new_bytes == SIZE_BYTES)
        sidecar.wait_for(lambda: path.read_bytes() == new)
        kill_worker(sidecar, VOLUME)
        with pytest.raises(OSError, match=rf"\[Errno {errno.ESTALE}\]"):
            os.pread(opened.fileno(), STEP_BYTES, SIZE_BYTES - STEP_BYTES)
        assert path.read_bytes() == new


def test_a_deleted_open_file_is_stale_and_gone(
    bucket: Bucket, start: Start, mountpoint: Path
) -> None:
    bucket.put("file", b"o" * SIZE_BYTES)
    sidecar = start(read_only=True, options=Options(names_s=0.2))
    path = mountpoint / "file"
    with path.open("rb", buffering=0) as opened:
        bucket.delete("file")
        kill_worker(sidecar, VOLUME)
        with pytest.raises(OSError, match=rf"\[Errno {errno.ESTALE}\]"):
            os.pread(opened.fileno(), STEP_BYTES, 0)
        sidecar.wait_for(lambda: not path.exists())


def test_a_directory_is_read_on_where_it_was(
    bucket: Bucket, start: Start, mountpoint: Path
) -> None:
    """Although names changed before and after the current offset."""
    names = [f"{number:04d}" for number in range(200)]
    for name in names:
        bucket.put(f"many/{name}", b"")
    sidecar = start(read_only=True)
    found = []
    with os.scandir(mountpoint / "many") as entries:
        for entry in entries:
            found.append(entry.name)
            if len(found) in (1, 100):
                with while_dead(sidecar, VOLUME):
                    bucket.delete(f"many/{found[0]}")
                    for number in range(len(found)):
                        bucket.put(f"many/0000-{number}", b"")
                    bucket.delete("many/0199")
    assert len(found) == len(set(found))
    assert set(names[:-1]) <= set(found)


def test_files_are_deleted_while_workers_die(
    bucket: Bucket, start: Start, mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rm -r`. A deletion that was done but not answered is sent again, and must succeed."""
    sidecar = start()
    directory = mountpoint / "many"
    directory.mkdir()
    for number in range(200):
        (directory / f"{number:04d}").write_bytes(b"x")
    with Killer(sidecar, VOLUME, kills=5, seed=6) as killer:
        removed = subprocess.run(
            ["rm", "-r", str(directory)], capture_output=True, text=True, check=False
        )
    with capsys.disabled():
        print(f"\n    rm -r: {killer.killed} kills, exit {removed.returncode}", end=" ")
    assert (removed.returncode, removed.stderr) == (0, "")
    assert [key for key in bucket.keys("many/") if key != "many/"] == []
    assert sidecar.volume_status(VOLUME)["healed"]["remount"] == 0


def test_names_change_while_workers_die(
    bucket: Bucket, start: Start, mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every change of a name succeeds or fails as without kills."""
    sidecar = start()
    rounds = 0
    with Killer(sidecar, VOLUME, kills=6, seed=7) as killer:
        while killer.busy:
            directory = mountpoint / f"{rounds}"
            directory.mkdir()
            with (directory / "new").open("xb") as file:
                file.write(b"%d" % rounds)
            (directory / "new").rename(directory / "file")
            os.mknod(directory / "node")
            os.replace(directory / "file", directory / "node")
            (directory / "inner").mkdir()
            (directory / "inner").rmdir()
            (directory / "node").rename(mountpoint / f"file-{rounds}")
            directory.rmdir()
            rounds += 1
    with capsys.disabled():
        print(f"\n    {rounds} rounds, {killer.killed} kills", end=" ")
    assert bucket.keys() == sorted(f"file-{number}" for number in range(rounds))
    for number in range(rounds):
        assert (mountpoint / f"file-{number}").read_bytes() == b"%d" % number
    assert sidecar.volume_status(VOLUME)["healed"]["remount"] == 0


def test_a_directory_is_renamed_while_workers_die(
    bucket: Bucket, start: Start, mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sidecar = start()
    (mountpoint / "0").mkdir()
    for number in range(60):
        (mountpoint / "0" / f"{number:02}").write_bytes(b"%d" % number)
    moves = 0
    with Killer(sidecar, VOLUME, kills=5, seed=8) as killer:
        while killer.busy:
            (mountpoint / f"{moves}").rename(mountpoint / f"{moves + 1}")
            moves += 1
    with capsys.disabled():
        print(f"\n    {moves} moves, {killer.killed} kills", end=" ")
    expected = [f"{moves}/", *(f"{moves}/{number:02}" for number in range(60))]
    assert bucket.keys() == expected
    for number in range(60):
        assert (mountpoint / f"{moves}" / f"{number:02}").read_bytes() == b"%d" % number
    assert sidecar.volume_status(VOLUME)["healed"]["remount"] == 0
