"""One bucket and one sidecar for a test."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar, bucket_volume

VOLUME = "bucket"


class Bucket(NamedTuple):
    """An empty bucket of the strict S3 server, seen by an independent client."""

    server: S3Server
    name: str

    def put(self, key: str, data: bytes) -> None:
        self.server.client().put_object(self.name, key, io.BytesIO(data), len(data))

    def delete(self, key: str) -> None:
        self.server.client().remove_object(self.name, key)

    def keys(self, prefix: str = "") -> list[str]:
        found = self.server.client().list_objects(self.name, prefix, recursive=True)
        return sorted(item.object_name for item in found)


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    name = f"healing-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(name)
    return Bucket(s3_server, name)


Start = Callable[..., Sidecar]


@pytest.fixture
def start(bucket: Bucket, tmp_path: Path) -> Iterator[Start]:
    """Starts a sidecar that mounts the bucket at ``mountpoint``, as the volume ``bucket``."""
    with ExitStack() as stack:

        def begin(*, read_only: bool = False, wait: bool = True, **settings: Any) -> Sidecar:
            sidecar = Sidecar(
                tmp_path / "run",
                [
                    bucket_volume(
                        VOLUME, tmp_path / "m", "s3", f"s3://{bucket.name}", read_only=read_only
                    )
                ],
                secrets={VOLUME: bucket.server.credentials_json()},
                **settings,
            )
            stack.callback(sidecar.clean_up)
            return sidecar.start(wait=wait)

        yield begin


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    """Where ``start`` mounts the bucket."""
    return tmp_path / "m"


@contextlib.contextmanager
def held_open(path: Path) -> Iterator[int]:
    """A descriptor of a file; errors of close(2) are ignored, since its mount may be gone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
