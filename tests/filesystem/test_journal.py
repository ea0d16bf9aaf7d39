"""The journal, and that a file system restored from it equals the one that wrote it."""

from __future__ import annotations

import atexit
import functools
import os
import random
import tempfile
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from sidecar.errors import SidecarError, StateUnusable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.inodes.attributes import Entry, Ownership
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.filesystem.journal.journal import FIRST_BYTES, Journal
from sidecar.mounter.filesystem.journal.records import (
    DirectoryClosed,
    DirectoryInode,
    DirectoryOpened,
    FileClosed,
    FileInode,
    FileOpened,
    Granted,
    InodeDropped,
    InodeRecord,
    Intended,
    LastNumbers,
    LinkInode,
    ListingRead,
    Lookups,
    NamesRead,
    Record,
    Replied,
)
from sidecar.mounter.filesystem.journal.replay import RecoveredState, ReplayedRequest
from sidecar.mounter.filesystem.journal.stored_records import decode, encode
from sidecar.mounter.filesystem.names.packed_names import pack_keys
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.frames import Damage, frame
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.spool import Spool
from sidecar.units import MIB
from tests.filesystem.test_state_fuzz import RECORDS
from tests.support.memory_store import MemoryStore
from tests.support.serve import build

THREADS = 8
HEADER_BYTES = 8


def file_record(number: int, name: str, lookups: int, parent: int = ROOT) -> FileInode:
    return FileInode(number, parent, name, lookups, False, None, {}, None, False, None)


def journal_in(directory: Path) -> Journal:
    return Journal(StateDirectory.open(directory))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return journal_in(tmp_path)


ODD_RECORDS = [
    *RECORDS,
    FileInode(9, None, "\u00f6\U0001f600", 0, True, None, {"gid": 0xFFFFFFFF}, None, False, None),
    LinkInode(9, ROOT, "l", 1, False, ("l.rclonelink", 0, -1.5, ""), {"mtime_ns": -(10**27)}, None),
    LinkInode(9, ROOT, "l", 1, False, ("l.rclonelink", 0, 0.0, ""), {"uid": 1}, b""),
    DirectoryInode(9, ROOT, "d", 1, False, False, (1 << 62) * 10**9 + 1),
    DirectoryOpened(9, ROOT, []),
    NamesRead(9, 3, ["only", "local"]),
    ListingRead(9, 1, 7, 0, b""),
    ListingRead(9, 1, 7, 2, pack_keys(["a", "d/", "gone//", "l.rclonelink", "\udcff"])),
    ListingRead(9, 1, 7, 2, pack_keys([f"name {number}" for number in range(1000)])),
    Intended(9, "mkdir"),
    Granted(9, "reading", []),
    Replied(9, 40, b""),
]


@pytest.mark.parametrize("record", ODD_RECORDS, ids=repr)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    """Alone, and between others."""
    assert list(decode(encode(record))) == [record]
    assert list(decode(encode(ODD_RECORDS[0]) + encode(record) * 2)) == [
        ODD_RECORDS[0],
        record,
        record,
    ]


