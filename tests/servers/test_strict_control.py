"""What tests set on the strict S3: pace, faults, counters; and that it is durable."""

from __future__ import annotations

import http.client
import threading
import time
from pathlib import Path

import pytest

from tests.servers.raw import Raw
from tests.support.strict_server import StrictS3Server


def test_requests_and_bytes_are_counted(raw: Raw) -> None:
    raw.server.reset_counts()
    raw("PUT", "key", b"content")
    raw("GET", "key", range="bytes=0-2")
    raw("GET", "absent")
    raw("PUT", "copy", x_amz_copy_source=f"{raw.bucket}/key")
    counts = raw.server.counts()
    assert counts.requests == {"PutObject": 1, "GetObject": 2, "CopyObject": 1}
    assert counts.refusals == {"GetObject NoSuchKey": 1}
    assert counts.bytes_in["PutObject"] == 7
    first, second, third, _ = raw.server.requests()
    assert (first.operation, first.key, first.status, first.bytes_in) == (
        "PutObject",
        "key",
        200,
        7,
    )
    assert (second.bytes_out, second.headers["range"]) == (3, "bytes=0-2")
    assert third.code == "NoSuchKey"


def test_latency(raw: Raw) -> None:
    raw.server.pace(latency_s=0.2)
    begun_s = time.monotonic()
    raw("HEAD", "key")
    assert time.monotonic() - begun_s >= 0.2


def test_bandwidth(raw: Raw) -> None:
    raw("PUT", "key", bytes(1_000_000))
    raw.server.pace(bytes_per_s=4_000_000)
    begun_s = time.monotonic()
    raw("GET", "key")
    assert time.monotonic() - begun_s >= 0.25


def test_slow_down_above_a_rate(raw: Raw) -> None:
    raw.server.pace(requests_per_s=0.001, retry_after_s=3)
    assert raw("GET", "a/key").refusal == "404 NoSuchKey"
    slowed = raw("GET", "a/other")
    assert (slowed.refusal, slowed.headers["retry-after"]) == ("503 SlowDown", "3")
    assert raw("GET", "b/key").refusal == "404 NoSuchKey"


def test_an_error_is_injected(raw: Raw) -> None:
    raw.server.fault("error", operation="Put.*", key="^a", skip=1, times=2, retry_after_s=1)
    refusals = [raw("PUT", "a").refusal for _ in range(4)]
    assert refusals == ["200", "503 SlowDown", "503 SlowDown", "200"]
    assert raw.server.faults_used() == [2]


def test_a_conflict_is_injected(raw: Raw) -> None:
    raw.server.fault("error", status=409, code="ConditionalRequestConflict")
    assert raw("PUT", "key", if_none_match="*").refusal == "409 ConditionalRequestConflict"


def test_a_rate_is_drawn_by_a_seed(raw: Raw) -> None:
    raw.server.fault("error", times=None, rate=0.5, seed=1)
    refused = sum(raw("HEAD", "key").status == 503 for _ in range(40))
    assert 0 < refused < 40


@pytest.mark.parametrize(("kind", "done"), [("reset", False), ("lost_answer", True)])
def test_a_connection_is_reset(raw: Raw, kind: str, done: bool) -> None:
    raw.server.fault(kind, operation="PutObject")
    with pytest.raises(ConnectionResetError):
        raw("PUT", "key", b"content")
    assert raw("HEAD", "key").status == (200 if done else 404)


def test_an_answer_is_cut_off(raw: Raw) -> None:
    raw("PUT", "key", b"content")
    raw.server.fault("truncate", operation="GetObject")
    with pytest.raises(http.client.IncompleteRead):
        raw("GET", "key")
    assert raw("GET", "key").body == b"content"


@pytest.mark.parametrize("size", [1, 7, 3_000_000])
def test_a_bit_is_flipped(raw: Raw, size: int) -> None:
    raw("PUT", "key", bytes(size))
    raw.server.fault("flip_bit", operation="GetObject")
    assert [byte for byte in raw("GET", "key").body if byte] == [1]


