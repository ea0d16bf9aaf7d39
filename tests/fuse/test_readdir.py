"""READDIRPLUS: every entry has attributes, until there are too many inodes."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from sidecar.mounter.filesystem.inodes.attributes import Entry
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.fuse import operations, protocol
from sidecar.mounter.fuse.codec import Request
from sidecar.mounter.fuse.operations import Session
from sidecar.mounter.fuse.server import Server
from tests.support.memory_store import MemoryStore
from tests.support.serve import build

FILES = 20
ROOM = 8
OTHERS = 15
_NAME_AT = protocol.ENTRY_OUT.size + protocol.ATTR.size


def a_directory(tmp_path: Path) -> tuple[Session, int, int]:
    """A mount, and the inode and a handle of a directory of FILES files."""
    store = MemoryStore()
    for number in range(FILES):
        store.put(f"dir/{number:02}", b"content")
    for number in range(OTHERS):
        store.put(f"other-{number:02}", b"content")
    filesystem, metrics = build(store, tmp_path, read_only=True, ttl_s=600)
    server = Server(filesystem, os.open(os.devnull, os.O_RDWR), metrics, lambda _: None)
    inode = filesystem.lookup(ROOT, "dir").attributes.inode
    return server.session, inode, filesystem.open_directory(inode)


def read(mount: Session, inode: int, body: bytes) -> bytes:
    """The body of a READDIRPLUS answer."""
    request = Request(44, 2, inode, memoryview(body + bytes(16)), 0, 0, 0)
    outcome = operations.read_directory_plus(mount, request, True)
    assert isinstance(outcome, list)
    return b"".join(outcome)


def lines(mount: Session, inode: int, handle: int, room: int) -> dict[bytes, int]:
    """One READDIRPLUS from the beginning: name to inode, 0 for a name without attributes."""
    reply = read(mount, inode, struct.pack("<QQII", handle, 0, room, 0))
    found: dict[bytes, int] = {}
    while reply:
        length = int.from_bytes(reply[_NAME_AT + 16 : _NAME_AT + 20], "little")
        name = bytes(reply[_NAME_AT + 24 : _NAME_AT + 24 + length])
        found[name] = int.from_bytes(reply[:8], "little")
        reply = reply[protocol.dirent_bytes(length, plus=True) :]
    return found


@pytest.mark.parametrize("room", [2 * FILES, FILES, ROOM])
def test_lines_beyond_the_most_inodes_have_names_only(tmp_path: Path, room: int) -> None:
    mount, inode, handle = a_directory(tmp_path)
    filesystem = mount.filesystem
    for number in range(OTHERS):
        filesystem.lookup(ROOT, f"other-{number:02}")
    filesystem.namespace.inodes.most = len(filesystem.namespace.inodes) + room
    found = lines(mount, inode, handle, 1 << 16)
    names = [b"%02d" % number for number in range(FILES)]
    assert list(found) == [b".", b"..", *names]
    assert all(found[name] for name in names[:room])
    assert not any(found[name] for name in names[room:])


def test_lines_of_a_directory_of_more_have_names_only(tmp_path: Path) -> None:
    """What its first names were given is for nothing. So is all of it the next time."""
    mount, inode, handle = a_directory(tmp_path)
    mount.filesystem.namespace.inodes.most = FILES - 1
    assert not any(lines(mount, inode, handle, 1 << 16)[b"%02d" % n] for n in range(FILES))


def test_lines_that_are_gone_again_are_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty answer would tell the kernel that the directory ends there."""
    mount, inode, handle = a_directory(tmp_path)
    enter = mount.filesystem.enter

    def enter_all_but_the_first(handle: int, names: Sequence[str]) -> dict[str, Entry | None]:
        gone = FILES // 2
        return {n: e for n, e in enter(handle, names).items() if int(n) >= gone}

    monkeypatch.setattr(mount.filesystem, "enter", enter_all_but_the_first)
    room = 3 * protocol.dirent_bytes(2, plus=True)
    reply = read(mount, inode, struct.pack("<QQII", handle, 2, room, 0))
    assert reply[_NAME_AT + 24 : _NAME_AT + 26] == b"%02d" % (FILES // 2)


def test_the_kernel_does_not_choose_which_lines_have_attributes() -> None:
    assert operations._WANTED & protocol.Init.DO_READDIRPLUS
    assert not operations._WANTED & protocol.Init.READDIRPLUS_AUTO
