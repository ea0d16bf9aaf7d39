"""A file that lies whole on local disk is served by the kernel, not by the worker."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

from sidecar.contract.options import Options
from sidecar.contract.spec import StoreSource
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.fuse.open_policy import JUDGED_OPENS
from sidecar.mounter.store import open_store
from sidecar.mounter.store.credentials import VolumeCredentials
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import MIB
from tests.support.clouds import CountingObserver
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar, bucket_volume
from tests.support.waiting import wait_until

CACHE_BYTES = 64 * MIB


def cached(
    server: S3Server, bucket: str, directory: Path, mount: Path, cache_bytes: int = CACHE_BYTES
) -> Sidecar:
    """A read-only mount with a disk cache, not started yet."""
    return Sidecar(
        directory,
        [bucket_volume("v", mount, "s3", f"s3://{bucket}", read_only=True)],
        secrets={"v": server.credentials_json()},
        options=Options(cache="disk", cache_bytes=cache_bytes),
    )


def place_copy(sidecar: Sidecar, key: str, version: str, content: bytes) -> Path:
    """Store a whole object in the cache's folder; its file."""
    source = sidecar.spec.volumes[0].source
    assert isinstance(source, StoreSource)
    login = VolumeCredentials(source, sidecar.spec.roots.secrets)
    store = open_store(source, login, retry_budget_s=0, observer=CountingObserver())
    cache = DiskCache(
        sidecar.state / "data-v" / "cache", store.origin(), CACHE_BYTES, on_damage=lambda: None
    )
    entry = cache.acquire(ObjectInfo(key, len(content), 0.0, version))
    assert entry is not None
    entry.store(0, memoryview(content))
    cache.release(entry)
    return entry.path


def test_reads_do_not_reach_the_worker_and_survive_its_death(
    tmp_path: Path, s3_server: S3Server
) -> None:
    bucket = "passthrough"
    s3_server.create_bucket(bucket)
    remote, local = os.urandom(1_100_000), os.urandom(1_100_000)
    client = s3_server.client()
    etag = client.put_object(bucket, "whole", io.BytesIO(remote), len(remote)).etag
    client.put_object(bucket, "other", io.BytesIO(remote), len(remote))
    mount = tmp_path / "m"
    sidecar = cached(s3_server, bucket, tmp_path / "run", mount)
    place_copy(sidecar, "whole", etag, local)
    with sidecar:
        # The content differs on purpose, to show that the kernel reads the local file.
        with (mount / "whole").open("rb") as first, (mount / "whole").open("rb") as second:
            assert first.read() == local
            os.kill(sidecar.volume_status("v")["worker_pid"], signal.SIGKILL)
            assert second.read() == local
            # While a file is open, later opens use the same way, also with a new worker.
            assert (mount / "whole").read_bytes() == local
        assert (mount / "whole").read_bytes() == local
        assert (mount / "other").read_bytes() == remote
        assert sidecar.metric("mount_sidecar_passthrough_opens_total") == 4
        assert sidecar.metric("mount_sidecar_fetched_bytes_total") == len(remote)
        assert sidecar.stop() == 0


def test_many_opens_of_small_files_leave_opening_to_the_kernel(
    tmp_path: Path, s3_server: S3Server
) -> None:
    bucket = "passthrough-small"
    s3_server.create_bucket(bucket)
    remote, local = os.urandom(500_000), os.urandom(1_100_000)
    client = s3_server.client()
    etag = client.put_object(bucket, "whole", io.BytesIO(local[::-1]), len(local)).etag
    for key in ("early", "late", "healed"):
        client.put_object(bucket, key, io.BytesIO(remote), len(remote))
    mount = tmp_path / "m"
    sidecar = cached(s3_server, bucket, tmp_path / "run", mount)
    place_copy(sidecar, "whole", etag, local)
    with sidecar:
        with (
            (mount / "whole").open("rb", buffering=0) as by_copy,
            (mount / "early").open("rb", buffering=0) as by_handle,
        ):
            for _ in range(JUDGED_OPENS):
                (mount / "early").open("rb").close()
            # Opens are not left to the kernel: nobody would see the close of these two.
            (mount / "whole").open("rb").close()
            assert sidecar.metric("mount_sidecar_passthrough_opens_total") == 2
            assert by_copy.read() == local
            assert by_handle.read() == remote
        wait_until(lambda: sidecar.metric("mount_sidecar_open_handles") == 0, "both closed")
        for _ in range(3):
            (mount / "early").open("rb").close()
        assert (mount / "whole").read_bytes() == local
        assert sidecar.metric("mount_sidecar_passthrough_opens_total") == 2
        with (mount / "late").open("rb", buffering=0) as by_kernel:
            assert by_kernel.read(1000) == remote[:1000]
            os.kill(sidecar.volume_status("v")["worker_pid"], signal.SIGKILL)
            assert (mount / "healed").read_bytes() == remote
            assert by_kernel.read() == remote[1000:]
        assert sidecar.metric("mount_sidecar_passthrough_opens_total") == 2
        assert sidecar.metric("mount_sidecar_open_handles") == 0
        assert sidecar.stop() == 0


