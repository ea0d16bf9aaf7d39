"""Journals of the first release, of a later version, and broken ones."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from sidecar.errors import StateUnusable
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import (
    DirectoryInode,
    DirectoryOpened,
    FileInode,
    LastNumbers,
    NamesRead,
)
from sidecar.mounter.filesystem.journal.replay import RecoveredState, ReplayedRequest
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.frames import Damage, frame
from tests.support.memory_store import MemoryStore
from tests.support.serve import build

FIRST = Path(__file__).parents[1] / "fixtures/journals/version-1"
"""The journal of a worker that was killed while it renamed ``old``, when one object was copied.

Every later version must read it: this is what the first release writes.
"""
LATER = b"msjrnl02" + bytes(100)
SPOOL_NAME = "00000000.data"
SPOOL = {"00000000": b"written and not saved", "00000001": b"AS it was"}
SPOOL |= {"00000002": b"nobody wants this", "00000003": b"below what is renamed"}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory that goes with it."""
    state = tmp_path / "state"
    (state / "spool").mkdir(parents=True)
    shutil.copy(FIRST, state / "journal")
    for name, content in SPOOL.items():
        (state / "spool" / f"{name}.data").write_bytes(content)
    log = b"msspol01" + frame(b'["exclusive", [true]]')
    (state / "spool/00000000.state").write_bytes(log)
    return state


def test_what_the_first_release_did_not_save_is_saved(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    there = {"changed": b"as it was", "link.rclonelink": b"target", "made/": b""}
    for key, content in {**there, "old/a": b"inside", "old/z": b"too", "renamed/a": b"in"}.items():
        store.put(key, content)
    filesystem, _ = build(store, state)
    saved = filesystem.recovery.finish_predecessor()
    assert sorted(saved) == ["changed", "new", "renamed/bel\u00f6w"]
    assert store.contents() == {
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


def test_records_of_the_first_release(state: Path) -> None:
    read = RecoveredState.read(Journal(StateDirectory.open(state)))
    assert not read.is_damaged
    root, new = read.inodes[ROOT], read.inodes[2]
    assert isinstance(root, DirectoryInode)
    assert root.parent is None
    assert isinstance(new, FileInode)
    assert (new.parent, new.name, new.spool_name) == (ROOT, "new", "00000000.data")
    (opened,) = [file for file in read.files.values() if file.inode == 2]
    assert (opened.is_writable, opened.backing_id) == (True, None)
    assert read.directories[1].names == ["new", "changed"]
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
    "later": (LATER, "of version 02; known is 01"),
    "torn header": (b"msjrnl", "of version ; known is 01"),
}


@pytest.mark.parametrize(("content", "why"), BROKEN.values(), ids=BROKEN)
def test_a_run_starts_anew_and_keeps_the_spool(
    state: Path, caplog: pytest.LogCaptureFixture, content: bytes, why: str
) -> None:
    (state / "journal").write_bytes(content)
    line = start_anew(state, caplog)
    assert line.startswith("what an earlier run left in the spool cannot be saved: ")
    assert why in line
    # The next start reads a journal without these files.
    assert build(MemoryStore(), state)[0].recovery.finish_predecessor() == ["a"]
    assert kept(state) == SPOOL


def test_a_worker_does_not_go_on_with_a_later_version(state: Path) -> None:
    (state / "journal").write_bytes(LATER)
    with pytest.raises(StateUnusable, match="version 02"):
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