def test_a_wrong_etag(raw: Raw) -> None:
    right = raw("PUT", "key", b"content").etag
    raw.server.fault("wrong_etag", operation="HeadObject")
    assert raw("HEAD", "key").etag != right
    assert raw("HEAD", "key").etag == right
    raw.server.fault("wrong_etag", operation="CopyObject|ListObjectsV2", times=2)
    assert raw("PUT", "copy", x_amz_copy_source=f"{raw.bucket}/key").etag != right
    assert right not in raw("GET", query={"list-type": "2"}).texts("Contents/ETag")


def test_an_error_after_200(raw: Raw) -> None:
    raw("PUT", "key", b"content")
    raw.server.fault("late_error", operation="CopyObject", code="InternalError")
    assert raw("PUT", "copy", x_amz_copy_source=f"{raw.bucket}/key").refusal == "200 InternalError"
    assert raw("HEAD", "copy").status == 404


def test_an_answer_is_held_back(raw: Raw) -> None:
    raw.server.fault("stall", stall_s=0.2)
    begun_s = time.monotonic()
    raw("HEAD", "key")
    assert time.monotonic() - begun_s >= 0.2


@pytest.mark.parametrize(
    "tell",
    [
        lambda server: server.limits(no_such=1),
        lambda server: server.pace(no_such=1),
        lambda server: server.fault("no such"),
        lambda server: server.settings("no-such-bucket", public=True),
    ],
)
def test_what_does_not_exist_is_an_error(server: StrictS3Server, tell) -> None:
    with pytest.raises(ValueError, match=r"no.such|not exist"):
        tell(server)


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    with StrictS3Server(tmp_path) as server:
        server.create_bucket("bucket")
        server.limits(min_part_bytes=1)
        raw = Raw(server, "bucket")
        server.settings("bucket", acls=True)
        raw("PUT", "kept", b"kept", x_amz_meta_a="ü", x_amz_tagging="a=1", x_amz_acl="public-read")
        raw("PUT", "copied", b"copied")
        raw("PUT", "copy", x_amz_copy_source="bucket/copied")
        raw("DELETE", "copied")
        raw("PUT", "removed", b"removed")
        raw("DELETE", "removed")
        raw.upload("made", b"one", b"two")
        upload = raw.begin("begun")
        etag = raw.part("begun", upload, 1, b"part").etag
        server.settings("bucket", quota_bytes=1000)

        def view():
            keys = raw("GET", query={"list-type": "2"}).body
            heads = [dict(raw("HEAD", key).headers) for key in ("kept", "copy", "made")]
            for head in heads:
                del head["x-amz-request-id"], head["date"]
            return keys, heads, [raw("GET", key).body for key in ("kept", "copy", "made")]

        before = view()
        for _ in range(2):  # The second restart reads what the first one wrote.
            server.stop()
            server.start()
            assert view() == before
        assert raw.complete("begun", upload, {1: etag}).refusal == "200"
        assert raw("PUT", "large", bytes(1001)).refusal == "403 QuotaExceeded"
        for key in ("kept", "copy", "made", "begun"):
            raw("DELETE", key)
        assert list((tmp_path / "data").iterdir()) == []


def test_many_at_once(raw: Raw) -> None:
    """Concurrent writers of one key: the object is one writer's content, complete."""
    contents = [bytes([number]) * 100_000 for number in range(8)]
    failures: list[object] = []

    def write(content: bytes) -> None:
        for _ in range(5):
            reply = raw("PUT", "key", content)
            found = raw("GET", "key").body
            if reply.status != 200 or found not in contents:
                failures.append(reply)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert raw("GET", "key").body in contents


def test_one_of_many_makes_a_key(raw: Raw) -> None:
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: statuses.append(raw("PUT", "key", b"x", if_none_match="*").status)
        )
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [412] * 15
