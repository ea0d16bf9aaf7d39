"""Journals of the version before, of a later version, and broken ones."""

from __future__ import annotations

import logging
import shutil
import struct
from pathlib import Path

import pytest

from sidecar.errors import StateUnusable
from sidecar.mounter.filesystem.inodes import ROOT
from sidecar.mounter.filesystem.journal import Journal
from sidecar.mounter.filesystem.records import (
    DirectoryInode,
    DirectoryOpened,
    FileInode,
    FileOpened,
    Intended,
    LastNumbers,
    LinkInode,
    NamesRead,
    RenameBegun,
)
from sidecar.mounter.filesystem.replay import RecoveredState, ReplayedRequest
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.frames import Damage
from tests.support.memory_store import MemoryStore
from tests.support.serve import build

JOURNALS = Path(__file__).parents[1] / "fixtures" / "journals"
"""Of workers that were killed in the middle of a rename of ``old``, when one object was copied.

``version-2`` was written by commit 2bebd07, ``version-3`` by b4e628c, each with its state in the
folder ``state`` below where it ran.
"""
VERSION_2, VERSION_3 = (JOURNALS / f"version-{number}" for number in (2, 3))
SPOOL_NAME = "00000000.data"
SPOOL = {"00000000": b"written and not saved", "00000001": b"AS it was"}
SPOOL |= {"00000002": b"nobody wants this", "00000003": b"below what is renamed"}
HEADER = struct.Struct("8sQ")
LOGS = {2: b'["exclusive", true]\n', 3: b'["format", 1]\n["exclusive", true]\n'}