def test_a_copy_that_is_altered_or_of_another_version_is_not_served(
    tmp_path: Path, s3_server: S3Server
) -> None:
    bucket = "passthrough-stale"
    s3_server.create_bucket(bucket)
    client = s3_server.client()
    remote = b"remote" * 200_000
    etag = client.put_object(bucket, "altered", io.BytesIO(remote), len(remote)).etag
    client.put_object(bucket, "old", io.BytesIO(remote), len(remote))
    mount = tmp_path / "m"
    sidecar = cached(s3_server, bucket, tmp_path / "run", mount)
    with place_copy(sidecar, "altered", etag, remote).open("r+b") as copy:
        copy.write(b"X")
    place_copy(sidecar, "old", "another-version", b"local!" * 200_000)
    with sidecar:
        assert (mount / "altered").read_bytes() == remote
        assert (mount / "old").read_bytes() == remote
        assert sidecar.metric("mount_sidecar_passthrough_opens_total") == 0
        assert sidecar.metric("mount_sidecar_disk_cache_damaged_blocks_total") >= 1
        # Fetched again and complete in the cache: the next open uses passthrough.
        wait_until(
            lambda: (
                (mount / "altered").read_bytes() == remote
                and sidecar.metric("mount_sidecar_passthrough_opens_total") > 0
            ),
            "opened by its copy",
        )


def test_a_file_that_was_closed_makes_room_for_the_next_one(
    tmp_path: Path, s3_server: S3Server
) -> None:
    bucket = "passthrough-room"
    s3_server.create_bucket(bucket)
    content = os.urandom(48 * MIB)
    for key in ("first", "second"):
        s3_server.client().put_object(bucket, key, io.BytesIO(content), len(content))
    mount = tmp_path / "m"
    with cached(s3_server, bucket, tmp_path / "run", mount) as sidecar:
        for opens, key in enumerate(("first", "second"), 1):

            def opened_by_copy(key: str = key, opens: int = opens) -> bool:
                with (mount / key).open("rb") as file:
                    # Only its pages: dropping all caches could make the kernel forget the inode.
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    assert file.read() == content
                return sidecar.metric("mount_sidecar_passthrough_opens_total") >= opens

            wait_until(opened_by_copy, f"{key} is kept")
        assert sidecar.stop() == 0


def test_small_files_are_kept_and_read_again_without_the_store(
    tmp_path: Path, s3_server: S3Server
) -> None:
    """Read whole, which needs no read window, and in part."""
    bucket = "kept-small"
    s3_server.create_bucket(bucket)
    content = {f"small{number}": os.urandom(1 + number * 9973) for number in range(60)}
    for key, data in content.items():
        s3_server.client().put_object(bucket, key, io.BytesIO(data), len(data))
    kept_bytes = "mount_sidecar_disk_cache_used_bytes"
    mount = tmp_path / "m"
    sidecar = cached(s3_server, bucket, tmp_path / "run", mount)
    with sidecar:
        for key, data in content.items():
            assert (mount / key).read_bytes() == data
        sidecar.wait_for(lambda: sidecar.metric(kept_bytes) >= sum(map(len, content.values())))
        assert sidecar.stop() == 0
    with cached(s3_server, bucket, tmp_path / "run", mount) as again:
        for number, (key, data) in enumerate(content.items()):
            with (mount / key).open("rb", buffering=0) as file:
                if number % 2:
                    file.seek(number)
                assert file.read() == data[number if number % 2 else 0 :]
        assert again.metric("mount_sidecar_fetched_bytes_total") == 0
        assert again.stop() == 0
