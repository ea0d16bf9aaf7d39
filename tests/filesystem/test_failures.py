"""What a program is told when the store or the spool fails."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from sidecar.errors import AccessDenied, NotFound, ReadOnly, SpoolFull, Unavailable
from tests.conformance import places
from tests.conformance.programs import fails_with
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore


def test_flush_reports_and_the_next_one_tries_again(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = view.open("file", os.O_WRONLY | os.O_CREAT)
    view.fs.write(handle, 0, b"content")
    store.refuse_content(Unavailable("an outage"))
    for _ in range(2):
        with pytest.raises(Unavailable):
            view.fs.flush(handle)
    with pytest.raises(NotFound):
        store.head("file")
    store.refuse_content(None)
    view.fs.flush(handle)
    assert store.head("file").size_bytes == 7
    view.fs.release(handle)


def test_a_failed_overwrite_leaves_the_old_object(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("file", b"old")
    view = View(store, tmp_path)
    store.refuse_content(AccessDenied("no"))
    with pytest.raises(AccessDenied):
        view.write("file", b"new content")
    assert store.head("file").size_bytes == 3
    assert view.read("file") == b"new content"  # kept here until it can be saved


def test_what_could_not_be_saved_is_listed_and_saved_later(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    failure = Unavailable("an outage")
    store.refuse_content(failure)
    with pytest.raises(Unavailable):
        view.write("file", b"content")
    assert view.fs.files.write_back.drain(time.monotonic() + 10) == {"file": failure}
    assert view.fs.files.write_back.drain(time.monotonic() - 1) == {"file": None}
    store.refuse_content(None)
    assert view.fs.files.write_back.drain(time.monotonic() + 10) == {}
    assert store.head("file").size_bytes == 7


def test_what_is_open_is_sent_without_being_closed(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = view.open("log", os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        view.fs.write(handle, 5 * (number - 1), b"line\n")
        assert view.fs.files.write_back.drain(time.monotonic() + 10) == {}
        assert store.head("log").size_bytes == 5 * number
    view.fs.release(handle)


def test_what_is_written_after_close_is_sent_later(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = view.open("file", os.O_WRONLY | os.O_CREAT)
    view.fs.flush(handle)
    view.fs.write(handle, 0, b"a page of a map")
    view.fs.release(handle)
    assert view.read("file") == b"a page of a map"
    assert view.fs.files.write_back.drain(time.monotonic() + 10) == {}
    assert store.head("file").size_bytes == 15


def test_a_full_spool(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    handle = view.open("file", os.O_WRONLY | os.O_CREAT)
    view.fs.write(handle, 0, b"content")
    budget = view.fs._spool.budget
    total, budget.total_bytes = budget.total_bytes, budget.used_bytes
    with pytest.raises(SpoolFull):
        view.fs.write(handle, 7, b"more")
    assert view.fs.statistics().blocks_free == 0
    view.fs.flush(handle)
    view.fs.release(handle)
    assert store.head("file").size_bytes == 7  # What was accepted is saved.
    assert budget.used_bytes == 0
    budget.total_bytes = total
    view.write("file", b"more")
    assert store.head("file").size_bytes == 4


def test_a_file_is_emptied_in_a_spool_that_is_over_full(tmp_path: Path) -> None:
    """The disk allocates whole blocks, and two concurrent writes may both pass the check."""
    view = View(MemoryStore(), tmp_path)
    handle = view.open("file", os.O_WRONLY | os.O_CREAT)
    view.fs.write(handle, 0, bytes(5000))
    budget = view.fs._spool.budget
    budget.total_bytes = budget.used_bytes - 1
    view.fs.set_attributes(view.inode("file"), {}, 100)
    emptied = view.fs.set_attributes(view.inode("file"), {}, 0)
    assert emptied.attributes.size_bytes == 0


def test_a_read_only_file_system_refuses_by_itself(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("file", b"content")
    view = View(store, tmp_path, read_only=True)
    root, inode = view.inode(""), view.inode("file")
    before = dict(store.requests)
    for change in (
        lambda: view.fs.create(root, "new", 0o644, os.O_WRONLY),
        lambda: view.fs.open(inode, os.O_WRONLY),
        lambda: view.fs.open(inode, os.O_RDONLY | os.O_TRUNC),
        lambda: view.fs.set_attributes(inode, {}, 0),
        lambda: view.fs.set_attributes(inode, {"mode": 0o600}),
        lambda: view.fs.unlink(root, "file"),
        lambda: view.fs.make_directory(root, "new"),
        lambda: view.fs.remove_directory(root, "new"),
        lambda: view.fs.rename(root, "file", root, "new", 0),
    ):
        with pytest.raises(ReadOnly):
            change()
    assert store.requests == before


@pytest.mark.parametrize("transport", ["kernel", "libfuse"])
def test_close_and_fsync_tell_the_program(tmp_path: Path, transport: str) -> None:
    with places.mounted(
        transport, tmp_path / "root", read_only=False, options=["--refuse-uploads"]
    ) as root:
        fd = os.open(root / "file", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"content")
        with fails_with(errno.EIO):
            os.fsync(fd)
        with fails_with(errno.EIO):
            os.close(fd)
        with fails_with(errno.EIO):
            (root / "other").write_bytes(b"content")
