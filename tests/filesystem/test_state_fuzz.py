"""Journals and spool logs that somebody made up: no error but of the tree, and bounded memory.

Most inputs have right checksums, so that what is behind them is reached.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.errors import SidecarError, StateUnusable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.inodes.attributes import Ownership
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import (
    Answered,
    DirectoryClosed,
    DirectoryInode,
    DirectoryOpened,
    FileClosed,
    FileInode,
    FileOpened,
    Granted,
    InodeDropped,
    Intended,
    LastNumbers,
    LinkInode,
    ListingRead,
    Lookups,
    NamesRead,
    Record,
    RenameBegun,
    RenameEnded,
    Replied,
    Resent,
    Revoked,
)
from sidecar.mounter.filesystem.journal.replay import RecoveredState, ReplayedRequest
from sidecar.mounter.filesystem.journal.stored_records import encode
from sidecar.mounter.filesystem.names.packed_names import pack_keys
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.frames import frame
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.spool import Spool
from sidecar.mounter.writing.spool_log import SpoolLog
from sidecar.units import MIB
from tests.support.memory_store import MemoryStore

SHARED_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
SHORT, LONG = 4_000, 1_000_000
USED_EVERY = 500
"""A file system takes over one in this many journals."""
MOST_MORE_MIB = 64

REMOTE = ("d/a", 5, 1795666508.46, "v1")
RECORDS: list[Record] = [
    LastNumbers(9, 9, 9),
    DirectoryInode(ROOT, None, "", 1, False, False, 10**18),
    DirectoryInode(2, ROOT, "d", 1, False, True, -1),
    FileInode(3, 2, "a", 1, False, REMOTE, {"mode": 0o640, "mtime_ns": -5}, None, False, None),
    FileInode(4, 2, "new", 2, False, None, {"uid": 7}, "00000000.data", True, "d/new"),
    FileInode(5, 4, "odd", 0, True, None, {}, "00000001.data", True, "d/odd"),
    LinkInode(6, ROOT, "l", 1, False, ("l.rclonelink", 1, 1.5, "2"), {}, b"target"),
    Lookups(3, 2),
    InodeDropped(9),
    FileOpened(1, 4, True, None),
    FileOpened(2, 3, False, 7),
    FileClosed(3),
    DirectoryOpened(1, 2, ["a"]),
    NamesRead(1, 1, ["b", "new"]),
    ListingRead(1, 3, 2, 0, pack_keys(["a", "d/", "l.rclonelink"])),
    ListingRead(1, 3, 900, 3, pack_keys([f"{number}" for number in range(1000)])),
    DirectoryClosed(2),
    RenameBegun(2, "d/", "e/"),
    RenameEnded(7),
    Granted(8, "lookup", [3, 4]),
    Revoked(8, "lookup", 3),
    Intended(10, "rename", 4, "d/old"),
    Replied(12, 0, bytes(40)),
    Resent(14, 2, 1),
    Answered([16, 18]),
]
LOG_RECORDS = [
    ["exclusive", [True]],
    ["begin", [1, "file", {"since_s": 1795666508.46}, False]],
    ["begin", [2, "file", {"upload": "1", "metadata": {"mtime": "1.5"}}, True]],
    ["end", [1]],
    ["sent", [2, 1, 1048576, "one"]],
    ["missing", [[1, 2]]],
    ["here", [2]],
    ["unsent", [2, 1]],
    ["attributes", [True]],
    ["attempt", [3145735, [{"mtime": "1.5"}]]],
    ["base", ["old", 3145728, 1795666509.63, "v2"]],
    ["saved", []],
]
INTERESTING = [
    *(b"", b"\0", b"\xff", b"/", b"..", b"../", b"[", b"{", b'"', b"\n", b"1e999", b"-1"),
    *(b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 8, b"\0" * 8),
    *(b"\xf5\xffMS", b"msjrnl01", b"msspol01", b"[" * 3000, b"9" * 5000, b"\\ud800"),
]


def mutated(choose: random.Random, content: bytes) -> bytes:
    """The bytes with a few changes, as they are made by chance and by intent."""
    data = bytearray(content)
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        at = choose.randrange(len(data) + 1)
        end = min(len(data), at + choose.choice((0, 1, 4, 8, 30)))
        match choose.randrange(5):
            case 0:
                data[at:end] = choose.choice(INTERESTING)
            case 1:
                data[at:end] = choose.randbytes(end - at)
            case 2:
                data[at:end] = b""
            case 3:
                data[at:at] = data[at:end]
            case 4 if data:
                data[at % len(data)] ^= 1 << choose.randrange(8)
    return bytes(data)


def inputs(choose: random.Random, header: bytes, payloads: list[bytes]) -> Iterator[bytes]:
    while True:
        kind = choose.random()
        chosen = choose.choices(payloads, k=choose.randrange(1, 12))
        if kind < 0.8:
            hit = choose.randrange(len(chosen))
            chosen[hit] = mutated(choose, chosen[hit])
        content = header + b"".join(map(frame, chosen)) + bytes(choose.choice((0, 100)))
        yield mutated(choose, content) if kind > 0.7 else content


def memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(count: int, source: Iterator[bytes], use: Callable[[bytes], bool]) -> str:
    """Uses the inputs; the line that says how many, and what became of them."""
    began_s, refused, before = time.monotonic(), 0, 0
    for number, content in enumerate(itertools.islice(source, count)):
        try:
            refused += not use(content)
        except BaseException:
            print(f"input {number}: {content!r}")
            raise
        if number == 1000:
            before = memory_bytes()
    more_mib = (memory_bytes() - before) / MIB
    assert more_mib < MOST_MORE_MIB
    return (
        f"{count} inputs in {time.monotonic() - began_s:.0f} s, {refused} refused as a whole, "
        f"{more_mib:.0f} MiB more memory at most"
    )


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory, where a file is replaced a hundred times as fast as on a busy disk."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What is damaged is logged, each time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# --- journals -------------------------------------------------------------------------------------


class TestJournal:
    @pytest.fixture
    def state(self, memory_path: Path) -> Path:
        (memory_path / "state/spool").mkdir(parents=True)
        (memory_path / "outside").write_bytes(b"secret")
        return memory_path / "state"

    def fuzz(self, state: Path, count: int, seed: int) -> str:
        choose = random.Random(seed)
        directory = StateDirectory.open(state)
        metrics = VolumeMetrics(state / "metrics", "data/memory", "data-memory")
        payloads = [encode(record) for record in RECORDS]
        payloads += [b"".join(payloads[start:]) for start in (0, 3, 9)]
        numbers = itertools.count()

        def use(content: bytes) -> bool:
            (state / "journal").write_bytes(content)
            try:
                read = RecoveredState.read(Journal(directory))
            except StateUnusable:
                return False
            finally:
                if next(numbers) % USED_EVERY == 0:
                    self.take_over(state, directory, metrics)
            check(read, len(content))
            return True

        return run(count, inputs(choose, b"msjrnl01", payloads), use)

    def take_over(self, state: Path, directory: StateDirectory, metrics: VolumeMetrics) -> None:
        content = (state / "journal").read_bytes()
        for is_start in (False, True):
            (state / "journal").write_bytes(content)
            for number in range(3):
                (state / f"spool/{number:08d}.data").write_bytes(b"content")
            filesystem = file_system(directory, metrics)
            with contextlib.suppress(SidecarError):
                if is_start:
                    filesystem.recovery.finish_predecessor()
                else:
                    filesystem.recovery.restore()
            for inode in filesystem.namespace.inodes:
                assert len(inode.key) < 2 * len(content) + 1000
            filesystem.create(ROOT, "usable", 0o600, os.O_RDWR)
            assert (state.parent / "outside").read_bytes() == b"secret"
            assert {path.name for path in state.parent.iterdir()} == {"state", "outside"}
            for path in (*(state / "spool").iterdir(), *state.glob("*.unusable")):
                path.unlink()

    def test_short(self, state: Path) -> None:
        self.fuzz(state, SHORT, 1)

    @pytest.mark.soak
    @pytest.mark.timeout(0)
    def test_long(self, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = self.fuzz(state, LONG, time.time_ns())
        with capsys.disabled():
            print(f"\njournals: {line}")


def file_system(directory: StateDirectory, metrics: VolumeMetrics) -> FileSystem:
    store = MemoryStore()
    for key in ("d/a", "d/old"):
        store.put(key, b"as it was")
    threads = ThreadPoolExecutor(1)
    return FileSystem(
        Fetcher(store, threads, BufferPool(4 * MIB), metrics, part_bytes=MIB),
        Spool(directory.below("spool"), MIB, PartLayout(MIB, store.limits)),
        Ownership(0, 0, 0o644, 0o755),
        metrics,
        threads,
        Journal(directory),
        read_only=False,
        ttl_s=3600,
    )


def check(read: RecoveredState, size_bytes: int) -> None:
    """It makes sense in itself, and is no larger than what it was read from."""
    for number, record in read.inodes.items():
        assert number == record.inode
        assert number >= 0
        here, steps = record.parent, 0
        while here is not None and here != ROOT and here in read.inodes:
            here, steps = read.inodes[here].parent, steps + 1
            assert steps <= len(read.inodes)
    for unsaved in read.unsaved():
        assert "/" not in unsaved.spool_name
        assert ".." not in unsaved.key.split("/")
    assert sum(len(one.names) for one in read.directories.values()) <= size_bytes
    for records in read.requests.values():
        ReplayedRequest(records)
    assert max(read.last) < 1 << 63


# --- spool logs -----------------------------------------------------------------------------------


class TestSpoolLog:
    def fuzz(self, directory: Path, count: int, seed: int) -> str:
        path = directory / "00000000.state"
        state = StateDirectory.open(directory)
        payloads = [json.dumps(record).encode() for record in LOG_RECORDS]

        def use(content: bytes) -> bool:
            path.write_bytes(content)
            try:
                read = SpoolLog.read(state, path.name)
            except StateUnusable:
                return False
            assert all(1 <= part <= 1_000_000 for part in read.missing)
            assert len(read.uploads) + len(read.missing) + len(read.attempts) <= len(content)
            for upload in read.uploads.values():
                assert ".." not in upload.key.split("/")
            read.note_saved()
            path.unlink(missing_ok=True)
            return True

        choose = random.Random(seed)
        return run(count, inputs(choose, b"msspol01", payloads), use)

    def test_short(self, memory_path: Path) -> None:
        self.fuzz(memory_path, SHORT, 2)

    @pytest.mark.soak
    @pytest.mark.timeout(0)
    def test_long(self, memory_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = self.fuzz(memory_path, LONG, time.time_ns())
        with capsys.disabled():
            print(f"\nspool logs: {line}")