def left_by(version: int, state: Path) -> Path:
    """The state directory that goes with the journal of a version."""
    (state / "spool").mkdir(parents=True)
    shutil.copy(JOURNALS / f"version-{version}", state / "journal")
    for name, content in SPOOL.items():
        (state / "spool" / f"{name}.data").write_bytes(content)
    (state / "spool/00000000.state").write_bytes(LOGS[version])
    return state


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Of version 2. It is found wherever it is by now: no path in a journal is believed."""
    return left_by(2, tmp_path / "elsewhere")


@pytest.fixture
def store() -> MemoryStore:
    """The store as that worker left it."""
    store = MemoryStore()
    for key, content in {
        "changed": b"as it was",
        "link.rclonelink": b"target",
        "made/": b"",
        "old/inside": b"inside",
        "renamed/inside": b"inside",
    }.items():
        store.put(key, content)
    return store


def contents(store: MemoryStore) -> dict[str, bytes]:
    found = {}
    for info in store.list_page("", delimiter="").objects:
        content = memoryview(bytearray(info.size_bytes))
        store.get_range(info.key, info.version, 0, content)
        found[info.key] = bytes(content)
    return found


class TestVersion2:
    def test_what_was_not_saved_is_saved(self, state: Path, store: MemoryStore) -> None:
        filesystem, _ = build(store, state)
        saved = filesystem.recovery.finish_predecessor()
        assert sorted(saved) == ["changed", "new", "renamed/below"]
        assert contents(store) == {
            "changed": b"AS it was",
            "link.rclonelink": b"target",
            "made/": b"",
            "new": b"written and not saved",
            "renamed/": b"",
            "renamed/below": b"below what is renamed",
            "renamed/inside": b"inside",
        }
        assert (store.head("new").metadata or {})["mode"] == str(0o100640)
        assert list((state / "spool").iterdir()) == []

    def test_it_is_written_anew_in_this_version(self, state: Path, store: MemoryStore) -> None:
        build(store, state)[0].recovery.finish_predecessor()
        assert (state / "journal").read_bytes()[:8] == b"msjrnl04"
        assert build(store, state)[0].recovery.finish_predecessor() == []

    def test_every_kind_of_record(self, state: Path) -> None:
        read = RecoveredState.read(Journal(StateDirectory.open(state)))
        assert read.last == LastNumbers(9, 5, 0)
        assert [type(record) for record in read.inodes.values()] == [
            *(DirectoryInode, FileInode, FileInode, LinkInode, DirectoryInode),
            *(FileInode, DirectoryInode, FileInode, FileInode),
        ]
        link, made = read.inodes[4], read.inodes[5]
        assert isinstance(link, LinkInode)
        assert (link.name, link.remote[0], link.target) == ("link", "link.rclonelink", b"target")
        assert isinstance(made, DirectoryInode)
        assert (made.parent, made.name, made.kept) == (ROOT, "made", True)
        assert read.inodes[6].detached
        assert sorted(read.files) == [1, 2, 3, 4]
        assert read.files[1] == FileOpened(1, 2, True, None)
        assert read.directories == {}  # no handle outlives an upgrade
        assert read.renames == {7: RenameBegun(7, "old/", "renamed/")}
        created = ReplayedRequest(read.requests[8])
        assert created.granted == [("lookup", 2), ("handle", 1)]
        assert created.answer == (0, b"reply")
        assert read.requests[10] == [Intended(10, "move", 7)]

    def test_a_worker_goes_on_with_it(self, state: Path, store: MemoryStore) -> None:
        filesystem, _ = build(store, state)
        filesystem.recovery.restore()
        filesystem.recovery.resent(10)
        filesystem.recovery.revoke(10)
        filesystem.recovery.begin_request(10)
        filesystem.rename(ROOT, "old", ROOT, "renamed", 0)
        filesystem.recovery.end_request(10)
        for handle in (1, 2, 4):
            filesystem.flush(handle)
        assert contents(store)["renamed/below"] == b"below what is renamed"
        assert contents(store)["new"] == b"written and not saved"


def test_an_upgrade_from_version_3_saves_what_was_not_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    there = {"changed": b"as it was", "link.rclonelink": b"target", "made/": b""}
    for key, content in {**there, "old/a": b"inside", "old/z": b"too", "renamed/a": b"in"}.items():
        store.put(key, content)
    state = left_by(3, tmp_path / "state")
    filesystem, _ = build(store, state)
    saved = filesystem.recovery.finish_predecessor()
    assert sorted(saved) == ["changed", "new", "renamed/bel\u00f6w"]
    assert contents(store) == {
        **there,
        "changed": b"AS it was",
        "new": b"written and not saved",
        "renamed/": b"",
        "renamed/a": b"inside",
        "renamed/bel\u00f6w": b"below what is renamed",
        "renamed/z": b"too",
    }
    metadata = store.head("new").metadata or {}
    assert (metadata["mode"], metadata["uid"]) == (str(0o100640), "4000000000")
    assert metadata["mtime"] == "1795666508.460555812"
    assert list((state / "spool").iterdir()) == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_every_kind_of_record_of_version_3(tmp_path: Path) -> None:
    read = RecoveredState.read(Journal(StateDirectory.open(left_by(3, tmp_path / "state"))))
    assert not read.is_damaged
    root, new = read.inodes[ROOT], read.inodes[2]
    assert isinstance(root, DirectoryInode)
    assert root.parent is None
    assert isinstance(new, FileInode)
    assert (new.parent, new.name, new.spool_name) == (ROOT, "new", "00000000.data")
    (opened,) = [file for file in read.files.values() if file.inode == 2]
    assert (opened.is_writable, opened.backing_id) == (True, None)
    assert read.directories == {}  # no handle outlives an upgrade
    (begun,) = read.renames.values()
    assert (begun.old_key, begun.new_key) == ("old/", "renamed/")
    assert ReplayedRequest(read.requests[2]).answer == (0, b"reply")


def kept(state: Path) -> dict[str, bytes]:
    """The spool files that were set aside, by their former names."""
    paths = (state / "spool").glob("*.data*")
    return {path.name.partition(".")[0]: path.read_bytes() for path in paths}


def start_anew(state: Path, caplog: pytest.LogCaptureFixture) -> str:
    """A run starts over a journal that it cannot read: the one line that it logs."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        filesystem, _ = build(MemoryStore(), state)
        assert filesystem.recovery.finish_predecessor() == []
    assert kept(state) == SPOOL
    assert filesystem.create(ROOT, "a", 0o600, 0)
    assert RecoveredState.read(Journal(StateDirectory.open(state))).inodes.keys() == {ROOT, 2}
    (line,) = caplog.messages
    return line


