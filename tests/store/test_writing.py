from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.errors import AlreadyExists, NotFound, Stale
from sidecar.mounter.store.interface import Condition, ObjectInfo, Store
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.spool_log import SentPart, SpoolLog
from sidecar.units import MIB
from tests.support.clouds import Cloud, GcsCloud
from tests.support.strict_gcs import GcsLimits, StrictGcsServer

# Azure's SDK hands aiohttp one piece of bytes.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

METADATA = {"mode": "644", "symlink-target": "../a b", "mtime": "1.5"}


def assert_agrees(store: Store, made: ObjectInfo) -> None:
    """HEAD, listing and a pinned read agree on the version that the write returned."""
    made = store.resolve_version(made)
    assert store.head(made.key).version == made.version
    (listed,) = store.list_page(made.key).objects
    assert (listed.version, listed.size_bytes) == (made.version, made.size_bytes)
    assert store.get_range(made.key, made.version, 0, memoryview(bytearray(10))) == min(
        10, made.size_bytes
    )


def test_put_writes_the_whole_object_with_its_metadata(cloud: Cloud, store: Store) -> None:
    content = os.urandom(3 * MIB)
    made = store.put("dir/object", memoryview(content), METADATA)
    assert cloud.read("dir/object") == content
    assert (made.key, made.size_bytes) == ("dir/object", len(content))
    assert store.head("dir/object").metadata == METADATA
    assert_agrees(store, made)


def test_put_over_an_object_replaces_content_and_metadata(cloud: Cloud, store: Store) -> None:
    store.put("object", b"old", METADATA)
    made = store.put("object", b"")
    assert cloud.read("object") == b""
    assert store.head("object").metadata == {}
    assert_agrees(store, made)


def test_conditional_puts(cloud: Cloud, store: Store) -> None:
    first = store.put("object", b"1", condition=Condition(absent=True))
    with pytest.raises(AlreadyExists):
        store.put("object", b"2", condition=Condition(absent=True))
    second = store.put("object", b"3", condition=Condition(version=first.version))
    with pytest.raises(Stale):
        store.put("object", b"4", condition=Condition(version=first.version))
    assert cloud.read("object") == b"3"
    store.delete("object")
    with pytest.raises(Stale):
        store.put("object", b"5", condition=Condition(version=second.version))
    assert cloud.keys() == []


@pytest.mark.parametrize("size", [1, 5 * MIB, 16 * MIB + 12345])
def test_parts_from_several_threads(cloud: Cloud, store: Store, size: int) -> None:
    content = os.urandom(size)
    upload = store.start_upload("dir/big", METADATA)
    parts = [
        (number, memoryview(content)[start : start + 5 * MIB])
        for number, start in enumerate(range(0, size, 5 * MIB), 1)
    ]
    random.Random(2).shuffle(parts)
    with ThreadPoolExecutor(len(parts)) as pool:
        for done in [pool.submit(upload.put_part, *part) for part in parts]:
            done.result()
    assert cloud.keys() == []
    made = upload.complete()
    assert cloud.read("dir/big") == content
    assert made.size_bytes == size
    assert store.head("dir/big").metadata == METADATA
    assert_agrees(store, made)


def test_conditional_complete(cloud: Cloud, store: Store) -> None:
    def upload(content: bytes, condition: Condition) -> ObjectInfo:
        begun = store.start_upload("object")
        begun.put_part(1, content)
        return begun.complete(condition)

    made = upload(b"1", Condition(absent=True))
    with pytest.raises(AlreadyExists):
        upload(b"2", Condition(absent=True))
    upload(b"3", Condition(version=made.version))
    with pytest.raises(Stale):
        upload(b"4", Condition(version=made.version))
    assert cloud.read("object") == b"3"


def test_an_aborted_upload_leaves_nothing(cloud: Cloud, store: Store) -> None:
    upload = store.start_upload("object")
    upload.put_part(1, b"x" * MIB)
    upload.abort()
    upload.abort()
    assert cloud.keys() == []


def test_what_is_kept_of_an_upload_is_read_by_a_successor(store: Store, tmp_path: Path) -> None:
    """The spool's log reads only names that it knows (a store that adds one must tell it)."""
    upload = store.start_upload("dir/object", METADATA)
    directory = StateDirectory.open(tmp_path)
    kept = SpoolLog(directory, "00000000.state")
    record = kept.note_begun("dir/object", upload.state, resumable=True)
    kept.note_sent(record, 1, SentPart(8, upload.put_part(1, b"12345678")))
    (found,) = SpoolLog.read(directory, "00000000.state").uploads.values()
    assert found.state == upload.state
    made = store.resume_upload(found.key, found.state, found.parts).complete()
    assert made.size_bytes == 8


def test_copy_keeps_or_replaces_metadata(cloud: Cloud, store: Store) -> None:
    content = os.urandom(MIB)
    made = store.put("a b+c", content, METADATA)
    kept = store.copy("a b+c", "dir/kept", known=made)
    assert cloud.read("dir/kept") == content
    assert store.head("dir/kept").metadata == METADATA
    assert_agrees(store, kept)
    replaced = store.copy("a b+c", "replaced", metadata={"other": "1"})
    assert store.head("replaced").metadata == {"other": "1"}
    assert_agrees(store, replaced)


def test_a_copy_that_google_does_in_steps(
    gcs_server: StrictGcsServer, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
    monkeypatch.setattr(gcs_server.proxy, "limits", GcsLimits(rewrite_calls=3))
    gcs_server.create_bucket("in-steps")
    cloud = GcsCloud(gcs_server, "in-steps")
    cloud.write_secret(secrets)
    store = cloud.open(secrets)
    store.put("source", b"content", METADATA)
    made = store.copy("source", "target")
    assert cloud.read("target") == b"content"
    assert_agrees(store, made)
    store.close()


def test_copy_in_place_changes_only_metadata(cloud: Cloud, store: Store) -> None:
    store.put("object", b"content", METADATA)
    changed = store.copy("object", "object", metadata={"mode": "600", "new": "2"})
    assert cloud.read("object") == b"content"
    metadata = store.head("object").metadata or {}
    # fake-gcs-server empties metadata that should be removed.
    assert {name: value for name, value in metadata.items() if value} == {"mode": "600", "new": "2"}
    assert_agrees(store, changed)


def test_copy_of_what_is_gone_or_changed(store: Store) -> None:
    with pytest.raises(NotFound):
        store.copy("missing", "target")
    old = store.put("object", b"1")
    store.put("object", b"2")
    with pytest.raises(Stale):
        store.copy("object", "target", known=old)
    with pytest.raises(NotFound):
        store.head("target")


def test_delete_again_is_no_error(cloud: Cloud, store: Store) -> None:
    cloud.write("object", b"x")
    store.delete("object")
    store.delete("object")
    store.delete("never/was")
    assert cloud.keys() == []


def test_delete_many(cloud: Cloud, store: Store) -> None:
    keys = [f"dir/{number} ü" for number in range(7)]
    for key in [*keys, "stays"]:
        cloud.write(key, b"x")
    store.delete_many([*keys, "missing"])
    assert cloud.keys() == ["stays"]
    store.delete_many([])
