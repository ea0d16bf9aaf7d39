"""Differences of Ceph's gateway from S3: on it (``make soak``), and on a server like it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import AlreadyExists, NotFound, Stale, StoreProtocolError
from sidecar.mounter.store.interface import Condition, ObjectInfo, Revision, Store
from sidecar.units import MIB
from tests.store.conftest import call_each, make_cloud
from tests.support.clouds import Cloud, CountingObserver
from tests.support.strict_server import StrictS3Server

PART = 5 * MIB
OURS = {"mtime": "1700000000.123456789"}
SAME = Revision(2 * PART, [], lambda _offset, size: bytes(size), PART, call_each)
"""Two parts that are copied."""
ODD = [
    "a\x01b",
    "c\x1f",
    "nl\nx",
    "tab\tx",
    "cr\rx",
    "\x7f",
    "x\ufffex",
    "&#x1;",
    "%01",
    "+ +",
    "ü",
]
"""Names, most of which are not valid in XML 1.0 unless they are encoded."""


@pytest.fixture(params=["strict", pytest.param("ceph", marks=pytest.mark.soak)])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A bucket of the gateway, or of a server that acts like it."""
    made = make_cloud(request.param, request, monkeypatch)
    if isinstance(made.server, StrictS3Server):
        made.server.settings(made.bucket, like_ceph=True)
    return made


@pytest.fixture
def observer() -> CountingObserver:
    return CountingObserver()


@pytest.fixture
def store(cloud: Cloud, observer: CountingObserver, tmp_path: Path) -> Iterator[Store]:
    cloud.write_secret(tmp_path / "secrets")
    opened = cloud.open(tmp_path / "secrets", observer=observer)
    yield opened
    opened.close()


def in_parts(store: Store, key: str, content: bytes) -> ObjectInfo:
    upload = store.start_upload(key, OURS)
    for number, start in enumerate(range(0, len(content), PART), 1):
        upload.put_part(number, content[start : start + PART])
    return upload.complete()


def ignore(state: Mapping[str, Any]) -> None:
    """Do not record what a patch began."""


# --- conditions of a write ---------------------------------------------------------------


def test_an_overwrite_is_sent_once(cloud: Cloud, store: Store, observer: CountingObserver) -> None:
    made = store.put("key", b"0")
    for number in range(1, 6):
        made = store.put("key", f"{number}".encode(), OURS, Condition(version=made.version))
    puts = [code for operation, code in observer.requests if operation == "put"]
    # The second one shows how this server compares versions.
    assert puts == ["ok", Stale.code, "ok", "ok", "ok", "ok", "ok"]
    assert cloud.read("key") == b"5"