class TestFile:
    def test_records_come_back_in_order(self, journal: Journal, tmp_path: Path) -> None:
        journal.begin(lambda: [FileOpened(1, 2, True, None)])
        journal.write(FileClosed(1))
        assert list(journal_in(tmp_path).read()) == [
            FileOpened(1, 2, True, None),
            FileClosed(1),
        ]

    def test_a_record_that_was_cut_off_does_not_count(
        self, journal: Journal, tmp_path: Path
    ) -> None:
        """Killed in the middle of a frame: any part of it may be there."""
        journal.begin(list)
        journal.write(FileClosed(1))
        path = tmp_path / "journal"
        used = len(path.read_bytes().rstrip(b"\0")) + 8
        record = frame(encode(FileClosed(2)))
        for torn in (record[:3], record[:12], record[:-8], b"\0" * 12 + record[12:]):
            with path.open("r+b") as file:
                file.seek(used)
                file.write(torn.ljust(64, b"\0"))
            found = list(journal_in(tmp_path).read())
            assert found[0] == FileClosed(1)
            assert all(isinstance(one, Damage) and one.is_end for one in found[1:])

    def test_what_is_granted_at_once_counts_as_a_whole(
        self, journal: Journal, tmp_path: Path
    ) -> None:
        journal.begin(list)
        journal.begin_request(8)
        journal.grant("lookup", [2, 3], [file_record(2, "a", 1), file_record(3, "b", 1)])
        path = tmp_path / "journal"
        whole = RecoveredState.read(journal_in(tmp_path))
        assert ReplayedRequest(whole.requests[8]).granted == [("lookup", 2), ("lookup", 3)]
        assert set(whole.inodes) == {2, 3}
        content = path.read_bytes().rstrip(b"\0")
        for end in range(HEADER_BYTES, len(content)):  # killed while it was written
            path.write_bytes(content[:end] + bytes(1000))
            before = RecoveredState.read(journal_in(tmp_path))
            assert (before.requests, before.inodes) == ({}, {})

    def test_no_journal(self, tmp_path: Path) -> None:
        assert list(journal_in(tmp_path).read()) == []
        with pytest.raises(StateUnusable):
            build(MemoryStore(), tmp_path)[0].recovery.restore()

    @pytest.mark.parametrize("content", [b"", b"msjrnl02", b"x" * 100])
    def test_something_else(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "journal"
        path.write_bytes(content)
        with pytest.raises(StateUnusable):
            list(journal_in(path.parent).read())
        build(MemoryStore(), tmp_path)[
            0
        ].recovery.finish_predecessor()  # a new run starts all the same
        assert RecoveredState.read(journal_in(path.parent)).last.inode == ROOT

    def test_a_damaged_record(
        self, journal: Journal, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is named, and what follows is read."""
        journal.begin(list)
        for number in range(1, 4):
            journal.write(FileOpened(number, ROOT + number, False, None))
            journal.write(file_record(ROOT + number, f"name-{number}", 1))
        path = tmp_path / "journal"
        content = path.read_bytes()
        at = content.index(b"name-2")
        path.write_bytes(content[:at] + b"N" + content[at + 1 :])
        state = RecoveredState.read(journal_in(tmp_path))
        assert (list(state.inodes), list(state.files)) == ([2, 4], [1, 3])
        assert state.is_damaged
        assert state.last.inode > 1 << 32  # the lost record may have had any number
        first, second = caplog.messages
        assert str(path) in first
        assert "the checksum is wrong" in first
        assert "handle 2 is of no file" in second

    def test_a_journal_that_is_cut_off(self, journal: Journal, tmp_path: Path) -> None:
        journal.begin(list)
        for number in range(1000):
            journal.write(FileClosed(number))
        path = tmp_path / "journal"
        os.truncate(path, 100)
        *closed, damage = journal_in(tmp_path).read()
        assert closed == [FileClosed(number) for number in range(4)]
        assert isinstance(damage, Damage)

    def test_nothing_is_written_before_the_beginning(
        self, journal: Journal, tmp_path: Path
    ) -> None:
        journal.write(FileClosed(1))
        assert not (tmp_path / "journal").exists()

    def test_it_grows_with_what_is_held(self, journal: Journal, tmp_path: Path) -> None:
        """More than the file's first size at once, in one record and in many."""
        held: dict[int, Record] = {}
        journal.begin(lambda: list(held.values()))
        for number in range(3):
            held[number] = DirectoryOpened(number, ROOT, ["n" * 250] * (FIRST_BYTES // 250))
            journal.write(held[number])
        for number in range(3, 40_000):
            held[number] = DirectoryOpened(number, ROOT, ["name" * 25])
            journal.write(held[number])
        path = tmp_path / "journal"
        assert path.stat().st_size > 4 * FIRST_BYTES
        read = RecoveredState.read(journal_in(path.parent))
        assert read.directories == held

    def test_it_is_bounded(self, journal: Journal, tmp_path: Path) -> None:
        """However much is opened and closed."""
        journal.begin(list)
        for number in range(150_000):
            journal.write(FileOpened(number, 2, False, None))
            journal.write(FileClosed(number))
        assert (tmp_path / "journal").stat().st_size == FIRST_BYTES
        assert RecoveredState.read(journal_in(tmp_path)).files == {}


def test_compaction_under_load(tmp_path: Path) -> None:
    """Threads change what is held while others make the journal full again and again."""
    journal = journal_in(tmp_path)
    held: dict[int, Record] = {}
    journal.begin(lambda: list(held.values()))
    rewritten = set()

    def work(thread: int) -> None:
        choose = random.Random(thread)
        own: list[int] = []
        for count in range(4_000):
            if own and choose.random() < 0.5:
                number = own.pop(choose.randrange(len(own)))
                del held[number]
                journal.write(DirectoryClosed(number))
            else:
                number = count * THREADS + thread
                held[number] = DirectoryOpened(number, ROOT, ["x" * 250] * choose.randrange(9))
                own.append(number)
                journal.write(held[number])
            rewritten.add((tmp_path / "journal").stat().st_ino)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, range(THREADS)))
    assert len(rewritten) > 1
    read = RecoveredState.read(journal_in(tmp_path))
    assert read.directories == held


class TestRecoveredState:
    @staticmethod
    def add_up(tmp_path: Path, *records: Record) -> RecoveredState:
        journal = journal_in(tmp_path)
        journal.begin(list)
        for record in records:
            journal.write(record)
        return RecoveredState.read(journal_in(tmp_path))

    def test_lookups_are_the_last_that_were_written(self, tmp_path: Path) -> None:
        held = self.add_up(
            tmp_path, file_record(2, "a", 1), Lookups(2, 2), Lookups(2, 3), Lookups(3, 9)
        )
        assert held.inodes == {2: file_record(2, "a", 3)}

    def test_a_dropped_inode_is_gone_and_its_number_is_not_free(self, tmp_path: Path) -> None:
        held = self.add_up(tmp_path, file_record(7, "a", 1), Lookups(7, 0), InodeDropped(7))
        assert held.inodes == {}
        assert held.last.inode == 7

    def test_numbers_survive_a_snapshot(self, tmp_path: Path) -> None:
        opened = FileOpened(5, 2, False, None)
        held = self.add_up(tmp_path, LastNumbers(70, 80, 90), file_record(2, "a", 1), opened)
        assert held.last == (70, 80, 90)

    def test_names_replace_those_that_were_read_behind_them(self, tmp_path: Path) -> None:
        held = self.add_up(
            tmp_path,
            DirectoryOpened(1, ROOT, []),
            NamesRead(1, 0, ["a", "b", "c"]),
            NamesRead(1, 2, ["d"]),
            NamesRead(1, 0, ["x"]),
        )
        assert held.directories == {1: (1, ROOT, ["x"])}


def test_counts_are_right_whatever_threads_do_at_once(tmp_path: Path) -> None:
    """Lookups, forgets and opens from many threads, while the journal is rewritten."""
    store = MemoryStore()
    for number in range(50):
        store.put(f"{number:02d}-{'n' * 200}", b"x")
    filesystem, _ = build(store, tmp_path, ttl_s=60)
    filesystem.recovery.begin()
    names = [info.key for info in store.list_page("").objects]

    def work(thread: int) -> None:
        choose = random.Random(thread)
        for _ in range(1_500):
            entry = filesystem.lookup(ROOT, choose.choice(names))
            handle = filesystem.open(entry.attributes.inode, os.O_RDONLY)
            filesystem.release(handle)
            if choose.random() < 0.9:
                filesystem.forget(entry.attributes.inode, 1)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, range(THREADS)))
    held = RecoveredState.read(journal_in(tmp_path))
    assert held.files == {}
    counts = {inode.id: inode.lookups for inode in filesystem.namespace.inodes if inode.id != ROOT}
    assert {n: record.lookups for n, record in held.inodes.items() if n != ROOT} == counts


