"""The benchmarks' own S3: what it keeps, when it answers, and what it counts."""

from __future__ import annotations

import errno
import http.client
import io
import json
import math
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from minio import Minio, S3Error
from minio.commonconfig import ComposeSource

from benchmarks.far_store import Accidents, Behaviour, Delays
from benchmarks.memory_objects import BLOCK
from benchmarks.sendfile_server import COUNTS
from sidecar.units import MIB
from tests.support.waiting import wait_until

PART_BYTES = 5 * MIB


@contextmanager
def serving(*options: str) -> Iterator[int]:
    """The port of a server that takes uploads."""
    argv = [sys.executable, "-m", "benchmarks.sendfile_server", "1", "3000000", "3", "1000"]
    process = subprocess.Popen(
        [*argv, "--processes", "1", *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        port, _ = process.stdout.readline(), process.stdout.readline()
        yield int(port)
        process.send_signal(signal.SIGTERM)
        assert "bytes_in" in json.loads(process.communicate(timeout=300)[0])
    finally:
        process.kill()
        process.communicate()


def client(port: int, address: str = "127.0.0.1") -> Minio:
    return Minio(
        f"{address}:{port}",
        access_key="key",
        secret_key="secret",
        secure=False,
        region="us-east-1",
    )


def connected(port: int) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30))


def counts(port: int, method: str = "GET") -> dict[str, Any]:
    with connected(port) as connection:
        connection.request(method, COUNTS)
        facts: dict[str, Any] = json.loads(connection.getresponse().read())
        return facts


def test_what_is_uploaded_in_parts_is_read_back_and_counted() -> None:
    data = bytes(range(251)) * (12 * MIB // 251)
    with serving("--mb-per-s", "200") as port:
        store = client(port)
        store.put_object(
            "bench",
            "folder/a",
            io.BytesIO(data),
            len(data),
            part_size=PART_BYTES,
            metadata={"x-amz-meta-mode": "420"},
        )
        assert store.get_object("bench", "folder/a").read() == data
        part = store.get_object("bench", "folder/a", offset=PART_BYTES - 10, length=20).read()
        assert part == data[PART_BYTES - 10 : PART_BYTES + 10]
        about = store.stat_object("bench", "folder/a")
        assert about.metadata is not None
        assert (about.size, about.metadata["x-amz-meta-mode"]) == (len(data), "420")
        facts = counts(port)
        assert facts["requests"]["UploadPart"] == 3
        assert facts["bytes_in"] >= len(data)
        assert facts["bytes_out"] == len(data) + 20
        assert 1 <= facts["busy_most"] <= 3
        assert counts(port, "DELETE")["bytes_in"] == 0


def test_a_part_may_be_copied() -> None:
    """Without that, the close of a file that was saved meanwhile found its own object gone."""
    data = bytes(range(251)) * (13 * MIB // 251)
    with serving() as port:
        store = client(port)
        store.put_object("bench", "a", io.BytesIO(data), len(data), part_size=PART_BYTES)
        large = ComposeSource("bench", "a", offset=MIB, length=11 * MIB)
        small = ComposeSource("bench", "a", offset=3, length=7)
        store.compose_object("bench", "b", [large, small])
        assert store.get_object("bench", "b").read() == data[MIB : 12 * MIB] + data[3:10]
        other = ComposeSource("bench", "a", offset=3, length=7, match_etag="another")
        with pytest.raises(S3Error, match="PreconditionFailed"):
            store.compose_object("bench", "b", [large, other])


def test_names_are_listed_and_deleted() -> None:
    with serving() as port:
        store = client(port)
        names = [one.object_name for one in store.list_objects("bench")]
        assert names == ["large-0", "small/"]
        with connected(port) as connection:
            connection.request("GET", "/bench?list-type=2&max-keys=0")
            assert b"<IsTruncated>false" in connection.getresponse().read()
        store.remove_object("bench", "small/1")
        names = [one.object_name for one in store.list_objects("bench", recursive=True)]
        assert names == ["large-0", "small/0", "small/2"]
        assert store.get_object("bench", "large-0", offset=1).read(300) == BLOCK[1:301]


def test_conditions_are_obeyed() -> None:
    with serving() as port, connected(port) as connection:
        statuses = []
        for headers in ({"If-None-Match": "*"}, {"If-None-Match": "*"}, {"If-Match": '"other"'}):
            connection.request("PUT", "/bench/new", body=b"new", headers=headers)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        assert statuses == [200, 412, 412]


def test_chunks_with_checksums_are_taken_apart() -> None:
    body = b"6;chunk-signature=00\r\nabc\r\nd\r\n2\r\nef\r\n0\r\nx-amz-checksum-crc32c:AAAA\r\n\r\n"
    headers = {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}
    with serving() as port, connected(port) as connection:
        connection.request("PUT", "/bench/new", body=body, headers=headers)
        connection.getresponse().read()
        assert client(port).get_object("bench", "new").read() == b"abc\r\ndef"


def test_every_address_of_the_name_answers() -> None:
    with serving("--addresses", "9") as port:
        for number in (1, 2, 9):
            client(port, f"127.0.0.{number}").stat_object("bench", "large-0")
        assert set(counts(port)["connections"]) == {"127.0.0.1", "127.0.0.2", "127.0.0.9"}


def test_some_requests_have_no_answer() -> None:
    with serving("--never", "1") as port, connected(port) as connection:
        connection.timeout = 0.5
        connection.request("GET", "/bench/large-0")
        with pytest.raises(TimeoutError):
            connection.getresponse()
        assert counts(port)["requests"] == {"GetObject": 1}


def test_a_request_is_reset_in_its_midst() -> None:
    def ask(method: str, path: str, body: bytes | None) -> None:
        with connected(port) as connection:
            connection.request(method, path, body=body)
            connection.getresponse().read()

    with serving("--reset", "1") as port:
        for method, key, body in (("GET", "large-0", None), ("PUT", "new", bytes(100_000))):
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(method, f"/bench/{key}", body)
        facts = counts(port)
        assert facts["accidents"] == {"reset": 2}
        assert facts["bytes_out"] < 3_000_000


def test_addresses_die_one_after_the_other() -> None:
    calm = Behaviour()
    hosts = [f"127.0.0.{number}" for number in range(1, 10)]
    assert not any(map(Accidents(calm, 8).dead_s, hosts))
    dying = Accidents(replace(calm, dying_s=3600.0), 2)
    assert 3500 < dying.dead_s(hosts[1]) <= 3600
    assert [dying.dead_s(hosts[number]) for number in (0, 2, 3)] == [0, 0, 0]

    def refuses(address: str) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((address, port)) == errno.ECONNREFUSED

    with serving("--addresses", "3", "--dying-s", "3600") as port:
        wait_until(lambda: refuses("127.0.0.2"), "the first one is dead")
        for address in ("127.0.0.1", "127.0.0.3"):
            assert client(port, address).stat_object("bench", "large-0").size == 3_000_000


def test_delays_are_the_same_again_and_have_a_tail() -> None:
    delays = Delays(Behaviour(delay_s=0.015, spread=0.4, late=0.01, never=0.001, seed=7))
    first = [delays.next() for _ in range(20_000)]
    delays.reset()
    assert [delays.next() for _ in range(20_000)] == first
    assert 0.0005 < first.count(math.inf) / len(first) < 0.002
    assert 0.008 < sum(delay > 0.5 for delay in first) / len(first) < 0.012
    assert 0.014 < sorted(first)[len(first) // 2] < 0.016