BROKEN = {
    "empty": (b"", "is no journal"),
    "foreign": (b"SQLite format 3\0" * 100, "is no journal"),
    "later": (HEADER.pack(b"msjrnl05", 16), "of version 05; known are 02, 03, 04"),
    "earlier": (HEADER.pack(b"msjrnl01", 16), "of version 01; known are 02, 03, 04"),
    "header only": (b"msjrnl03", "is damaged: 8 bytes, of which 0 are in use"),
    "end missing": (
        VERSION_2.read_bytes()[:1000],
        "is damaged: 1000 bytes, of which 2050 are in use",
    ),
    "a page of zeros": (
        VERSION_3.read_bytes()[:512] + bytes(512) + VERSION_3.read_bytes()[1024:],
        "is damaged at byte ",
    ),
    "nested": (
        HEADER.pack(b"msjrnl03", 16 + 4 + 50_000) + struct.pack("<I", 50_000) + b")\1" * 25_000,
        "is damaged at byte 16: nested too deeply",
    ),
    "a list of a billion": (
        HEADER.pack(b"msjrnl03", 16 + 4 + 5) + struct.pack("<I", 5) + b"[\xff\xff\xff\x7f",
        "is damaged at byte 16: 2147483647 values",
    ),
    "zeros at the end": (VERSION_2.read_bytes()[:1024] + bytes(1026), "is damaged at byte "),
}


@pytest.mark.parametrize(("content", "why"), BROKEN.values(), ids=BROKEN)
def test_a_run_starts_anew_and_keeps_the_spool(
    state: Path, caplog: pytest.LogCaptureFixture, content: bytes, why: str
) -> None:
    (state / "journal").write_bytes(content)
    line = start_anew(state, caplog)
    assert line.startswith("what an earlier run left in the spool cannot be saved: ")
    assert why in line
    # The next start reads a journal that knows nothing of these files.
    assert build(MemoryStore(), state)[0].recovery.finish_predecessor() == ["a"]
    assert kept(state) == SPOOL


def test_a_worker_does_not_go_on_with_a_later_version(state: Path) -> None:
    (state / "journal").write_bytes(HEADER.pack(b"msjrnl05", 16))
    with pytest.raises(StateUnusable, match="version 05"):
        build(MemoryStore(), state)[0].recovery.restore()


def test_torn_anywhere(tmp_path: Path) -> None:
    """Zeros from any byte on, as a machine's crash leaves pages that were not written yet."""
    journal = Journal(StateDirectory.open(tmp_path))
    journal.begin(list)
    for record in (
        LastNumbers(5, 5, 5),
        DirectoryInode(ROOT, None, "", 1, False, False, 0),
        FileInode(
            2, ROOT, "a", 1, False, ("a", 1, 1.0, "1"), {"mode": 0o600}, SPOOL_NAME, True, "a"
        ),
        DirectoryOpened(1, ROOT, []),
        NamesRead(1, 0, ["a"]),
    ):
        journal.write(record)
    content = (tmp_path / "journal").read_bytes()
    used = len(content.rstrip(b"\0"))
    whole = [one for one in journal.read() if not isinstance(one, Damage)]
    for position in range(8, used):
        (tmp_path / "journal").write_bytes(content[:position] + bytes(used - position))
        records = [one for one in journal.read() if not isinstance(one, Damage)]
        assert records == whole[: len(records)]
