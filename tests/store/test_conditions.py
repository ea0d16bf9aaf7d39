"""A known version is copied, and a condition of a write checked, in one request if possible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.errors import AlreadyExists, NotFound, Stale
from sidecar.mounter.store.interface import Condition, Store
from tests.store.conftest import make_cloud
from tests.support.clouds import Cloud, CountingObserver
from tests.support.strict_server import StrictS3Server

METADATA = {"mode": "33184", "mtime": "1.5"}


@pytest.fixture(params=["strict", "gcs", "azure"])
def checking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A store that checks every condition."""
    return make_cloud(request.param, request, monkeypatch)


@pytest.fixture(params=["s3", "rclone"])
def careless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A server that ignores them: MinIO's gateway in JuiceFS, and rclone."""
    return make_cloud(request.param, request, monkeypatch)


@pytest.fixture
def observer() -> CountingObserver:
    return CountingObserver()


@pytest.fixture
def store(checking: Cloud, secrets: Path, observer: CountingObserver) -> Iterator[Store]:
    checking.write_secret(secrets)
    opened = checking.open(secrets, observer=observer)
    opened.put(".probe", b"content")
    opened.try_conditions(".probe")
    opened.delete(".probe")
    observer.requests.clear()
    yield opened
    opened.close()


def asked(observer: CountingObserver) -> list[str]:
    """What was asked since the last time."""
    found = [operation for operation, _ in observer.requests]
    observer.requests.clear()
    return found


def test_trying_tells_nobody_of_a_failure(store: Store, observer: CountingObserver) -> None:
    assert observer.failures == []
    with pytest.raises(NotFound):
        store.head(".probe")


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (405, "MethodNotAllowed")])
def test_who_may_not_copy_may_write_all_the_same(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    secrets: Path,
    strict_s3_server: StrictS3Server,
    status: int,
    code: str,
) -> None:
    cloud = make_cloud("strict", request, monkeypatch)
    cloud.write_secret(secrets)
    opened = cloud.open(secrets)
    opened.put("file", b"content")
    strict_s3_server.fault("error", operation="CopyObject", times=None, status=status, code=code)
    try:
        opened.try_conditions("file")
    finally:
        strict_s3_server.reset()
        opened.close()
    assert opened.conditions == {"if-none-match", "if-match"}


def test_a_write_is_one_request(store: Store, observer: CountingObserver) -> None:
    made = store.put("key", b"1", METADATA, Condition(absent=True))
    store.put("key", b"2", METADATA, Condition(version=made.version))
    assert asked(observer) == ["put", "put"]
    with pytest.raises(AlreadyExists):
        store.put("key", b"3", METADATA, Condition(absent=True))
    with pytest.raises(Stale):
        store.put("key", b"4", METADATA, Condition(version=made.version))


def test_a_copy_is_one_request(checking: Cloud, store: Store, observer: CountingObserver) -> None:
    made = store.put("key", b"content", METADATA)
    store.copy("key", "first", known=made)  # of a mount: asks for S3's Object Ownership (A11)
    asked(observer)
    in_place = store.copy("key", "key", known=made, metadata={"mode": "33188"})
    renamed = store.copy("key", "new", known=in_place, metadata={"mode": "33152"})
    assert asked(observer) == ["copy", "copy"]
    assert renamed.metadata == {"mode": "33152"}
    assert checking.read("new") == b"content"
    found = store.head("new")
    assert (found.version, found.metadata) == (renamed.version, renamed.metadata)


def test_another_writer_s_version_is_not_copied(checking: Cloud, store: Store) -> None:
    made = store.put("key", b"ours", METADATA)
    store.put("key", b"theirs", METADATA)
    with pytest.raises(Stale):
        store.copy("key", "new", known=made)
    with pytest.raises(Stale):
        store.copy("key", "key", known=made, metadata={})
    assert checking.read("key") == b"theirs"
    store.delete("key")
    with pytest.raises(NotFound):
        store.copy("key", "new", known=made)
    with pytest.raises(NotFound):
        store.head("new")


def test_of_a_server_that_ignores_conditions_they_are_checked_before(
    careless: Cloud, secrets: Path
) -> None:
    careless.write_secret(secrets)
    store = careless.open(secrets)
    made = store.put("key", b"ours", METADATA)
    store.try_conditions("key")
    assert "if-none-match" not in store.conditions
    made = store.put("key", b"ours", METADATA)
    store.put("key", b"theirs", METADATA)
    with pytest.raises(Stale):
        store.copy("key", "new", known=made)
    with pytest.raises(AlreadyExists):
        store.put("key", b"3", METADATA, Condition(absent=True))
    with pytest.raises(Stale):
        store.put("key", b"3", METADATA, Condition(version=made.version))
    assert careless.read("key") == b"theirs"
    store.close()
