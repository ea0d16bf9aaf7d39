"""Another client changes the bucket while it is mounted."""

from __future__ import annotations

import errno
import io
import os
import time
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.units import MIB
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar, bucket_volume

LIFETIME_S = 0.3


def read_all_of(descriptor: int, size: int, byte: int) -> None:
    """Read a file that must consist of one repeated byte."""
    for offset in range(0, size, MIB):
        assert set(os.pread(descriptor, MIB, offset)) == {byte}


def test_a_handle_never_mixes_versions_and_a_new_open_sees_the_new_one(
    tmp_path: Path, s3_server: S3Server
) -> None:
    bucket = "remote-changes"
    s3_server.create_bucket(bucket)
    client = s3_server.client()
    size = 24 * MIB
    old, new = b"o" * size, b"n" * (size // 2)
    client.put_object(bucket, "file", io.BytesIO(old), len(old))
    mount = tmp_path / "m"
    with Sidecar(
        tmp_path / "run",
        [bucket_volume("v", mount, "s3", f"s3://{bucket}")],
        secrets={"v": s3_server.credentials_json()},
        options=Options(names_s=LIFETIME_S),
    ):
        descriptor = os.open(mount / "file", os.O_RDONLY)
        try:
            assert os.pread(descriptor, 100, 0) == old[:100]
            client.put_object(bucket, "file", io.BytesIO(new), len(new))
            time.sleep(2 * LIFETIME_S)
            # A new open: the complete new version, with its size.
            assert (mount / "file").stat().st_size == len(new)
            assert (mount / "file").read_bytes() == new
            # The old handle: bytes of the old version or ESTALE, nothing else.
            assert os.fstat(descriptor).st_size == len(old)
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                read_all_of(descriptor, size, ord("o"))
        finally:
            os.close(descriptor)
        client.remove_object(bucket, "file")
        time.sleep(2 * LIFETIME_S)
        assert not (mount / "file").exists()
