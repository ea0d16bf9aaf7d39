"""Answers that no healthy server gives, from the test's own servers."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar.contract.spec import StoreSource
from sidecar.errors import AccessDenied, EndpointUnreachable, Stale, StoreProtocolError, Unavailable
from sidecar.mounter.store import open_store, signing
from sidecar.mounter.store.http import timeouts
from sidecar.mounter.store.interface import Condition, Store
from sidecar.mounter.store.s3 import store as s3_module
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.units import MIB
from tests.store.raw import FixedCredentials
from tests.support.clouds import Cloud, CountingObserver, RcloneCloud, S3Cloud
from tests.support.faults import FaultProxy
from tests.support.servers import HttpResponder, RcloneServer, S3Server, answer

BODY = bytes(range(200))
ETAG = {"ETag": '"v1"'}

Respond = Callable[[BaseHTTPRequestHandler], None]


class Scripted:
    """An S3 endpoint that gives scripted answers in turn, the last one forever."""

    def __init__(self, *script: Respond, retry_budget_s: float = 20.0) -> None:
        self.ranges: list[str] = []
        self._script = list(script)
        self._responder = HttpResponder(self._respond).start()
        self.observer = CountingObserver()
        self.store = open_store(
            StoreSource(store="s3", url="s3://bucket", bucket="bucket"),
            FixedCredentials(
                S3Credentials(
                    access_key_id="key",
                    secret_access_key="canary-secret",
                    endpoint_url=self._responder.endpoint,
                )
            ),
            retry_budget_s=retry_budget_s,
            observer=self.observer,
        )

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        self.ranges.append(handler.headers["Range"])
        step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        step(handler)

    def read(self, offset: int = 0, size: int = 100) -> bytes:
        buffer = memoryview(bytearray(size))
        return bytes(buffer[: self.store.get_range("key", "v1", offset, buffer)])

    @property
    def reasons(self) -> list[str]:
        return [reason for _, reason in self.observer.retries]

    def stop(self) -> None:
        self.store.close()
        self._responder.stop()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(*script: Respond, **options: float) -> Scripted:
        made.append(Scripted(*script, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def silent() -> Iterator[Respond]:
    release = threading.Event()

    def respond(handler: BaseHTTPRequestHandler) -> None:
        release.wait(60)
        handler.close_connection = True

    yield respond
    release.set()


def good(handler: BaseHTTPRequestHandler) -> None:
    first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
    last = min(last, len(BODY) - 1)
    span = {"Content-Range": f"bytes {first}-{last}/{len(BODY)}"}
    answer(handler, 206, BODY[first : last + 1], {**ETAG, **span})


def status(code: int, **headers: str) -> Respond:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: answer(handler, code, b"", fields)


def truncated(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(206)
    for name, value in {**ETAG, "Content-Range": "bytes 0-99/200", "Content-Length": "100"}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(BODY[:40])
    handler.close_connection = True


def hung_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (truncated, "truncated"),
        (hung_up, "connection"),
        (status(500), "server_error"),
        (status(503), "throttled"),
        (status(429), "throttled"),
        (status(503, Retry_After="1"), "throttled"),
    ],
)
def test_a_passing_fault_is_tried_again_and_counted(
    scripted: Callable[..., Scripted], fault: Respond, reason: str
) -> None:
    server = scripted(fault, good)
    assert server.read() == BODY[:100]
    assert server.reasons == [reason]


@pytest.mark.parametrize("fault", [truncated, status(500), status(503, Retry_After="3600")])
def test_a_lasting_fault_ends_with_the_budget(
    scripted: Callable[..., Scripted], fault: Respond
) -> None:
    server = scripted(fault, retry_budget_s=0.3)
    with pytest.raises((Unavailable, StoreProtocolError)):
        server.read()


def test_a_stalled_connection_is_dropped_and_asked_again(
    scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch, silent: Respond
) -> None:
    monkeypatch.setattr(timeouts, "SOCKET_TIMEOUT_S", 0.3)
    server = scripted(silent, good)
    assert server.read() == BODY[:100]
    assert server.reasons == ["stalled"]


@pytest.mark.parametrize("silences", [0, 1, 2])
def test_the_first_silences_do_not_count_for_the_budget(
    scripted: Callable[..., Scripted],
    monkeypatch: pytest.MonkeyPatch,
    silent: Respond,
    silences: int,
) -> None:
    """A store that answers everything but that is no outage."""
    monkeypatch.setattr(timeouts, "SOCKET_TIMEOUT_S", 1.0)
    server = scripted(*[silent] * silences, truncated, good, retry_budget_s=0.8)
    assert server.read() == BODY[:100]
    assert server.reasons == ["stalled"] * silences + ["truncated"]


def test_silence_without_an_end_ends(
    scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch, silent: Respond
) -> None:
    monkeypatch.setattr(timeouts, "SOCKET_TIMEOUT_S", 0.3)
    server = scripted(*[silent] * 20, retry_budget_s=0.3)
    with pytest.raises(EndpointUnreachable):
        server.read()
    assert 2 <= len(server.reasons) <= 4


def test_the_wait_for_a_silent_connection_adapts(
    scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch, silent: Respond
) -> None:
    monkeypatch.setattr(timeouts, "SHORTEST_TIMEOUT_S", 0.05)
    server = scripted(*[good] * 10, silent, good)  # too few to tell what is slow
    for _ in range(11):
        assert server.read() == BODY[:100]
    assert set(server.reasons) == {"stalled"}  # a slow machine stalls by itself, too


def test_the_timeout_follows_the_answers_and_doubles_with_each_stall() -> None:
    patience = timeouts.AdaptiveTimeout()
    assert patience.timeout_s == timeouts.SOCKET_TIMEOUT_S  # nothing is known yet
    for _ in range(50):
        patience.answered(0.3)
    usual_s = patience.timeout_s
    assert 0.9 <= usual_s < 1.0
    patience.stalled()
    assert patience.timeout_s == 2 * usual_s
    for _ in range(10):
        patience.stalled()
    assert patience.timeout_s == timeouts.SOCKET_TIMEOUT_S
    patience.answered(0.3)
    assert patience.timeout_s < 1.0
    for _ in range(50):
        patience.answered(0.001)
    assert patience.timeout_s == timeouts.SHORTEST_TIMEOUT_S


def test_a_broken_body_goes_on_where_it_stopped(scripted: Callable[..., Scripted]) -> None:
    server = scripted(truncated, good)
    assert server.read() == BODY[:100]
    assert server.ranges == ["bytes=0-99", "bytes=40-99"]


def test_a_connection_closed_while_idle_is_no_outage(scripted: Callable[..., Scripted]) -> None:
    def last_on_this_connection(handler: BaseHTTPRequestHandler) -> None:
        good(handler)
        handler.close_connection = True

    server = scripted(last_on_this_connection)
    assert [server.read(offset) for offset in (0, 50)] == [BODY[:100], BODY[50:150]]
    assert server.reasons == []


def test_a_connection_reset_within_an_answer_is_counted(
    scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reset(handler: BaseHTTPRequestHandler) -> None:
        truncated(handler)
        # Closed without shutdown(2), which would end the answer regularly.
        monkeypatch.setattr(handler.server, "shutdown_request", handler.server.close_request)
        at_once = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)

    server = scripted(good, reset, good)
    assert [server.read(), server.read()] == [BODY[:100], BODY[:100]]
    assert server.reasons == ["connection"]


def lying(span: str, code: int = 206) -> Respond:
    return lambda handler: answer(handler, code, BODY[:100], {**ETAG, "Content-Range": span})


@pytest.mark.parametrize(
    "fault",
    [
        lying("bytes 0-99/200"),  # another offset
        lying("bytes 50-99/200"),  # shorter than the object
        lambda handler: answer(handler, 200, BODY[:100], ETAG),  # the length fits by chance
        lambda handler: answer(handler, 206, BODY[:100]),  # no version
    ],
)
def test_bytes_from_a_wrong_place_are_never_given_out(
    scripted: Callable[..., Scripted], fault: Respond
) -> None:
    with pytest.raises(StoreProtocolError):
        scripted(fault).read(offset=50)


def test_a_whole_object_is_taken_from_a_server_without_ranges(
    scripted: Callable[..., Scripted],
) -> None:
    server = scripted(lambda handler: answer(handler, 200, BODY[:100], ETAG))
    assert server.read(size=150) == BODY[:100]


def test_another_version_is_stale_even_if_the_condition_was_ignored(
    scripted: Callable[..., Scripted],
) -> None:
    def other(handler: BaseHTTPRequestHandler) -> None:
        span = {"Content-Range": "bytes 0-99/200", "Last-Modified": "Tue, 24 Nov 2026 12:00:00 GMT"}
        answer(handler, 206, BODY[:100], {"ETag": '"v2"', **span})

    with pytest.raises(Stale):
        scripted(other).read()


def test_forbidden_is_asked_once_more_and_then_told(
    scripted: Callable[..., Scripted],
) -> None:
    server = scripted(status(403))
    with pytest.raises(AccessDenied) as caught:
        server.read()
    assert len(server.ranges) == 2
    assert server.reasons == ["credentials"]
    assert "canary" not in caught.value.line() + repr(caught.value) + repr(server.store)


# --- real servers, rare paths ------------------------------------------------------------


@pytest.fixture
def s3_cloud(s3_server: S3Server, tmp_path: Path, request: pytest.FixtureRequest) -> Cloud:
    bucket = f"faults-{abs(hash(request.node.name)) % 10**9}"
    s3_server.create_bucket(bucket)
    cloud = S3Cloud(s3_server, bucket)
    cloud.write_secret(tmp_path / "secrets")
    return cloud


@pytest.fixture
def s3_store(s3_cloud: Cloud, tmp_path: Path) -> Iterator[Store]:
    store = s3_cloud.open(tmp_path / "secrets")
    yield store
    store.close()


def test_a_large_copy_goes_in_parts(
    s3_cloud: Cloud, s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "MAX_COPY_BYTES", 8 * MIB)
    monkeypatch.setattr(s3_module, "COPY_PART_BYTES", 5 * MIB)
    content = bytes(range(256)) * (12 * MIB // 256)
    s3_store.put("source", content, {"mode": "640"})
    made = s3_store.copy("source", "target")
    assert s3_cloud.read("target") == content
    assert made.size_bytes == len(content)
    head = s3_store.head("target")
    assert (head.version, head.metadata) == (made.version, {"mode": "640"})


def open_uploads(cloud: S3Cloud) -> list[str]:
    listed = cloud.server.client()._list_multipart_uploads(cloud.bucket, prefix="dir/object")
    return [str(upload.upload_id) for upload in listed.uploads]


def test_uploads_whose_numbers_never_arrived_are_removed(
    s3_cloud: S3Cloud, s3_store: Store, tmp_path: Path
) -> None:
    """Only those without a part and begun since then: others may be another client's."""
    began_s = time.time()
    before = s3_cloud.open(tmp_path / "secrets")
    other = before.start_upload("dir/object")
    other.put_part(1, b"x" * 1024)
    before.start_upload("dir/object")
    before.close()
    s3_store.abandon("dir/object", {"since_s": began_s + 3600})
    assert len(open_uploads(s3_cloud)) == 2
    s3_store.abandon("dir/object", {"since_s": began_s})
    assert open_uploads(s3_cloud) == [other.state["upload"]]
    other.abort()