def test_no_number_is_given_twice(tmp_path: Path) -> None:
    """Not even a forgotten one, and not after two deaths."""
    store = MemoryStore()
    store.put("a", b"a")
    given = []
    filesystem = build(store, tmp_path)[0]
    filesystem.recovery.begin()
    for _ in range(3):
        inode = filesystem.lookup(ROOT, "a").attributes.inode
        handle = filesystem.open(inode, os.O_RDONLY)
        reading = filesystem.open_directory(ROOT)
        given.append((inode, handle, reading))
        filesystem.release(handle)
        filesystem.release_directory(reading)
        filesystem.forget(inode, 1)
        for _ in range(2):
            filesystem = build(store, tmp_path)[0]
            filesystem.recovery.restore()
    for numbers in zip(*given, strict=True):
        assert len(set(numbers)) == len(numbers)


def known(filesystem: FileSystem) -> tuple[list[Record], dict[int, str]]:
    """The records of inodes and handles that must survive, and the inodes' keys.

    Without modification times, which the write to the store determines.
    """
    records = filesystem.recovery.records()
    inodes = {
        record.inode: _without_mtime(record)
        for record in records
        if isinstance(record, InodeRecord) and record.inode != ROOT and _matters(record)
    }
    handles = [record for record in records if isinstance(record, FileOpened | DirectoryOpened)]
    keys = {number: filesystem.namespace.inodes.get(number).key for number in inodes}
    return sorted([*inodes.values(), *handles], key=repr), keys


