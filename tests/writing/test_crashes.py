"""What is saved if the sidecar is killed, the store is down, or time is too short."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.options import Times, TransportName
from sidecar.units import MIB
from tests.mount.buckets import bucket_sidecar, make_cloud
from tests.support.clouds import AzureCloud, Cloud, GcsCloud, S3Cloud
from tests.support.faults import FaultProxy
from tests.support.servers import MinioServer
from tests.support.sidecar import Sidecar
from tests.writing.buckets import SMALL_PARTS

HASTY = replace(SMALL_PARTS, retry_s=0.5)
KILLS = 5
FILES = 12
STREAMED_BYTES = 60 * MIB
OLD, NEW = b"old" * MIB, b"new!" * (10 * MIB)


@pytest.fixture
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud(request, monkeypatch, request.param)


@pytest.fixture
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud(request, monkeypatch, "s3")


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Cloud]:
    """An empty bucket on its own server, which the test may stop and pause."""
    with MinioServer(tmp_path / "server") as server:
        server.create_bucket("mortal")
        yield S3Cloud(server, "mortal")


def open_uploads(cloud: Cloud) -> list[str]:
    """Keys of unfinished multipart uploads, from the server or an independent client.

    Azure's blocks and GCS's sessions expire.
    """
    if isinstance(cloud, GcsCloud):
        uploads = list(cloud.server.proxy.multiparts.values())
        return [upload.name for upload in uploads if upload.bucket == cloud.bucket]
    if not isinstance(cloud, S3Cloud):
        assert isinstance(cloud, AzureCloud)
        return []
    listed = cloud.server.client()._list_multipart_uploads(cloud.bucket)
    return [upload.object_name for upload in listed.uploads]


def write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view[:MIB]) :]


@contextlib.contextmanager
def descriptors() -> Iterator[list[int]]:
    """A list of descriptors to close afterwards, ignoring errors since the mount has ended."""
    opened: list[int] = []
    try:
        yield opened
    finally:
        for descriptor in opened:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def start_again(sidecar: Sidecar) -> None:
    """Start as the kubelet does after a container died, without any clean-up."""
    (sidecar.shared / ".sidecar/ready").unlink(missing_ok=True)
    sidecar.start()


@pytest.mark.parametrize(
    ("cloud", "transport"),
    [
        ("s3", "kernel"),
        ("gcs", "kernel"),
        ("azure", "kernel"),
        ("s3", "libfuse"),
        pytest.param("gcs", "libfuse", marks=pytest.mark.soak),
        pytest.param("azure", "libfuse", marks=pytest.mark.soak),
    ],
    indirect=["cloud"],
)
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(1, id="short"),
        pytest.param(KILLS, id="soak", marks=pytest.mark.soak),
    ],
)
def test_the_whole_sidecar_is_killed(
    tmp_path: Path, cloud: Cloud, transport: TransportName, kills: int
) -> None:
    """What was synced is in the store, what was written is there after the next start.

    But for what was on its way to the store in process 1's memory: such a file is as it was saved
    last, and never half of what was written.
    """
    mount = tmp_path / "m"
    contents: dict[str, bytes] = {}
    with bucket_sidecar(tmp_path, cloud, options=SMALL_PARTS, transport=transport) as sidecar:
        for life in range(kills):
            choose = random.Random(life)
            streamed: dict[str, bytes] = {}
            with descriptors() as opened:
                for number in range(FILES):
                    # Every third is a multipart upload; some replace files of the run before.
                    size = 12 * MIB if number % 3 == 0 else choose.randrange(100_000)
                    name = f"{number if number % 2 else 100 * life + number}"
                    synced = choose.randbytes(size)
                    opened.append(os.open(mount / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC))
                    write_all(opened[-1], synced)
                    written = synced
                    if number % 4 < 2:
                        os.fsync(opened[-1])
                        assert cloud.read(name) == synced
                        contents[name] = synced
                        more = choose.randbytes(1000)
                        os.pwrite(opened[-1], more, size)
                        written = synced + more
                    (streamed if number % 3 == 0 else contents)[name] = written
                sidecar.kill()
            start_again(sidecar)
            there = cloud.keys()
            contents.update((n, c) for n, c in streamed.items() if n in there and n not in contents)
            assert there == sorted(contents)
            for name, content in contents.items():
                found = cloud.read(name)
                assert found in (content, streamed.get(name)), name
                assert (mount / name).read_bytes() == found, name
                contents[name] = found
            assert open_uploads(cloud) == []
        assert sidecar.stop() == 0


def streaming(sidecar: Sidecar, mount: Path, opened: list[int]) -> bytes:
    """Content of a new file that its writer has not closed, of which parts are in memory."""
    content = random.Random(3).randbytes(STREAMED_BYTES)
    opened.append(os.open(mount / "streamed", os.O_WRONLY | os.O_CREAT))
    write_all(opened[-1], content)
    on_disk = sum(path.stat().st_blocks * 512 for path in sidecar.state.rglob("spool/*.data"))
    assert on_disk < STREAMED_BYTES / 2
    return content


@pytest.mark.parametrize("is_away", [False, True], ids=["the store is there", "it is away"])
def test_process_1_alone_is_killed(tmp_path: Path, mortal: Cloud, is_away: bool) -> None:
    """Its workers save what they can, and have the rest on disk for the next start."""
    mount = tmp_path / "m"
    with bucket_sidecar(tmp_path, mortal, options=HASTY) as sidecar, descriptors() as opened:
        closed = random.Random(4).randbytes(12 * MIB)
        (mount / "closed").write_bytes(closed)
        content = streaming(sidecar, mount, opened)
        if is_away:
            mortal.server.stop()
        os.kill(sidecar.pid, signal.SIGKILL)
        sidecar.wait()
        sidecar.wait_for(lambda: not sidecar.processes())
        with pytest.raises(OSError, match=rf"^\[Errno {errno.ENOTCONN}\] "):
            os.write(opened[0], b"more")
        with pytest.raises(OSError, match=rf"^\[Errno {errno.ENOTCONN}\] "):
            os.listdir(mount)
        if is_away:
            mortal.server.start()
            assert mortal.keys() == ["closed"]
        else:
            assert mortal.read("streamed") == content
        start_again(sidecar)
        assert mortal.read("streamed") == (mount / "streamed").read_bytes() == content
        assert mortal.read("closed") == closed
        assert open_uploads(mortal) == []
        (mount / "new").write_bytes(content)
        assert mortal.read("new") == content
        assert sidecar.stop() == 0


@pytest.fixture
def torn(tmp_path: Path, mortal: Cloud) -> Iterator[Sidecar]:
    """A sidecar that was killed while it uploaded ``model``, and started again."""
    mortal.write("model", OLD)
    program = (
        "import os, sys\n"
        "with open(sys.argv[1], 'r+b') as file:\n"
        "    file.write(b'new!' * (10 << 20))\n"
    )
    with bucket_sidecar(tmp_path, mortal, options=SMALL_PARTS) as sidecar:
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "m/model")], stderr=subprocess.DEVNULL
        ):
            sidecar.wait_for(lambda: bool(open_uploads(mortal)))
            mortal.server.pause()
            sidecar.kill()
        mortal.server.resume()
        assert mortal.read("model") == OLD
        start_again(sidecar)
        yield sidecar
        assert sidecar.stop() == 0


def test_the_whole_sidecar_is_killed_during_an_upload(torn: Sidecar, mortal: Cloud) -> None:
    """The old object stays complete until the next start saves the new one."""
    assert mortal.read("model") == NEW


@pytest.mark.parametrize("end", ["saved later", "unlinked", "killed"])
def test_no_upload_whose_number_never_arrived_is_left(tmp_path: Path, s3: Cloud, end: str) -> None:
    """The store created the upload, and its answer was lost."""
    path = tmp_path / "m/model"
    with FaultProxy(s3.server.port, faults=["truncate"]) as proxy:
        secret = json.dumps({**s3.server.credentials(), "AWS_ENDPOINT_URL": proxy.endpoint})
        sidecar = bucket_sidecar(tmp_path, s3, secret=secret, options=HASTY)
        with sidecar, descriptors() as opened:
            opened.append(os.open(path, os.O_WRONLY | os.O_CREAT))
            proxy.rate = 1
            write_all(opened[-1], NEW)
            sidecar.wait_for(lambda: bool(open_uploads(s3)))
            if end == "killed":
                sidecar.kill()
            else:
                with pytest.raises(OSError, match=rf"^\[Errno {errno.EIO}\] "):
                    os.fsync(opened[-1])
            proxy.rate = 0
            if end == "unlinked":
                path.unlink()
            if end == "killed":
                start_again(sidecar)
            if end != "unlinked":
                path.write_bytes(NEW)
                assert s3.read("model") == NEW
            sidecar.wait_for(lambda: not open_uploads(s3))
            assert sidecar.stop() == 0
    assert open_uploads(s3) == []


def test_no_upload_of_a_killed_sidecar_is_left(torn: Sidecar, mortal: Cloud) -> None:
    """Parts of an unfinished upload cost money, and no listing shows them."""
    assert open_uploads(mortal) == []


@pytest.mark.parametrize("transport", ["kernel", "libfuse"])
def test_the_store_is_away_at_close(
    tmp_path: Path, mortal: Cloud, transport: TransportName
) -> None:
    """EIO; the old object stays complete, and the next save works."""
    mount = tmp_path / "m"
    mortal.write("model", b"old")
    with bucket_sidecar(tmp_path, mortal, options=HASTY, transport=transport) as sidecar:
        files = {
            name: os.open(mount / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for name in ("model", "new", "large")
        }
        for name, descriptor in files.items():
            write_all(descriptor, b"x" * (12 * MIB if name == "large" else 100))
        mortal.server.stop()
        for descriptor in files.values():
            with pytest.raises(OSError, match=rf"^\[Errno {errno.EIO}\] "):
                os.fsync(descriptor)
            with pytest.raises(OSError, match=rf"^\[Errno {errno.EIO}\] "):
                os.close(descriptor)
        mortal.server.start()
        assert mortal.read("model") == b"old"
        for name in files:
            (mount / name).write_bytes(b"next " + name.encode())
            assert mortal.read(name) == b"next " + name.encode()
        sidecar.wait_for(lambda: not open_uploads(mortal))  # Another thread aborts it.
        assert sidecar.stop() == 0


@pytest.mark.parametrize(
    "size_mib",
    [
        pytest.param(64, id="short"),
        pytest.param(2048, id="soak", marks=pytest.mark.soak),
    ],
)
def test_too_little_time_for_what_is_dirty(tmp_path: Path, s3: Cloud, size_mib: int) -> None:
    """Exit status 4, every file that was not saved is named, and the next start saves it."""
    mount = tmp_path / "m"
    times = Times(ready_timeout_s=20, grace_s=5.2, grace_margin_s=5)
    block = random.Random(1).randbytes(MIB)
    names = [f"run/part-{number:02d}" for number in range(8)]
    digests = {}
    with FaultProxy(s3.server.port) as proxy:
        secret = json.dumps({**s3.server.credentials(), "AWS_ENDPOINT_URL": proxy.endpoint})
        sidecar = bucket_sidecar(tmp_path, s3, secret=secret, options=SMALL_PARTS, times=times)
        with sidecar, descriptors() as opened:
            (mount / "run").mkdir()
            for name in names:
                opened.append(os.open(mount / name, os.O_WRONLY | os.O_CREAT))
                digest = hashlib.sha256()
                for number in range(size_mib // len(names)):
                    data = number.to_bytes(8, "big") + block[8:]
                    write_all(opened[-1], data)
                    digest.update(data)
                digests[name] = digest.hexdigest()
            proxy.latency_s = 1.0  # So that time is too short on any machine.
            # Not stop() first: the kernel would not wait for open files either.
            os.kill(sidecar.pid, signal.SIGTERM)
            assert sidecar.wait(600) == 4
        message = sidecar.termination_message.read_text()
        unsaved = set(re.findall(r"^not saved: data/train: (\S+) ", message, re.MULTILINE))
        saved = set(s3.keys()) & digests.keys()
        # A file whose upload was in flight at the deadline may be in the store nevertheless.
        assert set(names) - saved <= unsaved <= set(names)
        assert unsaved
        proxy.latency_s = 0
        sidecar.start(wait=False)
        try:
            sidecar.wait_ready(600)
            assert sidecar.stop() == 0
        finally:
            sidecar.clean_up()
    assert {name: hashlib.sha256(s3.read(name)).hexdigest() for name in names} == digests
    assert open_uploads(s3) == []
