"""A failing store is logged once at its begin and once at its end, and shown in the status."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.options import CacheName, Options, TransportName
from sidecar.units import MIB
from tests.mount.buckets import Refusing, bucket_sidecar
from tests.support.clouds import Cloud, S3Cloud
from tests.support.killer import kill_worker
from tests.support.servers import HttpResponder, MinioServer, S3Server, answer
from tests.support.sidecar import Sidecar

HASTY = Options(retry_s=0.2, names_s=1)


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
    if not mortal_server.running:
        mortal_server.start()


def fails_with(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=rf"^\[Errno {code}\] "):
        call()


def lines(sidecar: Sidecar, message: str) -> list[dict[str, str]]:
    """The fields of the log's lines with a message."""
    found = [line for line in sidecar.log().splitlines() if f'msg="{message}"' in line]
    return [dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line)) for line in found]


def begun(sidecar: Sidecar) -> Counter[tuple[str, str]]:
    """Number of log lines for the begin of a failure, by operation and code."""
    return Counter((f["operation"], f["code"]) for f in lines(sidecar, "the store fails"))


def ended(sidecar: Sidecar) -> Counter[tuple[str, str]]:
    """Number of log lines for the end of a failure."""
    return Counter((f["operation"], f["code"]) for f in lines(sidecar, "the store works again"))


