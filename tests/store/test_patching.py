"""Objects patched inside the store, and uploads that another process resumes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from sidecar.errors import Stale
from sidecar.mounter.store.interface import FileSlice, ObjectInfo, Revision, Store
from sidecar.mounter.store.ranges import Range
from sidecar.units import MIB
from tests.store.conftest import call_each
from tests.support.clouds import Cloud, S3Cloud

PART = 5 * MIB
METADATA = {"mode": "33188"}


class Local:
    """A local file, in place of a spool file."""

    def __init__(self, data: bytes) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by its fixture
        self._file.write(data)
        self._file.flush()

    def slice(self, offset: int, size: int) -> FileSlice:
        return FileSlice(self._file.fileno(), offset, size)

    def becomes(self, size: int, *changed: Range) -> Revision:
        """The revision with these bytes, of which the given ranges are changed."""
        return Revision(size, changed, self.slice, PART, call_each)

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def old() -> bytes:
    return os.urandom(3 * PART)


def put_in_parts(store: Store, key: str, data: bytes) -> ObjectInfo:
    upload = store.start_upload(key, {"old": "1"})
    for number, start in enumerate(range(0, len(data), PART), 1):
        upload.put_part(number, memoryview(data)[start : start + PART])
    return upload.complete()


class Begun:
    """Records what a patch began."""

    def __init__(self) -> None:
        self.states: list[Mapping[str, Any]] = []

    def __call__(self, state: Mapping[str, Any]) -> None:
        self.states.append(state)


@pytest.fixture
def local() -> Iterator[list[Local]]:
    made: list[Local] = []
    yield made
    for one in made:
        one.close()


def test_what_is_appended_is_all_that_is_sent(
    cloud: Cloud, store: Store, old: bytes, local: list[Local]
) -> None:
    base = put_in_parts(store, "dir/log", old)
    content = old
    for tail in (b"line\n", b"another line\n", os.urandom(PART)):
        content += tail
        local.append(Local(content))
        revision = local[-1].becomes(len(content), (base.size_bytes, len(content)))
        made = store.patch(base, "dir/log", revision, METADATA, Begun())
        assert made is not None
        assert made.size_bytes == len(content)
        assert cloud.read("dir/log") == content
        assert cloud.metadata("dir/log") == METADATA
        assert store.head("dir/log").version == store.resolve_version(made).version
        base = made
    assert cloud.keys() == ["dir/log"]


@pytest.mark.parametrize("more_bytes", [-1, 0, 1])
def test_what_is_appended_to_what_is_just_large_enough(
    cloud: Cloud, store: Store, local: list[Local], more_bytes: int
) -> None:
    """A range is copied of an object above 5 MiB only ("UploadPartCopy"); a part may have that."""
    old = os.urandom(PART + more_bytes)
    base = store.put("log", old, {})
    content = old + os.urandom(PART)
    local.append(Local(content))
    revision = local[-1].becomes(len(content), (len(old), len(content)))
    if store.patch(base, "log", revision, METADATA, Begun()) is not None:
        assert cloud.read("log") == content
    assert cloud.keys() == ["log"]


def test_the_middle_is_replaced_where_the_store_can(
    cloud: Cloud, store: Store, old: bytes, local: list[Local]
) -> None:
    base = put_in_parts(store, "object", old)
    content = old[:PART] + os.urandom(PART) + old[2 * PART :]
    local.append(Local(content))
    begun = Begun()
    revision = local[-1].becomes(len(content), (PART, 2 * PART))
    made = store.patch(base, "object", revision, METADATA, begun)
    if cloud.name == "gcs":
        assert made is None
        assert not begun.states
    else:
        assert made is not None
        assert cloud.read("object") == content


def test_another_s_version_is_not_patched(
    cloud: Cloud, store: Store, old: bytes, local: list[Local]
) -> None:
    base = put_in_parts(store, "object", old)
    theirs = os.urandom(len(old))
    put_in_parts(store, "object", theirs)
    local.append(Local(old + b"more"))
    revision = local[-1].becomes(len(old) + 4, (len(old), len(old) + 4))
    begun = Begun()
    with pytest.raises(Stale):
        store.patch(base, "object", revision, METADATA, begun)
    for state in begun.states:
        store.abandon("object", state)
    assert cloud.read("object") == theirs
    assert cloud.keys() == ["object"]


def test_another_process_goes_on_with_an_upload(cloud: Cloud, store: Store, old: bytes) -> None:
    begun = store.start_upload("object", METADATA)
    receipt = begun.put_part(1, old[:PART])
    begun.put_part(2, old[PART : 2 * PART])  # And dies before it can record that.
    resumed = store.resume_upload("object", begun.state, {1: (PART, receipt)})
    if cloud.name == "gcs":
        # fake-gcs-server ends a session at a status query; see test_gcs_sessions.py.
        return
    resumed.put_part(2, old[PART : 2 * PART])
    resumed.put_part(3, old[2 * PART :])
    resumed.complete(parts=3, metadata=METADATA)
    assert cloud.read("object") == old
    assert cloud.metadata("object") == METADATA


def test_an_abandoned_upload_leaves_nothing(cloud: Cloud, store: Store, old: bytes) -> None:
    begun = store.start_upload("object")
    begun.put_part(1, old[:PART])
    for _ in range(2):
        store.abandon("object", begun.state)
    assert cloud.keys() == []
    if isinstance(cloud, S3Cloud):
        assert not cloud.server.client()._list_multipart_uploads(cloud.bucket).uploads
