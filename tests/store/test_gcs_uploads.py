"""Uploads to Google Cloud Storage: parts in parallel where the server has them, else in order.

The emulator has no uploads of the XML API; its strict proxy does what Google's documentation
says of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar.errors import NotFound, Stale, StoreProtocolError, Unsupported
from sidecar.mounter.store.gcs.properties import headers_of
from sidecar.mounter.store.interface import Condition, Store
from sidecar.units import MIB
from tests.store.raw import open_at
from tests.support.clouds import CountingObserver, GcsCloud
from tests.support.servers import HttpResponder, answer
from tests.support.strict_gcs import GcsLimits, StrictGcsServer

CONTENT = os.urandom(5 * MIB) + os.urandom(1000)
METADATA = {"mode": "644", "mtime": "1.5"}
_numbers = itertools.count()


@pytest.fixture
def cloud(gcs_server: StrictGcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsCloud:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
    bucket = f"uploads-{os.getpid()}-{next(_numbers)}"
    gcs_server.create_bucket(bucket)
    return GcsCloud(gcs_server, bucket)


@pytest.fixture
def store(cloud: GcsCloud, tmp_path: Path) -> Iterator[Store]:
    cloud.write_secret(tmp_path)
    opened = cloud.open(tmp_path)
    yield opened
    opened.close()


def limit(server: StrictGcsServer, monkeypatch: pytest.MonkeyPatch, **changed: bool | int) -> None:
    monkeypatch.setattr(server.proxy, "limits", dataclasses.replace(GcsLimits(), **changed))


def send(store: Store, key: str = "object") -> None:
    upload = store.start_upload(key, METADATA)
    upload.put_part(1, CONTENT[: 5 * MIB])
    upload.put_part(2, CONTENT[5 * MIB :])
    upload.complete()


@pytest.mark.parametrize("names_generation", [True, False])
def test_what_was_made_is_what_is_there(
    cloud: GcsCloud,
    store: Store,
    gcs_server: StrictGcsServer,
    monkeypatch: pytest.MonkeyPatch,
    names_generation: bool,
) -> None:
    limit(gcs_server, monkeypatch, names_generation=names_generation)
    upload = store.start_upload("dir/a b+ü", METADATA)
    assert not upload.ordered_parts
    upload.put_part(2, CONTENT[5 * MIB :])
    upload.put_part(1, CONTENT[: 5 * MIB])
    assert cloud.keys() == []  # parts are no objects
    made = upload.complete()
    assert cloud.read("dir/a b+ü") == CONTENT
    assert cloud.metadata("dir/a b+ü") == METADATA
    assert made == store.head("dir/a b+ü")
    assert upload.state["upload"] not in gcs_server.proxy.multiparts


def test_a_part_is_sent_again(cloud: GcsCloud, store: Store) -> None:
    upload = store.start_upload("object", METADATA)
    upload.put_part(1, b"x" * 5 * MIB)
    upload.put_part(2, CONTENT[5 * MIB :])
    upload.put_part(1, CONTENT[: 5 * MIB])
    upload.complete()
    assert cloud.read("object") == CONTENT


def test_only_the_first_parts_are_wanted(cloud: GcsCloud, store: Store) -> None:
    upload = store.start_upload("object", METADATA)
    upload.put_part(1, CONTENT[: 5 * MIB])
    upload.put_part(2, b"not any more")
    upload.complete(parts=1)
    assert cloud.read("object") == CONTENT[: 5 * MIB]


def test_metadata_that_changed_meanwhile(cloud: GcsCloud, store: Store) -> None:
    upload = store.start_upload("object", METADATA)
    upload.put_part(1, b"content")
    later = {**METADATA, "mtime": "2.5"}
    assert upload.complete(metadata=later).metadata == later
    assert cloud.metadata("object") == later


def test_a_successor_goes_on(cloud: GcsCloud, store: Store) -> None:
    upload = store.start_upload("object", METADATA)
    receipt = upload.put_part(1, CONTENT[: 5 * MIB])
    resumed = store.resume_upload("object", upload.state, {1: (5 * MIB, receipt)})
    resumed.put_part(2, CONTENT[5 * MIB :])
    assert resumed.complete().metadata == METADATA
    assert cloud.read("object") == CONTENT


def test_an_upload_that_nobody_completes_is_removed(
    store: Store, gcs_server: StrictGcsServer
) -> None:
    upload = store.start_upload("object", METADATA)
    upload.put_part(1, CONTENT)
    assert upload.state["upload"] in gcs_server.proxy.multiparts
    store.abandon("object", upload.state)
    assert upload.state["upload"] not in gcs_server.proxy.multiparts
    store.abandon("object", upload.state)
    with pytest.raises(StoreProtocolError, match="upload of `object` is gone"):
        upload.put_part(2, b"more")
    with pytest.raises(StoreProtocolError, match="upload of `object` is gone"):
        upload.complete()


def test_an_end_whose_answer_was_lost(cloud: GcsCloud, store: Store) -> None:
    """Completing it once more finds no upload, but the object."""
    upload = store.start_upload("object", METADATA)
    upload.put_part(1, CONTENT)
    made = upload.complete()
    assert upload.complete() == made
    cloud.write("object", CONTENT, {"mtime": "another writer's"})
    with pytest.raises(StoreProtocolError, match="is gone"):
        upload.complete()
    cloud.write("object", b"shorter", METADATA)
    with pytest.raises(StoreProtocolError, match="is gone"):
        upload.complete()


def test_a_condition_that_does_not_hold_completes_nothing(cloud: GcsCloud, store: Store) -> None:
    old = store.put("object", b"old")
    cloud.write("object", b"another writer's")
    upload = store.start_upload("object", METADATA)
    upload.put_part(1, CONTENT)
    with pytest.raises(Stale):
        upload.complete(Condition(version=old.version))
    assert cloud.read("object") == b"another writer's"


def test_another_writer_just_behind(
    cloud: GcsCloud, store: Store, monkeypatch: pytest.MonkeyPatch, gcs_server: StrictGcsServer
) -> None:
    """What is answered is never another writer's version."""
    upload = store.start_upload("object", METADATA)
    upload.put_part(1, CONTENT)
    current = gcs_server.proxy._xml_head

    def replaced(bucket: str, name: str) -> bytes:
        cloud.write("object", CONTENT, METADATA)
        return current(bucket, name)

    monkeypatch.setattr(gcs_server.proxy, "_xml_head", replaced)
    with pytest.raises(Stale):
        upload.complete()