def failing(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    """Current failures on the status page, by operation."""
    return {item["operation"]: item for item in sidecar.volume_status("train")["failing"]}


def save(path: Path) -> None:
    path.write_bytes(b"content")


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_an_outage_is_said_once_and_shown_until_it_is_over(
    tmp_path: Path, mortal: Cloud, transport: TransportName
) -> None:
    """No matter what a program tries meanwhile, and how often."""
    mortal.write("large", os.urandom(24 * MIB))
    for name in ("folder/file", "gone", "old"):
        mortal.write(name, b"x")
    with bucket_sidecar(tmp_path, mortal, options=HASTY, transport=transport) as sidecar:
        mount = tmp_path / "m"
        assert sidecar.volume_status("train")["error"] is None
        with opened(mount / "large") as reading, opened(mount / "w", os.O_WRONLY | os.O_CREAT) as w:
            os.write(w, b"content")
            os.stat(mount / "gone"), os.stat(mount / "old")
            mortal.server.stop()
            calls: list[Callable[[], object]] = [
                lambda: os.stat(mount / "folder/file"),
                lambda: os.listdir(mount / "folder"),
                lambda: os.mkdir(mount / "new"),
                lambda: os.unlink(mount / "gone"),
                lambda: os.rename(mount / "old", mount / "renamed"),
                lambda: save(mount / "file"),
                lambda: os.fsync(w),
                lambda: os.pread(reading, MIB, 12 * MIB),
            ]
            for call in calls * 3:
                fails_with(errno.EIO, call)
            often = {"list", "read", "write"}  # Each of the calls begins or ends with one.
            sidecar.wait_for(lambda: all(failing(sidecar)[kind]["count"] >= 3 for kind in often))
            counts = failing(sidecar)
            error = sidecar.volume_status("train")["error"]
            for failure in counts.values():
                assert failure["code"] == "SC1047"
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", failure["first"])
                assert failure["first"] <= failure["last"]
            assert error in counts.values()
            assert error["name"] == "ENDPOINT_UNREACHABLE"
            assert "connection refused" in error["message"]
            assert json.loads(sidecar.get("/statusz")[1])["volumes"][0]["error"] is not None
            errors = "mount_sidecar_operation_errors_total"
            assert sidecar.metric(errors, code="SC1047") >= 3 * len(calls)
            for operation in ("read", "fsync"):
                assert sidecar.metric(errors, operation=operation, code="SC1047") >= 3
            during = begun(sidecar)
            mortal.server.start()

            def works() -> bool:
                try:
                    os.pread(reading, MIB, 12 * MIB)
                    os.listdir(mount / "folder")
                    os.fsync(w)
                    for name in ("again", "file"):
                        save(mount / name)
                        os.unlink(mount / name)
                except OSError as error:  # the budget for an outage is short, and the machine busy
                    if error.errno != errno.EIO:
                        raise
                    return False
                return sidecar.volume_status("train")["error"] is None

            sidecar.wait_for(works)
        assert during == {(operation, "SC1047"): 1 for operation in counts}
        after = begun(sidecar)  # A server that is not up yet may answer 503: another failure.
        assert {key: after[key] for key in during} == during
        assert {code for _, code in after} <= {"SC1047", "SC1045"}
        assert ended(sidecar) == after
        for line in lines(sidecar, "the store works again"):
            assert int(line["seconds"]) >= 0
            if line["code"] == "SC1047":
                assert int(line["failures"]) >= counts[line["operation"]]["count"]
        # There is no line for each call.
        warned = [line for line in sidecar.log().splitlines() if "cannot be reached" in line]
        assert len(warned) <= len(counts) + 2  # Files that the timer could not save have a line.
        assert sidecar.stop() == 0


def read_without_pages(path: Path) -> bytes:
    """Read a file without the kernel's pages."""
    with opened(path) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.read(descriptor, 100)


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_what_a_reader_process_is_refused_is_said_by_the_worker_and_by_its_successor(
    tmp_path: Path, s3: Cloud, transport: TransportName, cache: CacheName
) -> None:
    store = Refusing()
    settings: dict[str, Any] = {"read_only": True, "bucket": "bucket", "transport": transport}
    settings["options"] = replace(HASTY, cache=cache)
    with store.server, bucket_sidecar(tmp_path, s3, secret=store.secret, **settings) as sidecar:
        path = tmp_path / "m/file"

        def refused() -> None:
            fails_with(errno.EACCES, lambda: read_without_pages(path))

        for _ in range(8):
            refused()
        sidecar.wait_for(lambda: failing(sidecar).get("read", {}).get("count", 0) >= 8)
        assert failing(sidecar)["read"]["code"] == "SC1041"
        assert "`file`" in sidecar.volume_status("train")["error"]["message"]
        assert sidecar.metric("mount_sidecar_operation_errors_total", code="SC1041") >= 8
        if transport == "kernel":  # libfuse mounts again; the old descriptor would be stale.
            first = failing(sidecar)["read"]["first"]
            kill_worker(sidecar, "train")
            refused()
            sidecar.wait_for(lambda: failing(sidecar)["read"]["count"] >= 9)
            assert failing(sidecar)["read"]["first"] == first
        assert begun(sidecar) == {("read", "SC1041"): 1}
        assert not ended(sidecar)
        store.refusal = None

        def works() -> bool:
            assert read_without_pages(path) == b"content"
            return sidecar.volume_status("train")["error"] is None

        sidecar.wait_for(works)
        assert ended(sidecar) == {("read", "SC1041"): 1}
        assert failing(sidecar) == {}
        assert sidecar.stop() == 0
    assert sidecar.log().count("SC1041") == 2  # Begin and end.


READS = 64
STRIDE_BYTES = 8 * MIB


def test_a_login_that_is_refused_while_a_file_is_read_is_one_line(
    tmp_path: Path, s3: Cloud
) -> None:
    """As after a rotation, with random reads that background readahead follows: it is refused."""
    size_bytes = 2 * READS * STRIDE_BYTES
    listing = (
        f"<ListBucketResult><Contents><Key>file</Key><Size>{size_bytes}</Size><ETag>1</ETag>"
        "<LastModified>2020-01-01T00:00:00Z</LastModified></Contents></ListBucketResult>"
    )

    def respond(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.partition("?")[0] != "/bucket/file":
            answer(handler, 200, listing.encode())
            return
        first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
        if first < size_bytes // 2:
            answer(handler, 403, b"<Error><Code>InvalidAccessKeyId</Code></Error>")
            return
        span = {"Content-Range": f"bytes {first}-{last}/{size_bytes}", "ETag": '"1"'}
        answer(handler, 206, bytes(last - first + 1), span)

    server = HttpResponder(respond)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    secret = json.dumps({**keys, "AWS_ENDPOINT_URL": server.endpoint})
    settings: dict[str, Any] = {"read_only": True, "options": HASTY, "bucket": "bucket"}
    with server, bucket_sidecar(tmp_path, s3, secret=secret, **settings) as sidecar:
        with opened(tmp_path / "m/file") as file:
            places = [number * 37 % READS for number in range(READS)]
            for place in places:
                offset = size_bytes // 2 + place * STRIDE_BYTES
                assert os.pread(file, MIB, offset) == bytes(MIB)
            fails_with(errno.EACCES, lambda: os.pread(file, MIB, 0))
            sidecar.wait_for(lambda: failing(sidecar).get("read", {}).get("count", 0) >= 2)
        assert failing(sidecar)["read"]["code"] == "SC1043"
        assert sidecar.stop() == 0
    assert sidecar.log().count("rejects the login") == 1
