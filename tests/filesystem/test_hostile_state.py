"""A state directory that somebody else wrote into: nothing outside it is touched, a run starts."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from sidecar.errors import AccessDenied, LoginRejected, SidecarError, Unavailable
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import (
    DirectoryInode,
    DirectoryOpened,
    FileInode,
    FileOpened,
    LastNumbers,
    ListingRead,
    Lookups,
    NamesRead,
    Record,
    RenameBegun,
    Replied,
)
from sidecar.mounter.filesystem.journal.replay import RecoveredState
from sidecar.mounter.filesystem.journal.stored_records import encode
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.frames import MARK, frame
from tests.support import planted
from tests.support.memory_store import MemoryStore, before
from tests.support.serve import build

SECRET = b"root:$y$j9T$secret"
TERABYTE = 1 << 40
ROOT_RECORD = DirectoryInode(ROOT, None, "", 1, False, False, 0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state/spool").mkdir(parents=True)
    return tmp_path / "state"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that no state directory leads to."""
    path = tmp_path / "00000009.data"
    path.write_bytes(SECRET)
    return path


def dirty(inode: int, spool_name: str, key: str, lookups: int = 0) -> FileInode:
    return FileInode(inode, ROOT, key, lookups, False, None, {}, spool_name, True, key)


def write_journal(state: Path, records: Iterable[Record]) -> None:
    """A journal of valid frames, as made by somebody who knows the format."""
    content = b"msjrnl01" + b"".join(frame(encode(record)) for record in records)
    (state / "journal").write_bytes(content)


def start(state: Path, store: MemoryStore | None = None) -> list[str]:
    """A run starts, and can be used."""
    filesystem, _ = build(store or MemoryStore(), state)
    saved = filesystem.recovery.finish_predecessor()
    _, handle = filesystem.create(ROOT, "usable", 0o600, os.O_RDWR)
    assert filesystem.write(handle, 0, b"usable") == 6
    filesystem.flush(handle)
    filesystem.release(handle)
    return saved


