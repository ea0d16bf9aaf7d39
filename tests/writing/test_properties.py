"""Properties of objects survive system calls on a mount."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import pytest

from sidecar.contract.options import TransportName
from sidecar.units import MIB
from tests.mount.buckets import CLOUDS, TRANSPORTS, bucket_sidecar
from tests.support import described
from tests.support.clouds import Cloud
from tests.support.killer import kill_worker
from tests.support.servers import GcsServer
from tests.support.sidecar import Sidecar
from tests.writing.buckets import SMALL_PARTS

VOLUME = "train"
LARGE = os.urandom(11 * MIB)


@pytest.fixture(params=["strict_s3", "gcs", "azure"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """An empty bucket, on servers that keep properties."""
    server = request.getfixturevalue(f"{request.param}_server")
    if isinstance(server, GcsServer):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    bucket = f"properties-{uuid.uuid4().hex[:12]}"
    server.create_bucket(bucket)
    made: Cloud = CLOUDS[request.param.removeprefix("strict_")](server, bucket)  # type: ignore[abstract]
    return made


def seen(cloud: Cloud, key: str) -> described.Description:
    """Without what fake-gcs-server itself drops (tests/store/test_properties.py)."""
    found = described.seen(cloud, key)
    forgotten = {"storage_class"} if cloud.name == "gcs" else set()
    return {name: value for name, value in found.items() if name not in forgotten}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_system_calls_keep_what_objects_have(
    tmp_path: Path, cloud: Cloud, transport: TransportName
) -> None:
    described.write(cloud, "dir/small", b"0123456789")
    described.write(cloud, "dir/large", LARGE)
    before = seen(cloud, "dir/small")
    assert seen(cloud, "dir/large") == before
    directory = tmp_path / "m" / "dir"
    with bucket_sidecar(tmp_path, cloud, options=SMALL_PARTS, transport=transport) as sidecar:
        for name in ("small", "large"):
            path, key = directory / name, f"dir/{name}"

            path.chmod(0o600)
            assert seen(cloud, key) == before, "chmod"
            os.chown(path, 1000, 1001)
            assert seen(cloud, key) == before, "chown"
            os.utime(path, ns=(10**18, 10**18))
            assert seen(cloud, key) == before, "utime"
            with path.open("ab") as file:
                file.write(b"end")
            assert seen(cloud, key) == before, "append"
            with path.open("r+b") as file:
                file.seek(3)
                file.write(b"middle")
                file.flush()
                os.fsync(file.fileno())
                assert seen(cloud, key) == before, "fsync"
                file.truncate(8)
            assert seen(cloud, key) == before, "ftruncate"
            os.truncate(path, 20)
            assert seen(cloud, key) == before, "truncate"
            path.write_bytes(LARGE if name == "small" else b"x")
            assert seen(cloud, key) == before, "O_TRUNC"
            path.rename(directory / "other")
            assert seen(cloud, "dir/other") == before, "rename"
            (directory / "other").rename(path)
        directory.rename(tmp_path / "m" / "moved")
        assert seen(cloud, "moved/small") == seen(cloud, "moved/large") == before
        assert sidecar.stop() == 0
    assert cloud.read("moved/small") == LARGE
    assert cloud.read("moved/large") == b"x"


def write_some(path: Path, data: bytes) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_TRUNC)
    for at in range(0, len(data), MIB):
        os.pwrite(descriptor, data[at : at + MIB], at)
    return descriptor


@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
def test_a_worker_dies_before_the_file_is_closed(tmp_path: Path, cloud: Cloud, size: int) -> None:
    """A successor does not have what its predecessor had read of the object."""
    described.write(cloud, "file", b"old")
    before = seen(cloud, "file")
    with bucket_sidecar(tmp_path, cloud, options=SMALL_PARTS) as sidecar:
        descriptor = write_some(tmp_path / "m" / "file", LARGE[:size])
        kill_worker(sidecar, VOLUME)
        os.close(descriptor)
        assert cloud.read("file") == LARGE[:size]
        assert seen(cloud, "file") == before


@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
def test_the_whole_sidecar_dies_before_the_file_is_closed(
    tmp_path: Path, cloud: Cloud, size: int
) -> None:
    """The next start saves what is in the spool, if none of it was in memory."""
    described.write(cloud, "file", b"old")
    before = seen(cloud, "file")
    after = LARGE[:size] if size < SMALL_PARTS.part_bytes else b"old"
    with bucket_sidecar(tmp_path, cloud, options=SMALL_PARTS) as sidecar:
        descriptor = write_some(tmp_path / "m" / "file", LARGE[:size])
        sidecar.kill()
        start_again(sidecar, descriptor)
        sidecar.wait_for(lambda: cloud.read("file") == after)
        assert seen(cloud, "file") == before
        assert ("was in memory only" in sidecar.log()) == (after == b"old")


def start_again(sidecar: Sidecar, descriptor: int) -> None:
    """Start as the kubelet does; the program with the open file has ended too."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
    (sidecar.shared / ".sidecar/ready").unlink(missing_ok=True)
    sidecar.start()
