"""Failures while buckets are mounted: programs get an errno, and the mount keeps working."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.contract.options import Options, TransportName
from sidecar.mounter.system import mounts
from sidecar.units import MIB
from tests.mount.buckets import bucket_sidecar
from tests.support.clouds import Cloud, S3Cloud
from tests.support.mounted import mounts_at
from tests.support.servers import MinioServer, S3Server
from tests.support.sidecar import Sidecar

HASTY = Options(retry_s=0.5)


@pytest.fixture(scope="module")
def mortal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that these tests stop."""
    with MinioServer(tmp_path_factory.mktemp("mortal")) as server:
        yield server


@pytest.fixture
def mortal(mortal_server: S3Server) -> Iterator[Cloud]:
    """An empty bucket on it."""
    bucket = f"mortal-{uuid.uuid4().hex[:12]}"
    mortal_server.create_bucket(bucket)
    yield S3Cloud(mortal_server, bucket)
    if mortal_server.running:
        mortal_server.resume()
    else:
        mortal_server.start()


def fails_with(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=rf"^\[Errno {code}\] "):
        call()


def save(path: Path, content: bytes) -> None:
    """Write a file; OSError also where only close(2) reports it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def can_save(path: Path, content: bytes) -> bool:
    with contextlib.suppress(OSError):
        save(path, content)
        return True
    return False


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):  # Other tests check the error of close.
            os.close(descriptor)


def is_serving(sidecar: Sidecar) -> bool:
    page = sidecar.get("/statusz")
    return (
        page[0] == 200
        and sidecar.get("/livez")[0] == 200
        and sidecar.volume_status("train")["state"] == "serving"
    )


def errors(sidecar: Sidecar, code: str) -> float:
    return sidecar.metric("mount_sidecar_operation_errors_total", code=code)


# --- the bucket and its server ---------------------------------------------------------------


def test_bucket_deleted_while_mounted(
    tmp_path: Path, s3: Cloud, s3_server: S3Server, transport: TransportName
) -> None:
    s3.write("folder/seen", b"seen")
    s3.write("unseen/file", b"x")
    mount = tmp_path / "m"
    with bucket_sidecar(tmp_path, s3, options=HASTY, transport=transport) as sidecar:
        assert (mount / "folder/seen").read_bytes() == b"seen"
        s3_server.delete_bucket(s3.bucket)
        fails_with(errno.EIO, lambda: os.listdir(mount / "unseen"))
        fails_with(errno.EIO, (mount / "unseen/file").read_bytes)
        fails_with(errno.EIO, lambda: os.mkdir(mount / "new"))
        assert errors(sidecar, "SC1042") > 0
        assert is_serving(sidecar)
        assert sidecar.stop() == 0


def test_server_restarted_during_a_read(
    tmp_path: Path, mortal: Cloud, transport: TransportName
) -> None:
    content = os.urandom(24 * MIB)
    mortal.write("large", content)
    with bucket_sidecar(tmp_path, mortal, transport=transport) as sidecar:
        path = tmp_path / "m/large"
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
            first = file.read(4096)
            mortal.server.stop()
            rest = pool.submit(lambda: b"".join(iter(lambda: file.read(MIB), b"")))
            sidecar.wait_for(lambda: sidecar.metric("mount_sidecar_store_retries_total") > 0)
            assert not rest.done()
            mortal.server.start()
            assert first + rest.result() == content
        assert sidecar.metric("mount_sidecar_operation_errors_total", operation="read") == 0
        assert sidecar.stop() == 0


def test_server_away_for_longer_than_the_retry_budget(
    tmp_path: Path, mortal: Cloud, transport: TransportName
) -> None:
    content = os.urandom(24 * MIB)
    mortal.write("large", content)
    mortal.write("folder/file", b"x")
    with bucket_sidecar(tmp_path, mortal, options=HASTY, transport=transport) as sidecar:
        mount = tmp_path / "m"
        with opened(mount / "large") as descriptor:
            mortal.server.stop()
            fails_with(errno.EIO, lambda: os.pread(descriptor, MIB, 12 * MIB))
            fails_with(errno.EIO, lambda: os.listdir(mount / "folder"))
            fails_with(errno.EIO, lambda: os.stat(mount / "folder/file"))
            assert errors(sidecar, "SC1047") >= 3
            assert is_serving(sidecar)
            mortal.server.start()
            assert os.pread(descriptor, MIB, 12 * MIB) == content[12 * MIB : 13 * MIB]
            assert os.listdir(mount / "folder") == ["file"]
        assert sidecar.stop() == 0


# --- another writer --------------------------------------------------------------------------


def test_object_changed_under_an_open_handle(
    tmp_path: Path, s3: Cloud, transport: TransportName
) -> None:
    old, new = b"o" * 24 * MIB, b"n" * 24 * MIB
    s3.write("large", old)
    with bucket_sidecar(tmp_path, s3, transport=transport) as sidecar:
        path = tmp_path / "m/large"
        with opened(path) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(descriptor, 4096, 0) == old[:4096]
            s3.write("large", new)
            fails_with(errno.ESTALE, lambda: os.pread(descriptor, 4096, 20 * MIB))

            def read_again() -> bytes:
                # Until metadata expires, an open may pin the old version.
                try:
                    return path.read_bytes()
                except OSError as error:
                    return os.strerror(error.errno or 0).encode()

            stale = os.strerror(errno.ESTALE).encode()
            while (seen := read_again()) != new:
                assert seen in {old, stale}
            assert errors(sidecar, "SC1044") > 0
        assert sidecar.stop() == 0


def test_object_deleted_under_an_open_handle(
    tmp_path: Path, s3: Cloud, transport: TransportName
) -> None:
    s3.write("large", b"o" * 24 * MIB)
    with bucket_sidecar(tmp_path, s3, transport=transport) as sidecar:
        path = tmp_path / "m/large"
        with opened(path) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(descriptor, 4096, 0) == b"o" * 4096
            s3.delete("large")
            fails_with(errno.ESTALE, lambda: os.pread(descriptor, 4096, 20 * MIB))
            sidecar.wait_for(lambda: not path.exists())
        assert sidecar.stop() == 0


# --- saving ----------------------------------------------------------------------------------


def test_spool_budget_exhausted(tmp_path: Path, s3: Cloud, transport: TransportName) -> None:
    options = Options(spool_bytes=2 * MIB)
    mount = tmp_path / "m"
    with bucket_sidecar(tmp_path, s3, options=options, transport=transport) as sidecar:
        with opened(mount / "large", os.O_WRONLY | os.O_CREAT) as descriptor:
            fails_with(errno.ENOSPC, lambda: write_all(descriptor, bytes(4 * MIB)))
        (mount / "large").unlink()
        # There is room once RELEASE is served, for which close(2) does not wait.
        sidecar.wait_for(lambda: can_save(mount / "small", b"fits"))
        assert s3.read("small") == b"fits"
        assert errors(sidecar, "SC1067") > 0
        assert is_serving(sidecar)
        assert sidecar.stop() == 0


def write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view[: 256 * 1024]) :]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB at ``run/state``."""
    path = tmp_path / "run/state"
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", path], check=True)
    yield path
    while mounts_at(str(path)):
        mounts.unmount(str(path))


