"""Multipart uploads on servers that change the ETag afterwards, and on others.

rclone's does: the upload returns an ETag of the parts, later answers have one of the content.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar.contract.spec import StoreSource
from sidecar.errors import Stale
from sidecar.mounter.store import open_store
from sidecar.mounter.store.interface import (
    Condition,
    ObjectInfo,
    ProvisionalVersion,
    Revision,
    Store,
)
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.mounter.store.s3.versions import TimeAndSize
from sidecar.units import MIB
from tests.store.conftest import call_each, make_cloud
from tests.store.raw import FixedCredentials
from tests.support.clouds import CountingObserver
from tests.support.servers import HttpResponder, answer

PART = 5 * MIB
OURS = {"mtime": "1700000000.123456789"}


@pytest.fixture
def renaming(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Store]:
    """The product's store on rclone's server."""
    cloud = make_cloud("rclone", request, monkeypatch)
    cloud.write_secret(tmp_path / "secrets")
    store = cloud.open(tmp_path / "secrets")
    yield store
    store.close()


def upload(store: Store, content: bytes) -> ObjectInfo:
    begun = store.start_upload("key", OURS)
    for number, start in enumerate(range(0, len(content), PART), 1):
        begun.put_part(number, content[start : start + PART])
    return begun.complete()


def read(store: Store, version: str, size: int) -> bytes:
    buffer = bytearray(size)
    assert store.get_range("key", version, 0, memoryview(buffer)) == size
    return bytes(buffer)


def test_a_version_is_text_on_disk_and_what_it_says_in_memory() -> None:
    """As in journals and spool logs."""
    text = "?6:0123456789abcdef:d41d8cd98f00b204e9800998ecf8427e-2"
    version = ProvisionalVersion.parse(text)
    assert version == ProvisionalVersion(
        "d41d8cd98f00b204e9800998ecf8427e-2", 6, "0123456789abcdef"
    )
    assert str(version) == text
    assert not ObjectInfo("key", 6, 0.0, text).has_final_version
    for final in ["?", "?etag", "?6:xyz:etag", "etag", "~1700000000-6"]:
        assert ProvisionalVersion.parse(final) is None
        assert ObjectInfo("key", 6, 0.0, final).has_final_version
    assert TimeAndSize.parse("~1700000000-6") == TimeAndSize(1700000000, 6)
    assert str(TimeAndSize(1700000000, 6)) == "~1700000000-6"
    assert TimeAndSize.parse("~etag") is None


def test_what_was_made_can_be_used_at_once(renaming: Store) -> None:
    content = os.urandom(PART + 5)
    made = upload(renaming, content)
    assert not made.has_final_version
    assert read(renaming, made.version, len(content)) == content
    copied = renaming.copy("key", "copy", known=made)
    assert renaming.head("copy").version == copied.version
    settled = renaming.resolve_version(made)
    assert settled.has_final_version
    assert (settled.version, settled.metadata) == (renaming.head("key").version, OURS)
    assert renaming.resolve_version(settled) is settled
    renaming.put("key", b"newer", OURS, Condition(version=made.version))
    with pytest.raises(Stale):
        renaming.put("key", b"newest", OURS, Condition(version=made.version))


def test_another_s_object_is_not_taken_for_what_was_made(renaming: Store) -> None:
    content = os.urandom(PART + 5)
    made = upload(renaming, content)
    renaming.put("key", content[::-1], {"mtime": "1700000000.123456788"})
    with pytest.raises(Stale):
        read(renaming, made.version, len(content))
    with pytest.raises(Stale):
        renaming.copy("key", "copy", known=made)
    settled = renaming.resolve_version(made)
    assert settled.has_final_version
    with pytest.raises(Stale):
        read(renaming, settled.version, len(content))


def test_a_server_that_names_a_version_once_is_asked_once(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cloud = make_cloud("s3", request, monkeypatch)
    cloud.write_secret(tmp_path / "secrets")
    observer = CountingObserver()
    with contextlib.closing(cloud.open(tmp_path / "secrets", observer=observer)) as store:
        first = upload(store, os.urandom(PART + 5))
        assert store.resolve_version(first).version == store.head("key").version
        observer.requests.clear()
        made = upload(store, os.urandom(PART + 5))
        assert made.has_final_version
        assert store.resolve_version(made) is made
        assert ("head", "ok") not in observer.requests
        assert store.head("key").version == made.version


def test_a_server_that_copies_no_ranges_is_sent_it_all(renaming: Store) -> None:
    size_bytes = PART + 1  # of less, no range is copied anywhere
    base = renaming.put("key", os.urandom(size_bytes), OURS)
    revision = Revision(size_bytes, [], lambda _offset, size: bytes(size), PART, call_each)
    begun: list[Mapping[str, object]] = []
    for _ in range(2):
        assert renaming.patch(base, "key", revision, OURS, begun.append) is None
    assert ["upload" in state for state in begun] == [False, True]
    assert renaming.head("key").version == base.version


def test_an_error_behind_a_good_status_is_tried_again() -> None:
    """As from S3, which sends status 200 early to keep the connection alive."""
    answers = [
        b"  <Error><Code>InternalError</Code><Message>try again</Message></Error>",
        b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>",
        b"<ListMultipartUploadsResult></ListMultipartUploadsResult>",
    ]

    def respond(handler: BaseHTTPRequestHandler) -> None:
        answer(handler, 200, answers.pop(0), {})

    observer = CountingObserver()
    with HttpResponder(respond) as server:
        store = open_store(
            StoreSource(store="s3", url="s3://bucket", bucket="bucket"),
            FixedCredentials(
                S3Credentials(
                    access_key_id="key", secret_access_key="secret", endpoint_url=server.endpoint
                )
            ),
            retry_budget_s=20,
            observer=observer,
        )
        assert store.start_upload("key").state["upload"] == "1"
        store.close()
    assert observer.retries == [("put", "server_error")]