def _without_mtime(record: InodeRecord) -> InodeRecord:
    if isinstance(record, DirectoryInode):
        return record._replace(mtime_ns=0)
    attributes = {name: value for name, value in record.attributes.items() if name != "mtime_ns"}
    if isinstance(record, LinkInode):
        return record._replace(attributes=attributes)
    return record._replace(attributes=attributes)


def _matters(record: InodeRecord) -> bool:
    if record.lookups:
        return True
    return isinstance(record, FileInode) and bool(record.spool_name) and not record.detached


@functools.cache
def shared_metrics() -> VolumeMetrics:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return VolumeMetrics(Path(folder.name), "data/memory", "data-memory")


NAMES = st.sampled_from(["a", "b", "c", "d"])


class AtOnce(Executor):
    """Runs what is submitted at once, in the calling thread."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future


class Restored(RuleBasedStateMachine):
    """Requests as from the kernel; at any moment another file system may take over."""

    directories = Bundle("directories")
    files = Bundle("files")
    readings = Bundle("readings")
    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._metrics = shared_metrics()
        self._store = MemoryStore()
        for key in ("a", "b/a", "b/b/c", "c/d"):
            self._store.put(key, key.encode())
        self._filesystem = self._build()
        self._filesystem.recovery.begin()
        self._last_inode = ROOT
        self._last_handle = 0
        self._read: dict[int, int] = {}  # open directories: handle to inode

    def teardown(self) -> None:
        self._folder.cleanup()

    def _build(self) -> FileSystem:
        """A worker's file system, but for the metrics, whose files stay open in a process."""
        directory = StateDirectory.open(Path(self._folder.name))
        filesystem = FileSystem(
            Fetcher(
                self._store,
                ThreadPoolExecutor(1),
                BufferPool(16 * MIB),
                self._metrics,
                part_bytes=MIB,
            ),
            Spool(directory.below("spool"), MIB, PartLayout(MIB, self._store.limits)),
            Ownership(os.getuid(), os.getgid(), 0o644, 0o755),
            self._metrics,
            ThreadPoolExecutor(1),
            Journal(directory),
            read_only=False,
            ttl_s=3600,
        )
        # A thread would go on saving, and journal it, after its worker died.
        filesystem.files.write_back._threads = AtOnce()
        return filesystem

    def _given(self, entry: Entry) -> int:
        """Note that the kernel now has this inode; its number."""
        self._last_inode = max(self._last_inode, entry.attributes.inode)
        return entry.attributes.inode

    def _opened(self, handle: int) -> int:
        self._last_handle = max(self._last_handle, handle)
        return handle

    def _try(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except SidecarError:
            return None

    @rule(target=directories)
    def root(self) -> int:
        return ROOT

    @rule(target=directories, parent=directories, name=NAMES)
    def make_directory(self, parent: int, name: str) -> Any:
        entry = self._try(self._filesystem.make_directory, parent, name)
        return self._given(entry) if entry else ROOT

    @rule(target=directories, parent=directories, name=NAMES)
    def look_up_directory(self, parent: int, name: str) -> Any:
        entry = self._try(self._filesystem.lookup, parent, name)
        return self._given(entry) if entry else ROOT

    @rule(target=files, parent=directories, name=NAMES)
    def look_up(self, parent: int, name: str) -> Any:
        entry = self._try(self._filesystem.lookup, parent, name)
        return self._given(entry) if entry else multiple()

    @rule(inode=st.one_of(files, directories), count=st.integers(1, 3))
    def forget(self, inode: int, count: int) -> None:
        if inode not in self._read.values():  # The kernel does not forget an open directory.
            self._filesystem.forget(inode, count)

    @rule(target=handles, parent=directories, name=NAMES)
    def create(self, parent: int, name: str) -> Any:
        made = self._try(self._filesystem.create, parent, name, 0o600, os.O_RDWR)
        if made is None:
            return multiple()
        self._given(made[0])
        return self._opened(made[1])

    @rule(target=handles, inode=files, flags=st.sampled_from([os.O_RDONLY, os.O_RDWR]))
    def open(self, inode: int, flags: int) -> Any:
        handle = self._try(self._filesystem.open, inode, flags)
        return self._opened(handle) if handle is not None else multiple()

    @rule(handle=handles, offset=st.integers(0, 9))
    def write(self, handle: int, offset: int) -> None:
        self._try(self._filesystem.write, handle, offset, b"data")

    @rule(handle=handles)
    def flush(self, handle: int) -> None:
        self._try(self._filesystem.flush, handle)

    @rule(handle=consumes(handles))
    def release(self, handle: int) -> None:
        self._filesystem.release(handle)

    @rule(parent=directories, name=NAMES)
    def unlink(self, parent: int, name: str) -> None:
        self._try(self._filesystem.unlink, parent, name)

    @rule(parent=directories, name=NAMES)
    def remove_directory(self, parent: int, name: str) -> None:
        self._try(self._filesystem.remove_directory, parent, name)

    @rule(parent=directories, name=NAMES, new_parent=directories, new_name=NAMES)
    def rename(self, parent: int, name: str, new_parent: int, new_name: str) -> None:
        self._try(self._filesystem.rename, parent, name, new_parent, new_name, 0)

    @rule(inode=files, size=st.one_of(st.none(), st.integers(0, 9)))
    def set_attributes(self, inode: int, size: int | None) -> None:
        self._try(self._filesystem.set_attributes, inode, {"mode": 0o640}, size)

    @rule(target=readings, inode=directories)
    def open_directory(self, inode: int) -> Any:
        handle = self._try(self._filesystem.open_directory, inode)
        if handle is None:
            return multiple()
        self._read[handle] = inode
        return handle

    @rule(handle=readings, offset=st.integers(0, 6), count=st.integers(1, 3))
    def read_directory(self, handle: int, offset: int, count: int) -> None:
        self._try(self._read_directory, handle, offset, count)

    def _read_directory(self, handle: int, offset: int, count: int) -> None:
        last = offset
        for line, _ in zip(
            self._filesystem.read_directory(handle, offset), range(count), strict=False
        ):
            last = line.offset
        self._filesystem.entries_read(handle, last)

    @rule(handle=consumes(readings))
    def release_directory(self, handle: int) -> None:
        self._filesystem.release_directory(handle)
        del self._read[handle]

    @rule()
    def take_over(self) -> None:
        """The worker dies here; the next one goes on."""
        successor = self._build()
        successor.recovery.restore()
        assert known(successor) == known(self._filesystem)
        assert successor.namespace.inodes.last_number >= self._last_inode
        assert successor.files.last_number >= self._last_handle
        self._filesystem = successor

    @invariant()
    def what_is_written_down_is_what_is_held(self) -> None:
        held = RecoveredState.read(journal_in(Path(self._folder.name)))
        assert held.files.keys() == self._filesystem.files._handles.keys()
        for inode in self._filesystem.namespace.inodes:
            if inode.lookups and inode.id != ROOT:
                assert held.inodes[inode.id].lookups == inode.lookups


TestRestored = pytest.mark.filterwarnings("ignore::ResourceWarning")(Restored.TestCase)
# A success takes seconds; a failure takes long to shrink, and must still be reported.
TestRestored = pytest.mark.timeout(600)(TestRestored)
Restored.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