@pytest.mark.parametrize(
    "metadata",
    [{"Upper": "1"}, {"name": "Grüße"}, {"name": ""}, {"name": " spaces "}, {"under_score": "1"}],
)
def test_what_no_header_carries_goes_in_order(
    cloud: GcsCloud, store: Store, metadata: dict[str, str]
) -> None:
    assert headers_of({}, metadata) is None
    upload = store.start_upload("object", metadata)
    assert upload.ordered_parts
    upload.put_part(1, CONTENT)
    upload.complete()
    assert cloud.read("object") == CONTENT
    assert cloud.metadata("object") == metadata
    assert not store.start_upload("another", METADATA).ordered_parts


def test_properties_as_headers() -> None:
    properties = {"contentType": "text/plain", "customTime": "2026-01-01T00:00:00Z"}
    key = {"kmsKeyName": "projects/p/k", "storageClass": "NEARLINE"}
    assert headers_of({**properties, **key}, METADATA) == {
        "content-type": "text/plain",
        "x-goog-custom-time": "2026-01-01T00:00:00Z",
        "x-goog-encryption-kms-key-name": "projects/p/k",
        "x-goog-storage-class": "NEARLINE",
        "x-goog-meta-mode": "644",
        "x-goog-meta-mtime": "1.5",
    }


def test_a_server_that_knows_none_is_asked_once(
    cloud: GcsCloud,
    store: Store,
    gcs_server: StrictGcsServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(gcs_server, monkeypatch, multipart=False)
    send(store)
    assert cloud.read("object") == CONTENT
    limit(gcs_server, monkeypatch)
    assert store.start_upload("another", METADATA).ordered_parts


@pytest.mark.parametrize(("status", "asked"), [(403, 2), (404, 2), (400, 1), (405, 1), (501, 1)])
def test_a_refusal_may_be_for_now(status: int, asked: int) -> None:
    """A login may be given the permission; a server does not learn."""
    begun: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        if handler.path.startswith("/upload/"):
            location = f"http://{handler.headers['Host']}/upload/session"
            answer(handler, 200, b"", {"Location": location})
        else:
            begun.append(handler.path)
            answer(handler, status, b"<Error><Code>AccessDenied</Code></Error>")

    with HttpResponder(respond) as server:
        store = open_at("gcs", server.endpoint, CountingObserver(), retry_budget_s=5)
        for _ in range(2):
            assert store.start_upload("key", METADATA).ordered_parts
        store.close()
    assert begun == ["/bucket/key?uploads="] * asked


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<Error><Code>InternalError</Code></Error>",
        b"<CompleteMultipartUploadResult/>",
        b"no XML",
        b"<CompleteMultipartUploadResult><ETag>",
    ],
)
def test_an_end_without_an_object_is_none(document: bytes) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        if "uploads" in handler.path:
            answer(handler, 200, b"<I><UploadId>number</UploadId></I>")
        elif handler.command == "PUT":
            answer(handler, 200, b"", {"ETag": '"1"'})
        else:
            answer(handler, 200, document)

    with HttpResponder(respond) as server:
        store = open_at("gcs", server.endpoint, CountingObserver(), retry_budget_s=5)
        upload = store.start_upload("key", METADATA)
        upload.put_part(1, b"content")
        with pytest.raises(StoreProtocolError, match="no object was made"):
            upload.complete()
        store.close()


@pytest.mark.parametrize("upload_id", ["", "a b", "x" * 1025, "ü", 7, None, "line\n"])
def test_a_number_that_was_kept_is_none(upload_id: object) -> None:
    """What the spool's log says may be made up: nothing is sent for it."""
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        answer(handler, 200, b"")

    with HttpResponder(respond) as server:
        store = open_at("gcs", server.endpoint, CountingObserver(), retry_budget_s=5)
        state = {"upload": upload_id, "metadata": {}, "replaced": ""}
        with pytest.raises(StoreProtocolError):
            store.resume_upload("key", state, {})
        with pytest.raises(StoreProtocolError):
            store.abandon("key", state)
        store.close()
    assert asked == []


def test_parts_go_at_once(cloud: GcsCloud, store: Store, gcs_server: StrictGcsServer) -> None:
    """One part does not wait for another one, which a session's does."""
    upload = store.start_upload("object", METADATA)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(upload.put_part, 2, CONTENT[5 * MIB :])
        second.result(timeout=60)  # nobody has sent the first
    upload.put_part(1, CONTENT[: 5 * MIB])
    upload.complete()
    assert cloud.read("object") == CONTENT


def test_in_order_a_part_stays_as_it_is(
    store: Store, gcs_server: StrictGcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(gcs_server, monkeypatch, multipart=False)
    upload = store.start_upload("object", METADATA)
    upload.put_part(1, CONTENT)
    with pytest.raises(Unsupported):
        upload.put_part(1, CONTENT)
    upload.abort()
    with pytest.raises(NotFound):
        store.head("object")
