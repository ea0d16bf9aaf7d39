"""Only the thread that takes requests passes READs to reader processes."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

import pytest

from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.fuse import operations
from sidecar.mounter.fuse.codec import Request
from sidecar.mounter.fuse.operations import Answer, HandedOn
from sidecar.mounter.fuse.protocol import Opcode
from sidecar.mounter.fuse.readers.reader_pool import ReaderPool
from sidecar.mounter.fuse.server import Server
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.store.failures import Tell
from tests.support.memory_store import MemoryStore
from tests.support.serve import build


class Recorded(ReaderPool):
    """A pool without processes that records the messages to them."""

    def __init__(self) -> None:
        super().__init__(0, lambda *_: pytest.fail("no process"), print)
        self._sockets = [None]  # type: ignore[list-item]
        self.sent: list[bytes] = []

    def connect(self, descriptor: int) -> None:
        assert descriptor

    def _send(self, number: int, message: bytes) -> None:
        self.sent.append(message)


class Closed(ReaderPool):
    def close(self) -> None:
        for end in self._sockets:
            end.close()


def test_a_reader_that_was_killed_with_work_before_it_has_ended() -> None:
    """A socket says so with an error, and not with its end."""

    def never(_number: int, _tell: Tell) -> Fetcher:
        while True:
            signal.pause()  # before it takes a message

    readers = Closed(1, never, print)
    readers.read(1, 1, None, MemoryStore().put("a", b"content"), 0, 4096)
    os.kill(readers.pids[0], signal.SIGKILL)
    os.waitpid(readers.pids[0], 0)
    readers.listen(print)
    readers.close()


def test_a_thread_that_may_wait_reads_here(tmp_path: Path) -> None:
    """Several such threads serve a dead worker's requests at once; the pool has no lock."""
    store = MemoryStore()
    store.put("a", b"content")
    filesystem, metrics = build(store, tmp_path, ttl_s=600)
    readers = Recorded()
    descriptor = os.open(os.devnull, os.O_RDWR)
    mount = Server(filesystem, descriptor, metrics, lambda _: None, readers).session
    inode = filesystem.lookup(ROOT, "a").attributes.inode
    handle = filesystem.open(inode, os.O_RDONLY)
    body = memoryview(struct.pack("<QQII", handle, 0, 4096, 0) + bytes(16))
    request = Request(Opcode.READ, 2, inode, body, 0, 0, 0)

    assert isinstance(operations.read(mount, request, False), HandedOn)
    assert len(readers.sent) == 1

    outcome = operations.read(mount, request, True)
    assert isinstance(outcome, Answer)
    assert b"".join(outcome.reply) == b"content"
    assert len(readers.sent) == 1
    os.close(descriptor)