def test_disk_full(tmp_path: Path, small_disk: Path, s3: Cloud, transport: TransportName) -> None:
    mount = tmp_path / "m"
    s3.write("there", b"there")
    with bucket_sidecar(tmp_path, s3, transport=transport) as sidecar:
        with opened(mount / "large", os.O_WRONLY | os.O_CREAT) as descriptor:
            os.pwrite(descriptor, b"end", 20 * MIB)  # in another order, which needs the disk
            fails_with(errno.ENOSPC, lambda: write_all(descriptor, bytes(20 * MIB)))
            # Another program fills what is left.
            (small_disk / "filler").write_bytes(b"")
            with contextlib.suppress(OSError), (small_disk / "filler").open("ab") as filler:
                while True:
                    filler.write(bytes(4096))
                    filler.flush()
            assert (mount / "there").read_bytes() == b"there"
            for page in ("/metrics", "/statusz", "/livez"):
                assert sidecar.get(page)[0] == 200
            fails_with(errno.ENOSPC, lambda: save(mount / "other", bytes(MIB)))
            with contextlib.suppress(OSError):
                (mount / "other").unlink()
        (mount / "large").unlink()
        # There is room once RELEASE is served, for which close(2) does not wait.
        sidecar.wait_for(lambda: can_save(mount / "small", b"fits"))
        assert s3.read("small") == b"fits"
        assert is_serving(sidecar)
        assert sidecar.volume_status("train")["healed"] == {"resend": 0, "remount": 0}
        assert sidecar.stop() == 0
    assert "Traceback" not in sidecar.log()