def test_what_was_begun_meanwhile_is_not_removed(s3_store: Store) -> None:
    """A predecessor's uploads are removed while the file is already uploaded again."""
    began_s = time.time()
    begun = s3_store.start_upload("key")
    s3_store.abandon("key", {"since_s": began_s})
    begun.put_part(1, b"data")
    begun.complete()
    resumed = s3_store.resume_upload("key", s3_store.start_upload("key").state, {})
    s3_store.abandon("key", {"since_s": began_s})
    resumed.put_part(1, b"more")
    assert resumed.complete().size_bytes == 4


def test_nothing_is_begun_while_what_was_left_is_removed(s3_store: Store) -> None:
    """The id of an upload that is being created is not known yet."""
    began_s = time.time()

    def begin(_: int) -> None:
        upload = s3_store.start_upload("key")
        time.sleep(0.1)  # Let abandon() run meanwhile.
        upload.put_part(1, b"data")
        upload.abort()

    with ThreadPoolExecutor(8) as threads:
        done = [threads.submit(begin, number) for number in range(40)]
        while not all(future.done() for future in done):
            s3_store.abandon("key", {"since_s": began_s})
            time.sleep(0.02)  # Otherwise it would take the lock again at once.
        for future in done:
            future.result()


@pytest.mark.parametrize("fast_s", [0, 3600, -3600])
def test_an_upload_that_is_begun_a_second_time_is_begun_once(
    s3_cloud: S3Cloud, monkeypatch: pytest.MonkeyPatch, fast_s: int
) -> None:
    """``fast_s``: how wrong the node's clock is."""
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + fast_s)
    monkeypatch.setattr(signing.clock, "ahead_s", -fast_s)
    with FaultProxy(s3_cloud.server.port, faults=["truncate"], rate=1) as proxy:

        class Calming(CountingObserver):
            def retried(self, operation: str, reason: str) -> None:
                super().retried(operation, reason)
                proxy.rate = 0

        secret = {**s3_cloud.server.credentials(), "AWS_ENDPOINT_URL": proxy.endpoint}
        observer = Calming()
        store = open_store(
            StoreSource(store="s3", url=f"s3://{s3_cloud.bucket}", bucket=s3_cloud.bucket),
            FixedCredentials(
                S3Credentials(
                    access_key_id=secret["AWS_ACCESS_KEY_ID"],
                    secret_access_key=secret["AWS_SECRET_ACCESS_KEY"],
                    endpoint_url=secret["AWS_ENDPOINT_URL"],
                )
            ),
            retry_budget_s=20,
            observer=observer,
        )
        upload = store.start_upload("dir/object")
        assert observer.retries
        assert open_uploads(s3_cloud) == [upload.state["upload"]]
        upload.abort()
        store.close()