@pytest.mark.parametrize("known", [False, True], ids=["first", "later"])
def test_another_writer_is_still_detected(
    cloud: Cloud, store: Store, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.put("key", b"ours")
    if known:
        made = store.put("key", b"ours, too", None, Condition(version=made.version))
    # As if the other client wrote between check and write.
    monkeypatch.setattr(store, "check_condition", lambda *_: None)
    cloud.write("key", b"theirs")
    with pytest.raises(Stale):
        store.put("key", b"ours again", None, Condition(version=made.version))
    assert cloud.read("key") == b"theirs"
    with pytest.raises(AlreadyExists):
        store.put("key", b"ours again", None, Condition(absent=True))
    cloud.delete("key")
    with pytest.raises(Stale):
        store.put("key", b"ours again", None, Condition(version=made.version))
    assert cloud.keys() == []


def test_an_upload_ends_on_condition(
    cloud: Cloud, store: Store, observer: CountingObserver
) -> None:
    made = store.put("key", b"0")
    for number in range(1, 4):
        upload = store.start_upload("key", OURS)
        upload.put_part(1, f"{number}".encode())
        made = upload.complete(Condition(version=made.version))
        assert cloud.read("key") == f"{number}".encode()
    completed = [code for operation, code in observer.requests if operation == "complete"]
    assert completed.count("ok") == 3
    assert len(completed) <= 4
    cloud.write("key", b"theirs")
    upload = store.start_upload("key", OURS)
    upload.put_part(1, b"ours")
    with pytest.raises(Stale):
        upload.complete(Condition(version=made.version))
    upload.abort()
    assert cloud.read("key") == b"theirs"


# --- copies --------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_two_versions_are_never_put_together(cloud: Cloud, store: Store, when: str) -> None:
    old, theirs = os.urandom(2 * PART), os.urandom(2 * PART)
    base = store.resolve_version(in_parts(store, "key", old))

    def change(state: Mapping[str, Any]) -> None:
        if when == "before" or "upload" in state:
            cloud.write("key", theirs)

    if when == "before":
        change({})
    with pytest.raises(Stale):
        store.patch(base, "key", SAME, OURS, change if when == "meanwhile" else ignore)
    assert cloud.read("key") == theirs


# --- uploads that are gone ---------------------------------------------------------------


def test_an_upload_that_is_gone_is_said_at_once(store: Store, observer: CountingObserver) -> None:
    upload = store.start_upload("key", OURS)
    receipt = upload.put_part(1, b"data")
    store.resume_upload("key", upload.state, {1: (4, receipt)}).abort()
    with pytest.raises(StoreProtocolError, match="upload of `key` is gone"):
        upload.complete()
    assert len([code for operation, code in observer.requests if operation == "complete"]) == 1


def test_an_upload_whose_answer_was_lost_is_done(cloud: Cloud, store: Store) -> None:
    upload = store.start_upload("key", OURS)
    upload.put_part(1, b"data")
    first = store.resolve_version(upload.complete())
    assert store.resolve_version(upload.complete()).version == first.version
    assert cloud.read("key") == b"data"


# --- names that are no XML -----------------------------------------------------------------


def pages(store: Store, prefix: str, delimiter: str, limit: int) -> list[str]:
    found, token = [], None
    while True:
        page = store.list_page(prefix, token, delimiter=delimiter, limit=limit)
        found += page.prefixes + [item.key for item in page.objects]
        token = page.next_token
        if token is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_odd_names_are_listed(store: Store, limit: int) -> None:
    for name in ODD:
        store.put(f"dir\x02/{name}", b"1")
        store.put(f"dir\x02/sub/{name}/x", b"1")
    names = [f"dir\x02/{name}" for name in ODD]
    listed = pages(store, "dir\x02/", "/", limit)
    assert sorted(set(listed)) == sorted([*names, "dir\x02/sub/"])
    below = pages(store, "dir\x02/sub/", "/", limit)
    assert sorted(set(below)) == sorted(f"dir\x02/sub/{name}/" for name in ODD)
    everything = pages(store, "", "", limit)
    assert sorted(everything) == sorted([*names, *(f"dir\x02/sub/{name}/x" for name in ODD)])


def test_a_name_that_looks_escaped_is_not_another_one(cloud: Cloud, store: Store) -> None:
    content = os.urandom(2 * PART)
    cloud.write("A", content[::-1])
    base = store.resolve_version(in_parts(store, "%41", content))
    assert store.patch(base, "%41", SAME, OURS, ignore) is None
    store.copy("%41", "copy", known=base)
    assert cloud.read("copy") == content


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_files(store: Store, name: str) -> None:
    content = os.urandom(2 * PART)
    base = store.resolve_version(in_parts(store, name, content))
    made = store.resolve_version(store.patch(base, name, SAME, OURS, ignore) or base)
    store.copy(name, f"{name}/copy", known=made)
    buffer = bytearray(2 * PART)
    copied = store.head(f"{name}/copy")
    assert store.get_range(f"{name}/copy", copied.version, 0, memoryview(buffer)) == len(buffer)
    assert buffer == content
    store.delete(name)
    with pytest.raises(NotFound):
        store.head(name)


def test_odd_names_are_deleted_in_bulk(cloud: Cloud, store: Store) -> None:
    names = [*ODD, "plain"]
    for name in names:
        store.put(name, b"1")
    store.delete_many(names)
    assert store.list_page("", delimiter="").objects == []


def test_an_upload_of_an_odd_name_is_found_again(
    cloud: Cloud, store: Store, tmp_path: Path
) -> None:
    before = cloud.open(tmp_path / "secrets")
    for name in ODD:
        before.start_upload(name, OURS)
        store.abandon(name, {"since_s": 0.0})
        # It has removed what it found.
        assert not store._s3.parse_uploads(_uploads(store, name))  # type: ignore[attr-defined]
    before.close()


def _uploads(store: Any, key: str) -> bytes:
    from sidecar.mounter.store.store_errors import Call

    answer: bytes = store.transfer(Call("list"), lambda: store._s3.uploads(key), ()).content
    return answer