def test_store_away_at_close_and_fsync(
    tmp_path: Path, mortal: Cloud, transport: TransportName
) -> None:
    mortal.write("model", b"old")
    with bucket_sidecar(tmp_path, mortal, options=HASTY, transport=transport) as sidecar:
        path = tmp_path / "m/model"
        with opened(path, os.O_WRONLY | os.O_TRUNC) as descriptor:
            os.write(descriptor, b"new")
            mortal.server.stop()
            fails_with(errno.EIO, lambda: os.fsync(descriptor))
            assert sidecar.metric("mount_sidecar_uploaded_bytes_total") == 0
        fails_with(errno.EIO, lambda: save(tmp_path / "m/other", b"other"))
        mortal.server.start()
        assert mortal.read("model") == b"old"
        save(path, b"newer")
        assert mortal.read("model") == b"newer"
        save(tmp_path / "m/other", b"other")
        assert mortal.read("other") == b"other"
        assert sidecar.stop() == 0


def test_stop_with_a_file_that_cannot_be_saved(
    tmp_path: Path, mortal: Cloud, transport: TransportName
) -> None:
    sidecar = bucket_sidecar(tmp_path, mortal, options=HASTY, transport=transport)
    with sidecar:
        with opened(tmp_path / "m/model.bin", os.O_WRONLY | os.O_CREAT) as descriptor:
            os.write(descriptor, b"weights")
            mortal.server.stop()
            assert sidecar.stop() == 4
        text = (
            f"error SC1089 NOT_SAVED: 1 file(s) are only in the spool `{sidecar.state}`; start the "
            "sidecar again with the same state directory to finish\n"
            "not saved: data/train: model.bin (SC1047: S3 endpoint "
            f"127.0.0.1:{mortal.server.port} cannot be reached: connection refused; 7 bytes)\n"
        )
        assert sidecar.said() == text.splitlines()
        assert sidecar.termination_message.read_text() == text
        assert sidecar.mounted() == []
        assert sidecar.processes() == []


def test_what_was_not_saved_is_saved_by_the_next_start(tmp_path: Path, mortal: Cloud) -> None:
    sidecar = bucket_sidecar(tmp_path, mortal, options=HASTY)
    with sidecar:
        with opened(tmp_path / "m/model.bin", os.O_WRONLY | os.O_CREAT) as descriptor:
            os.write(descriptor, b"weights")
            mortal.server.stop()
            assert sidecar.stop() == 4
        mortal.server.start()
        sidecar.start()
        assert sidecar.stop() == 0
    assert mortal.keys() == ["model.bin"]
    assert mortal.read("model.bin") == b"weights"


def test_read_only_volume_refuses_every_change(
    tmp_path: Path, s3: Cloud, transport: TransportName
) -> None:
    s3.write("file", b"content")
    s3.write("folder/inner", b"content")
    root = tmp_path / "m"
    file, folder, new = root / "file", root / "folder", root / "new"
    with bucket_sidecar(tmp_path, s3, read_only=True, transport=transport) as sidecar:
        changes: list[Callable[[], object]] = [
            lambda: os.open(file, os.O_WRONLY),
            lambda: os.open(file, os.O_RDWR),
            lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
            lambda: os.open(new, os.O_WRONLY | os.O_CREAT, 0o644),
            lambda: os.truncate(file, 1),
            lambda: os.unlink(file),
            lambda: os.mkdir(new),
            lambda: os.rmdir(folder),
            lambda: os.rename(file, new),
            lambda: os.symlink("file", new),
            lambda: os.link(file, new),
            lambda: os.mkfifo(new),
            lambda: os.chmod(file, 0o600),
            lambda: os.chown(file, 1, 1),
            lambda: os.utime(file),
            lambda: os.setxattr(file, "user.name", b"value"),
            lambda: os.removexattr(file, "user.name"),
        ]
        for change in changes:
            fails_with(errno.EROFS, change)
        assert file.read_bytes() == b"content"
        assert s3.keys() == ["file", "folder/inner"]
        assert sidecar.stop() == 0