def test_without_etags_time_and_size_pin_the_version(tmp_path: Path) -> None:
    with RcloneServer(tmp_path / "rclone", etags=False) as server:
        server.create_bucket("bucket")
        cloud = RcloneCloud(server, "bucket")
        cloud.write_secret(tmp_path / "secrets")
        store = cloud.open(tmp_path / "secrets")
        # No later answer has the ETag of its PUT, so only a read can pin a version.
        store.put("key", b"content")
        made = store.head("key")
        assert made.version == store.list_page("").objects[0].version
        buffer = memoryview(bytearray(7))
        assert store.get_range("key", made.version, 0, buffer) == 7
        cloud.write("key", b"longer content")
        with pytest.raises(Stale):
            store.get_range("key", made.version, 0, buffer)
        with pytest.raises(Stale):
            store.put("key", b"x", condition=Condition(version=made.version))
        store.close()


def test_a_lost_upload_is_no_missing_file(s3_store: Store) -> None:
    upload = s3_store.start_upload("key")
    upload.put_part(1, b"data")
    upload.abort()
    with pytest.raises(StoreProtocolError, match="upload of `key` is gone"):
        upload.put_part(2, b"data")
    with pytest.raises(StoreProtocolError, match="upload of `key` is gone"):
        upload.complete()