# --- files that are elsewhere ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}", "../../00000009.data", "../journal", "/etc/hostname", ""])
def test_a_path_in_the_journal_leads_nowhere(
    state: Path, outside: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    hostile = dirty(2, name.format(outside), "stolen")
    (state / "spool/00000000.data").write_bytes(b"mine")
    write_journal(state, [ROOT_RECORD, hostile, dirty(3, "00000000.data", "mine")])
    assert start(state, store) == ["mine"]
    assert outside.read_bytes() == SECRET
    assert store.contents() == {"mine": b"mine", "usable": b"usable"}
    assert f"`{state / 'journal'}` is damaged" in caplog.text


PLANTS = [
    planted.link,
    planted.hard_link,
    planted.fifo,
    planted.unix_socket,
    planted.directory,
    planted.of_another_user,
]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", ["00000000.data", "00000000.state"])
def test_something_else_in_the_place_of_a_spool_file(
    state: Path, outside: Path, plant: planted.Plant, name: str
) -> None:
    (state / "spool/00000000.data").write_bytes(b"")
    (state / "spool" / name).unlink(missing_ok=True)
    plant(state / "spool" / name, outside)
    store = MemoryStore()
    write_journal(state, [ROOT_RECORD, dirty(2, "00000000.data", "stolen")])
    assert start(state, store) == []
    assert outside.read_bytes() == SECRET
    assert outside.stat().st_nlink == 1 + (plant is planted.hard_link)
    assert store.contents() == {"usable": b"usable"}
    assert start(state) == []  # and the next one


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", ["journal", "journal.new", "spool"])
def test_something_else_in_the_place_of_the_state_s_own(
    state: Path, outside: Path, plant: planted.Plant, name: str
) -> None:
    (state / "spool").rmdir()
    plant(state / name, outside)
    assert start(state) == []
    assert outside.read_bytes() == SECRET
    assert (state / "journal").is_file()
    assert (state / "spool").is_dir()
    assert start(state) == []


def test_a_spool_that_is_a_link_is_not_written_through(state: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "00000000.data").write_bytes(SECRET)
    (state / "spool").rmdir()
    (state / "spool").symlink_to(elsewhere)
    write_journal(state, [ROOT_RECORD, dirty(2, "00000000.data", "stolen")])
    assert start(state) == []
    assert [path.name for path in elsewhere.iterdir()] == ["00000000.data"]
    assert (elsewhere / "00000000.data").read_bytes() == SECRET


# --- records that cannot be true ------------------------------------------------------------------


def replay(state: Path) -> RecoveredState:
    return RecoveredState.read(Journal(StateDirectory.open(state)))


NONSENSE: dict[str, Record] = {
    "negative size": dirty(2, "00000000.data", "a")._replace(remote=("a", -5, 0.0, "1")),
    "size beyond limits": dirty(2, "00000000.data", "a")._replace(
        remote=("a", (1 << 63) - 1, 0.0, "1")
    ),
    "time": dirty(2, "00000000.data", "a")._replace(remote=("a", 1, float("nan"), "1")),
    "negative inode": Lookups(-7, 1),
    "a name with a slash": dirty(2, "00000000.data", "a")._replace(name="a/b"),
    "a name that leads up": dirty(2, "00000000.data", "a")._replace(name=".."),
    "a name with a NUL": dirty(2, "00000000.data", "a")._replace(name="a\0b"),
    "no name": dirty(2, "00000000.data", "a")._replace(name=""),
    "a key that leads up": dirty(2, "00000000.data", "a")._replace(key="../a"),
    "a key that leads up inside": dirty(2, "00000000.data", "a")._replace(key="b/../../a"),
    "a key with nothing": dirty(2, "00000000.data", "a")._replace(key="a//b"),
    "a mode": dirty(2, "00000000.data", "a")._replace(attributes={"mode": 0o100644}),
    "a rename into itself": RenameBegun(2, "a/", "a/b/"),
    "a rename of all": RenameBegun(2, "/", "a/"),
    "a rename of a file": RenameBegun(2, "a", "b/"),
    "a rename from above": RenameBegun(2, "../a/", "b/"),
    "an errno": Replied(2, 5000, b""),
    "a long answer": Replied(2, 0, bytes(1 << 20)),
    "a backing file": FileOpened(2, 2, False, 1 << 40),
}


@pytest.mark.parametrize("record", NONSENSE.values(), ids=NONSENSE)
def test_a_record_that_cannot_be_true_is_left_out(
    state: Path, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    write_journal(state, [ROOT_RECORD, record, dirty(3, "00000001.data", "b")])
    read = replay(state)
    assert list(read.inodes) == [ROOT, 3]
    assert (read.renames, read.requests, read.files) == ({}, {}, {})
    assert read.is_damaged
    (line,) = caplog.messages
    assert line.startswith(f"`{state / 'journal'}` is damaged, and the rest of it used: ")
    assert "at byte " in line


def test_a_name_is_no_path_in_what_was_read_of_a_directory(state: Path) -> None:
    write_journal(state, [ROOT_RECORD, DirectoryOpened(1, ROOT, []), NamesRead(1, 0, [".."])])
    assert replay(state).directories[1].names == []


def test_directories_that_are_above_themselves(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has a name nowhere; what is in no circle keeps its own."""
    parents = {2: 2, 3: 4, 4: 5, 5: 3, 6: 5, 7: ROOT, 8: 99}
    records = [DirectoryInode(i, p, f"d{i}", 1, False, False, 0) for i, p in parents.items()]
    write_journal(state, [ROOT_RECORD, LastNumbers(9, 9, 9), *records])
    filesystem, _ = build(MemoryStore(), state)
    filesystem.recovery.restore()
    inodes = filesystem.namespace.inodes
    assert inodes.get(7).key == "d7/"
    assert all(len(inodes.get(number).key) < 99 for number in parents)
    assert "inode 2 is above itself" in caplog.text


def test_two_inodes_with_one_spool_file(state: Path) -> None:
    (state / "spool/00000000.data").write_bytes(b"once")
    records = [dirty(2, "00000000.data", "a"), dirty(3, "00000000.data", "b")]
    write_journal(state, [ROOT_RECORD, *records])
    store = MemoryStore()
    assert start(state, store) == ["a"]
    assert store.contents() == {"a": b"once", "usable": b"usable"}


def test_handles_of_what_is_no_file_are_left_out(state: Path) -> None:
    records = [
        *(FileOpened(1, ROOT, True, None), FileOpened(2, 77, True, None)),
        *(DirectoryOpened(1, 2, []), DirectoryOpened(2, 77, []), DirectoryOpened(3, ROOT, [])),
        dirty(2, "00000000.data", "a", 1),
    ]
    (state / "spool/00000000.data").write_bytes(b"x")
    write_journal(state, [ROOT_RECORD, LastNumbers(9, 9, 9), *records])
    read = replay(state)
    assert (list(read.files), list(read.directories)) == ([], [3])
    build(MemoryStore(), state)[0].recovery.restore()


def test_names_whose_predecessors_are_lost_end_the_reading(state: Path) -> None:
    """At a wrong place the reader would miss others, and not be told."""
    records = [
        DirectoryOpened(1, ROOT, ["a"]),
        NamesRead(1, 5, ["f"]),
        DirectoryOpened(2, ROOT, []),
    ]
    write_journal(state, [ROOT_RECORD, *records])
    assert list(replay(state).directories) == [2]


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(b"\0a/b\0", id="a path"),
        pytest.param(b"\0..\0", id="dots"),
        pytest.param(b"\0torn", id="no end"),
        pytest.param(b"x\x9cnothing", id="no stream"),
        pytest.param(zlib.compress(b"\0a\0") + b"more", id="more than a stream"),
        pytest.param(zlib.compress(b"\0" + b"a\0" * (17 << 20)), id="a bomb"),
    ],
)
def test_packed_names_that_are_none(state: Path, keys: bytes) -> None:
    records = [DirectoryOpened(1, ROOT, []), ListingRead(1, 1, 1, 0, keys)]
    write_journal(state, [ROOT_RECORD, *records])
    read = replay(state)
    assert read.is_damaged
    assert read.listings == {}


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["journal", "spool/00000000.data", "spool/00000000.state"])
def test_a_file_of_a_terabyte_of_nothing(
    state: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (state / "spool/00000000.data").write_bytes(b"x")
    (state / "spool/00000000.state").write_bytes(b"msspol01")
    write_journal(state, [ROOT_RECORD, dirty(2, "00000000.data", "a")])
    os.truncate(state / name, TERABYTE)
    store = MemoryStore()
    assert start(state, store) == (["a"] if name == "journal" else [])
    assert store.contents().get("a") == (b"x" if name == "journal" else None)
    assert caplog.messages


def test_frames_that_claim_to_be_long(state: Path) -> None:
    """Each mark could be the beginning of one: looking for the next ends."""
    claims = (MARK + struct.pack("<II", 1 << 24, 7)) * 3_000_000
    (state / "journal").write_bytes(b"msjrnl01" + claims)
    read = replay(state)
    assert read.is_damaged
    assert not read.inodes


def test_more_than_any_worker_held(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.mounter.filesystem.journal.replay.MOST_HELD", 1000)
    names = [f"{number}" for number in range(600)]
    opened = [DirectoryOpened(number, ROOT, names) for number in range(50)]
    write_journal(state, [ROOT_RECORD, *opened])
    assert len(replay(state).directories) == 2
    assert start(state) == []


# --- damage ---------------------------------------------------------------------------------------


def test_what_a_lost_record_was_about_is_kept(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are saved; the file that nobody knows is not deleted, also not by later starts."""
    for number in range(3):
        (state / f"spool/{number:08d}.data").write_bytes(b"%d" % number)
    files = [dirty(2 + number, f"{number:08d}.data", f"key-{number}") for number in range(3)]
    write_journal(state, [ROOT_RECORD, *files])
    path = state / "journal"
    path.write_bytes(path.read_bytes().replace(b"key-1", b"kex-1"))
    store = MemoryStore()
    assert start(state, store) == ["key-0", "key-2"]
    assert start(state, store) == []
    (kept,) = (state / "spool").iterdir()
    assert kept.name.startswith("00000001.data.")
    assert kept.read_bytes() == b"1"
    assert "the checksum is wrong" in caplog.text


def test_a_worker_goes_on_without_what_is_lost(state: Path) -> None:
    """A program whose file has lost its bytes gets an error; one with another file does not."""
    store = MemoryStore()
    filesystem, _ = build(store, state)
    filesystem.recovery.begin()
    opened = {}
    for name in ("lost", "whole"):
        entry, handle = filesystem.create(ROOT, name, 0o600, os.O_RDWR)
        filesystem.write(handle, 0, name.encode())
        opened[name] = entry.attributes.inode, handle
    lost = state / "spool/00000000.data"
    lost.rename(state / "spool/moved")
    os.mkfifo(lost)
    successor, _ = build(store, state)
    successor.recovery.restore()
    inode, handle = opened["lost"]
    for call in (
        lambda: successor.get_attributes(inode),
        lambda: successor.flush(handle),
        lambda: successor.read(handle, 0, 9),
        lambda: successor.open(inode, os.O_RDONLY),
    ):
        with pytest.raises(SidecarError):
            call()
    successor.release(handle)
    successor.forget(inode, 1)
    successor.flush(opened["whole"][1])
    assert store.contents() == {"whole": b"whole"}


# --- what the store says --------------------------------------------------------------------------


def test_a_key_that_the_store_refuses_prevents_no_start(state: Path) -> None:
    for number in range(2):
        (state / f"spool/{number:08d}.data").write_bytes(b"%d" % number)
    write_journal(
        state, [ROOT_RECORD, dirty(2, "00000000.data", "no"), dirty(3, "00000001.data", "yes")]
    )

    def refuse(key: str, *_: object, **__: object) -> None:
        if key == "no":
            raise AccessDenied("`no` may not be written")

    store = MemoryStore(put=before(refuse))
    assert start(state, store) == ["yes"]
    (kept,) = (state / "spool").iterdir()
    assert kept.read_bytes() == b"0"


@pytest.mark.parametrize("error", [Unavailable("outage"), LoginRejected("old key")])
def test_an_outage_does(state: Path, error: SidecarError) -> None:
    """What was not saved waits for the next attempt."""
    (state / "spool/00000000.data").write_bytes(b"0")
    write_journal(state, [ROOT_RECORD, dirty(2, "00000000.data", "a")])
    store = MemoryStore()
    store.refuse_content(error)
    with pytest.raises(type(error)):
        start(state, store)
    store.refuse_content(None)
    assert start(state, store) == ["a"]


def test_a_read_only_volume_is_not_written(state: Path) -> None:
    (state / "spool/00000000.data").write_bytes(b"0")
    write_journal(
        state, [ROOT_RECORD, dirty(2, "00000000.data", "a"), RenameBegun(3, "old/", "new/")]
    )
    store = MemoryStore()
    store.put("old/a", b"a")
    filesystem, _ = build(store, state, read_only=True)
    assert filesystem.recovery.finish_predecessor() == []
    assert store.contents() == {"old/a": b"a"}
    assert [path.read_bytes() for path in (state / "spool").iterdir()] == [b"0"]
