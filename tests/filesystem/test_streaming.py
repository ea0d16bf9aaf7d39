"""Large files: sent while they are written, kept within the spool's budget, saved cheaply."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import (
    AccessDenied,
    AlreadyExists,
    ObjectArchived,
    SpoolFull,
    Stale,
    StoreError,
    StoreProtocolError,
    Unavailable,
)
from sidecar.mounter.filesystem.inodes.inode import File
from sidecar.mounter.store.interface import Condition, Limits, ObjectInfo
from sidecar.mounter.store.s3.store import S3Store
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.spool_log import SpoolLog
from sidecar.units import MIB
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore, after, before, raising, renaming_store
from tests.support.waiting import wait_until

PART = 8 * MIB
FOR_EVER_S = 60.0
UPLOAD_THREADS = 4


def block(number: int, size: int = MIB) -> bytes:
    return random.Random(number).randbytes(size)


def until(condition: Callable[[], bool]) -> None:
    wait_until(condition, "what the test waits for", FOR_EVER_S)


def new_file(view: View, mib: int, name: str = "file") -> int:
    """A handle of a new file of this many MiB, still open for writing."""
    handle = view.open(name, os.O_RDWR | os.O_CREAT)
    for number in range(mib):
        view.fs.write(handle, number * MIB, block(number))
    return handle


def blocks(mib: int) -> bytes:
    return b"".join(map(block, range(mib)))


def hold_parts(store: MemoryStore) -> threading.Event:
    """From now on, parts wait for this event."""
    gate = threading.Event()
    store.hooks["part"] = before(lambda *_: gate.wait(FOR_EVER_S))
    return gate


def parts_there(store: MemoryStore) -> int:
    return sum(len(upload.parts) for upload in store.uploads.values())


@pytest.mark.parametrize(
    "limits",
    [
        S3Store.limits,
        Limits(5 << 40, 1, 5 << 40, 1 << 20),
        Limits(190 << 40, 1, 4000 * MIB, 50_000),
    ],
)
def test_parts_grow_until_the_store_s_limits_are_in_reach(limits: Limits) -> None:
    layout = PartLayout(PART, limits)
    assert layout.start(limits.max_parts + 1) >= 5 << 40
    end = 0
    for number in [*range(1, 3), *range(limits.max_parts // 10 - 2, limits.max_parts // 10 + 3)]:
        start = layout.start(number)
        assert start >= end
        end = start + layout.size(number)
        assert layout.start(number + 1) == end
        assert layout.number(start) == layout.number(end - 1) == number
        assert limits.min_part_bytes <= layout.size(number) <= limits.max_part_bytes


def test_a_new_file_is_sent_while_it_is_written(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = new_file(view, 20)
    until(lambda: parts_there(store) == 2)  # before it is closed
    assert view.read_handle(handle, 7 * MIB, 2 * MIB) == blocks(9)[7 * MIB :]
    view.fs.flush(handle)
    assert store.content("file") == blocks(20)
    assert store.requests["part"] == 3  # Close sent only the rest.
    assert not store.uploads
    view.fs.release(handle)
    assert not list((tmp_path / "spool").iterdir())


def test_a_file_is_whole_that_is_being_saved_when_the_last_minute_begins(tmp_path: Path) -> None:
    """Its last part waits for a thread then, and is withdrawn with those of all other files."""
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = new_file(view, 9)
    until(lambda: parts_there(store) == 1)
    gate = hold_parts(store)
    others = [new_file(view, 9, f"other{number}") for number in range(UPLOAD_THREADS)]
    until(lambda: store.requests["part"] == 1 + UPLOAD_THREADS)
    spool = view.fs.files.get(handle).inode.spool
    assert spool is not None
    with ThreadPoolExecutor(1) as closing:
        closed = closing.submit(view.fs.flush, handle)
        until(lambda: view.fs.files._uploader.is_busy(spool))
        view.fs.files.final_saving.end_at(time.monotonic() + FOR_EVER_S)
        gate.set()
        closed.result()
    assert store.content("file") == blocks(9)
    for other in others:
        view.fs.release(other)


def test_another_deadline_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """Somebody shortens a pod's grace period after the pod began to end."""
    view, leaving, told = View(MemoryStore(), tmp_path), threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as one:
        first = one.submit(view.fs.hurry, time.monotonic() + FOR_EVER_S, leaving, told.set)
        assert told.wait(FOR_EVER_S)
        view.fs.hurry(time.monotonic(), leaving, lambda: None)
        first.result(FOR_EVER_S)
        view.fs.hurry(time.monotonic(), leaving, lambda: None)