# --- processes -------------------------------------------------------------------------------


def test_worker_killed_on_libfuse(tmp_path: Path, s3: Cloud) -> None:
    s3.write("file", b"content")
    with bucket_sidecar(tmp_path, s3, transport="libfuse") as sidecar:
        path = tmp_path / "m/file"
        killed = sidecar.volume_status("train")["worker_pid"]
        os.kill(killed, signal.SIGKILL)
        sidecar.wait_for(lambda: sidecar.volume_status("train")["healed"]["remount"] == 1)
        sidecar.wait_for(lambda: sidecar.volume_status("train")["state"] == "serving")
        assert path.read_bytes() == b"content"
        assert sidecar.volume_status("train")["worker_pid"] != killed
        assert sidecar.metric("mount_sidecar_worker_restarts_total", healed="remount") == 1
        save(tmp_path / "m/new", b"new")
        assert s3.read("new") == b"new"
        assert sidecar.stop() == 0
    assert "SIGKILL" in sidecar.log()


def test_worker_killed_while_stopping(tmp_path: Path, mortal: Cloud) -> None:
    options = Options(retry_s=20)
    with (
        bucket_sidecar(tmp_path, mortal, options=options) as sidecar,
        opened(tmp_path / "m/model.bin", os.O_WRONLY | os.O_CREAT) as descriptor,
    ):
        os.write(descriptor, b"weights")
        # Not stop(): starting the server again forks, and the child's close of its copy of the
        # descriptor would save the file.
        mortal.server.pause()
        os.kill(sidecar.pid, signal.SIGTERM)
        sidecar.wait_for(lambda: sidecar.status()["phase"] == "draining")
        os.kill(sidecar.volume_status("train")["worker_pid"], signal.SIGKILL)
        sidecar.wait_for(lambda: "worker lost" in sidecar.log())
        mortal.server.resume()
        assert sidecar.wait() == 0
    assert mortal.read("model.bin") == b"weights"


def test_health_process_killed(tmp_path: Path, s3: Cloud) -> None:
    with bucket_sidecar(tmp_path, s3) as sidecar:
        port = sidecar.status()["http_port"]
        (killed,) = sidecar.children_named("health")
        os.kill(killed, signal.SIGKILL)

        def answers() -> bool:
            try:
                return sidecar.get("/livez")[0] == 200 and killed not in sidecar.children()
            except OSError:
                return False

        sidecar.wait_for(answers)
        assert sidecar.status()["http_port"] == port
        assert sidecar.metric("mount_sidecar_ready") == 1
        assert sidecar.stop() == 0


def test_stopped_before_ready(tmp_path: Path, s3: Cloud, transport: TransportName) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        secret = s3.server.credentials_json().replace(str(s3.server.port), str(port))
        sidecar = bucket_sidecar(tmp_path, s3, secret=secret, transport=transport)
        try:
            sidecar.start(wait=False)
            status_file = sidecar.state / "status.json"
            sidecar.wait_for(lambda: status_file.exists() and "probing" in status_file.read_text())
            assert sidecar.stop() == 0
            assert sidecar.said() == []
            assert sidecar.termination_message.read_text() == ""
            assert not (sidecar.shared / ".sidecar/ready").exists()
            assert sidecar.mounted() == []
            assert sidecar.processes() == []
            assert not (tmp_path / "m").exists()
        finally:
            sidecar.clean_up()


def test_started_again_after_everything_was_killed(
    tmp_path: Path, s3: Cloud, transport: TransportName
) -> None:
    s3.write("file", b"content")
    sidecar = bucket_sidecar(tmp_path, s3, transport=transport)
    with sidecar:
        sidecar.kill()
        assert sidecar.mounted() != []
        with pytest.raises(OSError, match=r"endpoint is not connected|connection abort"):
            os.stat(tmp_path / "m")
        (sidecar.shared / ".sidecar/ready").unlink()  # start() must wait for a new one.
        sidecar.start()
        assert re.search('msg="cleared stale mounts" volume=data/train', sidecar.log())
        assert (tmp_path / "m/file").read_bytes() == b"content"
        assert sidecar.stop() == 0
        assert sidecar.mounted() == []
        assert sidecar.processes() == []
