"""How many parts go to the store at a time: one connection carries little of what it takes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.contract.spec import Volume
from sidecar.units import MIB
from tests.reading.buckets import make_bucket
from tests.support.clouds import S3Cloud
from tests.support.proxy import Ends, Head, Proxy
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar

PART_BYTES = 5 * MIB
AT_ONCE = 8


class Gate(Proxy):
    """Forwards no part until ``AT_ONCE`` have come, or 12 s are over: less than the time-out.

    Attributes:
        most: how many it has had at a time.
    """

    def __init__(self, upstream_port: int) -> None:
        super().__init__(upstream_port)
        self.most = 0
        self._here = 0
        self._changed = threading.Condition()

    def exchange(self, request: Head, body: bytes, ends: Ends) -> bool:
        if "partNumber=" not in request.target:
            return super().exchange(request, body, ends)
        with self._changed:
            self._here += 1
            self.most = max(self.most, self._here)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most >= AT_ONCE, 12)
        try:
            return super().exchange(request, body, ends)
        finally:
            with self._changed:
                self._here -= 1


@pytest.fixture
def gate(s3_server: S3Server) -> Iterator[Gate]:
    with Gate(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def bucket(s3_server: S3Server) -> S3Cloud:
    return make_bucket(s3_server)


@pytest.mark.parametrize("files", [1, 4])
def test_parts_go_side_by_side(
    gate: Gate, bucket: S3Cloud, s3_server: S3Server, tmp_path: Path, files: int
) -> None:
    """Those of one checkpoint, and those of several that are saved at the same time."""
    mount = tmp_path / "m"
    secret = {**s3_server.credentials(), "AWS_ENDPOINT_URL": gate.endpoint}
    sidecar = Sidecar(
        tmp_path / "run",
        [Volume(name="out", kind="outputs", path=str(mount), source=bucket.source())],
        outputs_path=mount,
        secrets={"cloud": json.dumps(secret)},
        options=Options(part_bytes=PART_BYTES),
    )

    def write(name: str) -> None:
        with (mount / name).open("wb", buffering=0) as file:
            for _ in range(AT_ONCE // files):
                file.write(bytes([ord(name)]) * PART_BYTES)

    names = "abcd"[:files]
    with sidecar, ThreadPoolExecutor(files) as threads:
        list(threads.map(write, names))
        assert sidecar.stop() == 0
    assert gate.most == AT_ONCE
    for name in names:
        assert bucket.read(name) == bytes([ord(name)]) * (AT_ONCE // files) * PART_BYTES
