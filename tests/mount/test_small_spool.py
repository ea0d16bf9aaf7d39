"""Much is written through a small spool, and the state directory never reaches its size limit."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.control.injection.pod_spec import OVERHEAD_BYTES
from sidecar.units import GIB, MIB
from tests.mount.buckets import bucket_sidecar
from tests.support.clouds import S3Cloud
from tests.support.strict_server import StrictS3Server

SPOOL_BYTES = 256 * MIB
BLOCK_BYTES = 4 * MIB
LARGEST_FILE_BYTES = GIB

pytestmark = pytest.mark.timeout(0)


def used_bytes(folder: Path) -> int:
    """Disk space of a folder, as a kubelet counts it; files may go meanwhile."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


class Gauge(threading.Thread):
    """Looks at a folder's size all the time; ``most_bytes`` is the largest that it saw."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.most_bytes = 0
        self._folder = folder
        self._ends = threading.Event()

    def run(self) -> None:
        while not self._ends.wait(0.2):
            self.most_bytes = max(self.most_bytes, used_bytes(self._folder))

    def stop(self) -> None:
        self._ends.set()
        self.join()


@pytest.mark.parametrize(
    "size_bytes",
    [pytest.param(GIB, id="short"), pytest.param(10 * GIB, id="soak", marks=pytest.mark.soak)],
)
def test_more_than_fits_into_the_spool(
    tmp_path: Path, strict_s3_server: StrictS3Server, size_bytes: int
) -> None:
    bucket = f"small-spool-{size_bytes // GIB}"
    strict_s3_server.create_bucket(bucket)
    cloud = S3Cloud(strict_s3_server, bucket)
    options = Options(spool_bytes=SPOOL_BYTES)
    with bucket_sidecar(tmp_path, cloud, options=options) as sidecar:
        gauge = Gauge(sidecar.state)
        gauge.start()
        blocks = os.urandom(BLOCK_BYTES), os.urandom(BLOCK_BYTES)
        for number in range(size_bytes // LARGEST_FILE_BYTES):
            path = tmp_path / f"m/file-{number}"
            written = hashlib.sha256()
            with path.open("wb", buffering=0) as file:
                for offset in range(0, LARGEST_FILE_BYTES, 2 * BLOCK_BYTES):
                    # In an order in which it needs the disk.
                    os.pwrite(file.fileno(), blocks[1], offset + BLOCK_BYTES)
                    os.pwrite(file.fileno(), blocks[0], offset)
                    written.update(b"".join(blocks))
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert hashlib.file_digest(file, "sha256").digest() == written.digest()
            cloud.delete(f"file-{number}")
        gauge.stop()
        assert sidecar.stop() == 0
    print(f"at most {gauge.most_bytes / MIB:.0f} MiB of disk")
    assert SPOOL_BYTES // 8 < gauge.most_bytes < SPOOL_BYTES + OVERHEAD_BYTES