def test_what_was_sent_and_is_written_again_is_sent_again(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = new_file(view, 20)
    until(lambda: parts_there(store) == 2)
    view.fs.write(handle, 3, b"header")
    view.fs.set_attributes(view.inode("file"), {}, 18 * MIB)
    view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("file") == (block(0)[:3] + b"header" + blocks(20)[9:])[: 18 * MIB]
    assert not store.uploads


def test_unlink_aborts_the_upload(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = new_file(view, 20)
    until(lambda: parts_there(store) == 2)
    view.unlink("file")
    until(lambda: not store.uploads)
    assert view.read_handle(handle, 0) == block(0)
    view.fs.write(handle, 20 * MIB, blocks(9))
    view.fs.flush(handle)
    view.fs.release(handle)
    assert not store.uploads
    assert view.names() == []


def test_a_file_larger_than_the_spool_is_written_read_and_changed(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path, spool_bytes=24 * MIB)
    handle = new_file(view, 100)
    assert view.fs.statistics().blocks * 4096 <= 24 * MIB
    for number in (0, 50, 99):  # only the store has the first two
        assert view.read_handle(handle, number * MIB) == block(number)
    view.fs.write(handle, 10 * MIB + 1, b"changed")
    view.fs.write(handle, 100 * MIB, b"end")
    view.fs.flush(handle)
    expected = bytearray(blocks(100) + b"end")
    expected[10 * MIB + 1 : 10 * MIB + 8] = b"changed"
    assert store.content("file") == expected
    view.fs.release(handle)
    assert not store.uploads
    assert not list((tmp_path / "spool").iterdir())


def test_a_spool_that_cannot_be_emptied_is_full(tmp_path: Path) -> None:
    store = MemoryStore()
    store.refuse_content(Unavailable("an outage"))
    view = View(store, tmp_path, spool_bytes=24 * MIB)
    handle = view.open("file", os.O_RDWR | os.O_CREAT)

    def fill() -> None:
        for number in range(100):
            view.fs.write(handle, number * MIB, block(number))

    with pytest.raises(SpoolFull):
        fill()
    store.refuse_content(None)
    view.fs.flush(handle)
    assert store.content("file") == blocks(store.head("file").size_bytes // MIB)


def test_appending_to_a_log_sends_what_is_new(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("log", blocks(40))
    view = View(store, tmp_path)
    handle = view.open("log", os.O_WRONLY)
    for number in range(5):
        view.fs.write(handle, 40 * MIB + 5 * number, b"line\n")
        view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("log") == blocks(40) + 5 * b"line\n"
    assert store.patched_bytes == 5 * len(b"line\n")


def test_of_a_large_object_only_what_changes_is_fetched_and_sent(tmp_path: Path) -> None:
    store = MemoryStore(S3Store.limits)
    store.put("file", blocks(100))
    view = View(store, tmp_path)
    handle = view.open("file", os.O_RDWR)
    view.fs.write(handle, 50 * MIB, b"changed")
    assert store.requests["get"] == 1
    view.fs.flush(handle)
    assert store.patched_bytes == S3Store.limits.min_part_bytes
    assert view.read_handle(handle, 99 * MIB) == block(99)
    view.fs.release(handle)
    assert store.content("file")[50 * MIB :][:7] == b"changed"


def test_another_s_change_of_a_large_object_is_no_mixture(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("file", blocks(100))
    view = View(store, tmp_path)
    handle = view.open("file", os.O_RDWR)
    view.fs.write(handle, 0, b"changed")
    theirs = store.put("file", b"theirs")
    with pytest.raises(Stale):
        view.fs.flush(handle)
    assert store.head("file").version == theirs.version


def test_overwriting_another_s_version_is_counted(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("file", b"old")
    view = View(store, tmp_path)
    handle = view.open("file", os.O_WRONLY)
    view.fs.write(handle, 3, b" and new")
    store.put("file", b"theirs")
    view.fs.flush(handle)
    assert store.content("file") == b"old and new"
    assert view.metric("mount_sidecar_overwritten_versions_total") == 1


def test_an_exclusive_file_does_not_overwrite_another_s(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = view.open("file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    view.fs.write(handle, 0, b"ours")
    store.put("file", b"theirs")
    with pytest.raises(AlreadyExists):
        view.fs.flush(handle)
    assert view.read("file") == b"theirs"
    assert view.read_handle(handle) == b"ours"  # through the handle that has it open
    view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("file") == b"theirs"


def test_an_exclusive_file_of_a_worker_that_died_does_not_overwrite_another_s(
    tmp_path: Path,
) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    handle = new_exclusive(view, b"ours")
    store.put("file", b"theirs")
    successor = View(store, tmp_path)
    successor.fs.recovery.restore()
    with pytest.raises(AlreadyExists):
        successor.fs.flush(handle)
    assert store.content("file") == b"theirs"


class Killed(BaseException):
    """Stands for the death of a worker within one process."""


def new_exclusive(view: View, data: bytes) -> int:
    handle = view.open("file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    view.fs.write(handle, 0, data)
    return handle


def test_what_a_worker_that_died_had_made_is_not_another_s(tmp_path: Path) -> None:
    """It created the object, and was killed before it could journal that."""
    store = MemoryStore()
    store.once("put", after(raising(Killed())))
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    handle = new_exclusive(view, b"ours")
    with pytest.raises(Killed):
        view.fs.flush(handle)
    successor = View(store, tmp_path)
    successor.fs.recovery.restore()
    successor.fs.write(handle, 4, b", and more")
    successor.fs.flush(handle)
    assert store.content("file") == b"ours, and more"


@pytest.mark.parametrize("more", [b"", b", and more"])
def test_what_a_worker_that_died_had_replaced_is_not_another_s(tmp_path: Path, more: bytes) -> None:
    """It replaced the object, and was killed before it could journal that."""
    store = MemoryStore()
    store.put("file", b"old")
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    handle = view.open("file", os.O_RDWR)
    view.fs.write(handle, 0, b"ours")
    store.once("put", after(raising(Killed())))
    with pytest.raises(Killed):
        view.fs.flush(handle)
    successor = View(store, tmp_path)
    successor.fs.recovery.restore()
    if more:
        successor.fs.write(handle, 4, more)
    successor.fs.flush(handle)
    assert store.content("file") == b"ours" + more
    assert successor.metric("mount_sidecar_overwritten_versions_total") == 0
    successor.fs.release(handle)
    assert not list((tmp_path / "spool").iterdir())


def test_a_worker_that_dies_between_its_two_notes_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool log may forget the attempts once the journal knows the new version."""
    store = MemoryStore()
    store.put("file", b"old")
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    handle = view.open("file", os.O_RDWR)
    view.fs.write(handle, 0, b"ours")
    note_saved = SpoolLog.note_saved

    def note_and_die(log: SpoolLog) -> None:
        note_saved(log)
        raise Killed

    monkeypatch.setattr(SpoolLog, "note_saved", note_and_die)
    with pytest.raises(Killed):
        view.fs.flush(handle)
    monkeypatch.undo()
    successor = View(store, tmp_path)
    successor.fs.recovery.restore()
    successor.fs.write(handle, 4, b", and more")
    successor.fs.flush(handle)
    assert store.content("file") == b"ours, and more"
    assert successor.metric("mount_sidecar_overwritten_versions_total") == 0


def test_a_worker_dies_while_it_tries_what_a_dead_one_had_done(tmp_path: Path) -> None:
    """The object is the first worker's, and the second one has noted another attempt."""
    store = MemoryStore()
    store.put("file", b"old")
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    handle = view.open("file", os.O_RDWR)
    for text, dies in ((b"ours", after(raising(Killed()))), (b"ours, and more", raising(Killed()))):
        store.once("put", dies)
        view.fs.write(handle, 0, text)
        with pytest.raises(Killed):
            view.fs.flush(handle)
        view = View(store, tmp_path)
        view.fs.recovery.restore()
    view.fs.flush(handle)
    assert store.content("file") == b"ours, and more"
    assert view.metric("mount_sidecar_overwritten_versions_total") == 0


def test_what_a_dead_worker_s_upload_had_made_is_not_another_s(tmp_path: Path) -> None:
    """On some stores the object has the time at which its upload began."""
    store = MemoryStore()
    store.put("file", b"old")
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    handle = view.open("file", os.O_RDWR | os.O_TRUNC)
    for number in range(20):
        view.fs.write(handle, number * MIB, block(number))
    until(lambda: parts_there(store) == 2)
    [upload] = store.uploads.values()
    begun_with = dict(upload._metadata or {})
    complete = upload.complete

    def complete_and_die(condition: Condition | None = None, **options: Any) -> ObjectInfo:
        complete(condition, **{**options, "metadata": begun_with})
        raise Killed

    upload.complete = complete_and_die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        view.fs.flush(handle)

    def gone(*_: object, **__: object) -> Any:
        raise StoreProtocolError("the upload is gone")

    upload.complete = upload.put_part = gone  # type: ignore[method-assign]
    store.uploads[int(upload.state["upload"])] = upload
    successor = View(store, tmp_path)
    successor.fs.recovery.restore()
    successor.fs.write(handle, 5, b"changed")  # of the same size
    successor.fs.flush(handle)
    assert store.content("file")[:12] == block(0)[:5] + b"changed"
    assert successor.metric("mount_sidecar_overwritten_versions_total") == 0


def test_what_was_made_without_an_answer_may_be_changed(tmp_path: Path) -> None:
    store = MemoryStore()
    store.once("put", after(raising(Unavailable("the answer was lost, and the retries too"))))
    view = View(store, tmp_path)
    handle = new_exclusive(view, b"ours")
    with pytest.raises(Unavailable):
        view.fs.flush(handle)
    view.fs.write(handle, 4, b", and more")
    view.fs.flush(handle)
    assert store.content("file") == b"ours, and more"


def test_an_attempt_that_was_made_again_met_no_other_s_object(tmp_path: Path) -> None:
    store = MemoryStore()
    store.once(
        "put", after(raising(AlreadyExists("the second attempt met what the first one had made")))
    )
    view = View(store, tmp_path)
    view.fs.flush(new_exclusive(view, b"ours"))
    assert view.read("file") == store.content("file") == b"ours"


def test_an_attempt_that_was_made_again_met_no_other_s_version(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("file", b"old")
    store.once("put", after(raising(Stale("the second attempt met what the first one had made"))))
    view = View(store, tmp_path)
    handle = view.open("file", os.O_RDWR)
    view.fs.write(handle, 0, b"ours")
    view.fs.flush(handle)
    assert view.read("file") == store.content("file") == b"ours"
    assert view.metric("mount_sidecar_overwritten_versions_total") == 0


def test_what_is_written_after_the_drain_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = new_file(view, 1)
    assert view.fs.drain(time.monotonic() + FOR_EVER_S, lambda: None) == {}
    assert store.content("file") == block(0)
    with pytest.raises(Unavailable):
        view.fs.write(handle, 0, b"late")


def test_a_successor_goes_on_with_the_same_upload(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path, spool_bytes=24 * MIB)
    view.fs.recovery.begin()
    new_file(view, 60)
    until(lambda: parts_there(store) == 7)
    successor = View(store, tmp_path, spool_bytes=24 * MIB)
    assert successor.fs.recovery.finish_predecessor() == ["file"]
    assert store.content("file") == blocks(60)
    assert not store.uploads
    assert not list((tmp_path / "spool").iterdir())


def test_a_spool_file_whose_log_cannot_be_used_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    new_file(view, 20, "first")
    new_file(view, 1, "second")
    until(lambda: parts_there(store) == 2)
    log = tmp_path / "spool" / "00000000.state"
    log.write_bytes(b"\0" * 4096 + b"\n")
    successor = View(store, tmp_path)
    assert successor.fs.recovery.finish_predecessor() == ["second"]
    assert store.content("second") == block(0)
    (kept,) = (tmp_path / "spool").glob("00000000.data.*")
    assert kept.read_bytes() == blocks(20)
    (fields,) = (record.__dict__["fields"] for record in caplog.records)
    assert (fields["key"], fields["path"]) == ("first", str(kept))
    assert "it begins with" in str(fields["error"])


def test_a_predecessor_s_upload_that_nobody_needs_is_aborted(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    new_file(view, 20)
    until(lambda: parts_there(store) == 2)
    others = store.start_upload("another program's")
    (tmp_path / "journal").unlink()
    successor = View(store, tmp_path)
    assert successor.fs.recovery.finish_predecessor() == []
    until(lambda: list(store.uploads.values()) == [others])
    until(lambda: not list((tmp_path / "spool").iterdir()))


def test_the_spool_keeps_a_file_until_its_version_is_final(tmp_path: Path) -> None:
    store = renaming_store()
    view = View(store, tmp_path, ttl_s=0.0)
    handle = new_file(view, 17)
    view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("file") == blocks(17)
    assert not store.requests.get("resolve_version")
    reader = view.open("file")
    inode = view.fs.namespace.inodes.get(view.inode("file"))
    assert isinstance(inode, File)
    assert inode.spool is not None
    assert view.read_handle(reader, 16 * MIB) == block(16)
    assert "get" not in store.requests
    view.fs.files.write_back.resolve_versions()
    until(lambda: inode.spool is None)
    assert inode.remote == store.head("file")
    assert view.inode("file") == inode.id
    assert view.read_handle(reader, 16 * MIB) == block(16)


def test_a_file_without_a_final_version_is_changed_and_renamed(tmp_path: Path) -> None:
    store = renaming_store()
    view = View(store, tmp_path, ttl_s=0.0)
    handle = new_file(view, 17)
    view.fs.flush(handle)
    view.fs.write(handle, 0, b"changed")
    view.fs.flush(handle)  # Over the version that has just been made.
    view.fs.release(handle)
    view.rename("file", "other")
    expected = b"changed" + blocks(17)[7:]
    assert store.content("other") == expected
    view.fs.files.write_back.resolve_versions()
    inode = view.fs.namespace.inodes.get(view.inode("other"))
    assert isinstance(inode, File)
    until(lambda: inode.spool is None)
    assert not view.metric("mount_sidecar_overwritten_versions_total")
    assert view.read("other") == expected[:MIB]


def test_a_successor_does_not_look_for_the_spool_of_a_file_that_nobody_holds(
    tmp_path: Path,
) -> None:
    store = renaming_store()
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    handle = new_file(view, 17)
    view.fs.flush(handle)
    view.fs.release(handle)
    number = view.inode("file")
    inode = view.fs.namespace.inodes.get(number)
    assert isinstance(inode, File)
    view.fs.forget(number, inode.lookups)  # Now only the unresolved version keeps the inode.
    assert inode.spool is not None
    view.fs.files.write_back.resolve_versions()
    until(lambda: not list((tmp_path / "spool").glob("*.data")))
    successor = View(store, tmp_path)
    successor.fs.recovery.restore()
    assert successor.read("file") == block(0)


@pytest.mark.parametrize(
    "refusal",
    [
        StoreProtocolError("no range of so small an object"),
        AccessDenied("the policy lets nobody copy"),
        ObjectArchived("the old version is in an archive"),
    ],
    ids=lambda refusal: type(refusal).__name__,
)
@pytest.mark.parametrize("mib", [40, 100], ids=["in the spool", "in the store"])
def test_what_the_store_will_not_copy_is_sent_whole(
    tmp_path: Path, refusal: StoreError, mib: int
) -> None:
    """Else a file whose change is refused could never be saved."""
    store = MemoryStore()
    store.put("log", blocks(mib))
    view = View(store, tmp_path)
    handle = view.open("log", os.O_WRONLY)
    view.fs.write(handle, mib * MIB, b"line\n")
    store.hooks["patch"] = raising(refusal)
    view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("log") == blocks(mib) + b"line\n"
