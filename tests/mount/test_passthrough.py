"""A file that lies whole on local disk is served by the kernel, not by the worker."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from sidecar.mounter.cache import DiskCache
from sidecar.mounter.store.base import ObjectInfo
from sidecar.mounter.transport.opens import JUDGED_OPENS
from sidecar.spec import Sizes
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar, bucket_volume


def wait_until(done: Callable[[], bool]) -> None:
    """Return once ``done`` says so."""
    deadline_s = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


CACHE_BYTES = 64 * 1024 * 1024


def place_copy(sidecar: Sidecar, bucket: str, key: str, version: str, content: bytes) -> Path:
    """Put a whole object where the cache would; its file."""
    cache = DiskCache(
        sidecar.state / "data-v" / "cache", f"s3://{bucket}", CACHE_BYTES, on_damage=lambda: None
    )
    entry = cache.enter(ObjectInfo(key, len(content), 0.0, version))
    assert entry is not None
    entry.store(0, memoryview(content))
    cache.leave(entry)
    return entry.path


def test_reads_do_not_reach_the_worker_and_survive_its_death(
    tmp_path: Path, s3_server: S3Server
) -> None:
    bucket = "passthrough"
    s3_server.create_bucket(bucket)
    remote, local = os.urandom(1_000_000), os.urandom(1_000_000)
    client = s3_server.client()
    etag = client.put_object(bucket, "whole", io.BytesIO(remote), len(remote)).etag
    client.put_object(bucket, "other", io.BytesIO(remote), len(remote))
    mount = tmp_path / "m"
    sidecar = Sidecar(
        tmp_path / "run",
        [bucket_volume("v", mount, "s3", f"s3://{bucket}", read_only=True)],
        secrets={"v": s3_server.credentials_json()},
        sizes=Sizes(cache_bytes=CACHE_BYTES),
    )
    place_copy(sidecar, bucket, "whole", etag, local)
    with sidecar:
        # Other content on purpose: it shows who answered.
        with (mount / "whole").open("rb") as first, (mount / "whole").open("rb") as second:
            assert first.read() == local
            os.kill(sidecar.volume_status("v")["worker_pid"], signal.SIGKILL)
            assert second.read() == local
            # An open while others are: the same way, whatever worker answers.
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
    remote, local = os.urandom(500_000), os.urandom(500_000)
    client = s3_server.client()
    etag = client.put_object(bucket, "whole", io.BytesIO(remote), len(remote)).etag
    for key in ("early", "late", "healed"):
        client.put_object(bucket, key, io.BytesIO(remote), len(remote))
    mount = tmp_path / "m"
    sidecar = Sidecar(
        tmp_path / "run",
        [bucket_volume("v", mount, "s3", f"s3://{bucket}", read_only=True)],
        secrets={"v": s3_server.credentials_json()},
        sizes=Sizes(cache_bytes=CACHE_BYTES),
    )
    place_copy(sidecar, bucket, "whole", etag, local)
    with sidecar:
        with (
            (mount / "whole").open("rb", buffering=0) as by_copy,
            (mount / "early").open("rb", buffering=0) as by_handle,
        ):
            for _ in range(JUDGED_OPENS):
                (mount / "whole").open("rb").close()
            # Each open is still answered: how would these two ever be closed?
            assert sidecar.metric("mount_sidecar_passthrough_opens_total") == JUDGED_OPENS + 1
            assert by_copy.read() == local
            assert by_handle.read() == remote
        wait_until(lambda: sidecar.metric("mount_sidecar_open_handles") == 0)
        for _ in range(3):
            (mount / "whole").open("rb").close()
        by_now = sidecar.metric("mount_sidecar_passthrough_opens_total")
        assert JUDGED_OPENS + 1 <= by_now <= JUDGED_OPENS + 2
        assert (mount / "whole").read_bytes() == local
        with (mount / "late").open("rb", buffering=0) as by_kernel:
            assert by_kernel.read(1000) == remote[:1000]
            os.kill(sidecar.volume_status("v")["worker_pid"], signal.SIGKILL)
            assert (mount / "healed").read_bytes() == remote
            assert by_kernel.read() == remote[1000:]
        assert sidecar.metric("mount_sidecar_passthrough_opens_total") == by_now
        assert sidecar.metric("mount_sidecar_open_handles") == 0
        assert sidecar.stop() == 0


def test_a_copy_that_is_altered_or_of_another_version_is_not_served(
    tmp_path: Path, s3_server: S3Server
) -> None:
    bucket = "passthrough-stale"
    s3_server.create_bucket(bucket)
    client = s3_server.client()
    etag = client.put_object(bucket, "altered", io.BytesIO(b"remote"), 6).etag
    client.put_object(bucket, "old", io.BytesIO(b"remote"), 6)
    mount = tmp_path / "m"
    sidecar = Sidecar(
        tmp_path / "run",
        [bucket_volume("v", mount, "s3", f"s3://{bucket}", read_only=True)],
        secrets={"v": s3_server.credentials_json()},
        sizes=Sizes(cache_bytes=CACHE_BYTES),
    )
    with place_copy(sidecar, bucket, "altered", etag, b"remote").open("r+b") as copy:
        copy.write(b"X")
    place_copy(sidecar, bucket, "old", "another-version", b"local!")
    with sidecar:
        assert (mount / "altered").read_bytes() == b"remote"
        assert (mount / "old").read_bytes() == b"remote"
        assert sidecar.metric("mount_sidecar_passthrough_opens_total") == 0
        assert sidecar.metric("mount_sidecar_disk_cache_damaged_blocks_total") >= 1
        # Fetched again, kept, whole: the next open needs nobody.
        wait_until(
            lambda: (
                (mount / "altered").read_bytes() == b"remote"
                and sidecar.metric("mount_sidecar_passthrough_opens_total") > 0
            )
        )
