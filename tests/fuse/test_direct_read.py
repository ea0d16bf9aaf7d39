"""A direct read is fetched by the thread that took the request, one at a time."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.mounter.fuse.protocol import Opcode
from tests.fuse.served import LARGE_BYTES, ROOT, Answer, Served, frame

_INIT = struct.pack("<IIII", 7, 45, 1 << 20, 0) + bytes(48)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path, hanging=True, readers=2) as served:
        assert served.ask(Opcode.INIT, body=_INIT).errno == 0
        yield served


def lookup(server: Served, path: str) -> int:
    inode = ROOT
    for name in path.split("/"):
        answer = server.ask(Opcode.LOOKUP, inode, name.encode() + b"\0")
        assert answer.errno == 0
        inode = int.from_bytes(answer.body[:8], "little")
    return inode


def send_read(server: Served, inode: int, offset: int, size: int, thread: int = 0) -> int:
    unique = server.fresh_unique()
    body = struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)
    server.send(frame(Opcode.READ, unique, inode, body, thread))
    return unique


def read(server: Served, inode: int, offset: int, size: int) -> Answer:
    unique = send_read(server, inode, offset, size)
    answer = server.receive()
    assert answer.unique == unique
    return answer


def test_small_files_and_places_of_a_large_one(server: Served) -> None:
    content = bytes(range(250)) * (LARGE_BYTES // 250)
    small, large, empty = (lookup(server, path) for path in ("a", "dir/large", "dir/sub/leaf"))
    for _ in range(3):
        assert read(server, small, 0, 4096).body == b"hello"
        assert read(server, small, 1, 2).body == b"el"
        assert read(server, empty, 0, 4096).body == b""
        assert read(server, large, 0, 1 << 20).body == content
        assert read(server, large, 50_000, 100).body == content[50_000:50_100]
        assert read(server, large, LARGE_BYTES + 1, 100).body == b""


def test_who_waits_for_the_store_keeps_nobody_waiting(server: Served, killed: int) -> None:
    """While a direct read is being fetched, other READs go to the reader processes."""
    never, small = lookup(server, "never"), lookup(server, "a")
    stuck = send_read(server, never, 0, 4096, killed)
    for _ in range(5):
        assert lookup(server, "dir/large")
        assert read(server, small, 0, 4096).body == b"hello"
    server.send(frame(Opcode.INTERRUPT, server.fresh_unique(), 0, struct.pack("<Q", stuck)))
    answer = server.receive()
    assert (answer.unique, answer.errno) == (stuck, errno.EINTR)
