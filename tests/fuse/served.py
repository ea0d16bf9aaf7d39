"""A kernel transport's Server on a socket pair instead of /dev/fuse.

A test plays the kernel, and can send what no kernel would. SOCK_SEQPACKET keeps message
boundaries, as /dev/fuse does. The server runs in another process
(``python -m tests.fuse.served DESCRIPTOR STATE``), so that a test sees its memory and its
exit status.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from sidecar.errors import QuotaExceeded
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.fuse.readers.reader_pool import ReaderPool
from sidecar.mounter.fuse.server import Server
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.store.interface import Limits
from sidecar.units import GIB, MIB
from tests.support.memory_store import MemoryStore, before
from tests.support.serve import build

ROOT = 1
PATIENCE_S = 60.0
"""A test fails if an answer takes longer; far above any delay of a loaded machine."""
MEMORY_BYTES = 2 * GIB
"""Limit of the server's memory; beyond it, it exits with os.EX_OSERR."""
OPEN_FILES = 512
FILE_BYTES = 64 * MIB
"""Limit of a spool file: a size from a mutated SETATTR must not fill the disk."""
LARGE_BYTES = 100_000
_MOST_OBJECTS = 100
_LONGEST_FRAME = 2 * MIB
_NOTIFICATION = bytes(8)
"""``unique`` of a notification is 0 (fs/fuse/dev.c, fuse_dev_do_write)."""


class Answer(NamedTuple):
    """One answer. ``errno`` is 0 or positive."""

    unique: int
    errno: int
    body: bytes


def frame(opcode: int, unique: int, inode: int = ROOT, body: bytes = b"", thread: int = 0) -> bytes:
    """A request as the kernel would send it: struct fuse_in_header of fuse.h, then the body.

    ``thread`` is the caller's id; 0: a thread of another PID namespace.
    """
    header = b"".join(
        (
            (40 + len(body)).to_bytes(4, "little"),
            opcode.to_bytes(4, "little"),
            unique.to_bytes(8, "little"),
            inode.to_bytes(8, "little"),
            bytes(8),  # uid gid
            thread.to_bytes(4, "little"),
            bytes(4),  # extlen padding
        )
    )
    return header + body


def parse(answer: bytes) -> Answer:
    """Split an answer (struct fuse_out_header of fuse.h) and check its length."""
    assert int.from_bytes(answer[:4], "little") == len(answer) >= 16
    error = int.from_bytes(answer[4:8], "little", signed=True)
    assert -200 < error <= 0, "fuse_dev_do_write refuses other errors"
    assert error == 0 or len(answer) == 16, "fuse_dev_do_write refuses a body beside an error"
    return Answer(int.from_bytes(answer[8:16], "little"), -error, answer[16:])


class Served:
    """A running server and the kernel's end of its connection.

    Args:
        state: an empty directory for its spool, its metrics and its log.
        hanging: whether there is a file ``never``, whose GETs are never answered.
        readers: number of reader processes, with a read-only volume; 0: none, and writable.
    """

    def __init__(self, state: Path, *, hanging: bool = False, readers: int = 0) -> None:
        self._state = state
        self._hanging = hanging
        self._readers = readers
        self._next_unique = 2

    def __enter__(self) -> Served:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE_S)
        with theirs, (self._state / "log").open("wb") as log:
            argv = [
                *(str(theirs.fileno()), str(self._state)),
                *("hanging" if self._hanging else "", str(self._readers)),
            ]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, *argv],
                cwd=Path(__file__).parents[2],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # Ends it, see main().
        status = self._process.wait()
        self._socket.close()
        if error is None:
            assert status == 0, f"the server ended with {status}\n{self.log[-2000:]}"

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return (self._state / "log").read_text(errors="replace")

    def resident_bytes(self) -> int:
        """The server's resident memory now."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the server has ended")

    @property
    def socket(self) -> socket.socket:
        """The kernel's end, for tests that send and receive at the same time."""
        return self._socket

    def fresh_unique(self) -> int:
        """A number for the next request; the kernel's are even (bit 0 marks interrupts)."""
        self._next_unique += 2
        return self._next_unique

    def send(self, request: bytes) -> None:
        """Send any bytes as one frame."""
        self._socket.send(request)

    def receive(self) -> Answer:
        """The next answer, of any request; notifications are skipped."""
        while (answer := self.receive_one()) is None:
            pass
        return answer

    def receive_one(self) -> Answer | None:
        """The next frame: an answer, or None for a notification."""
        data = self._socket.recv(_LONGEST_FRAME)
        return None if data[8:16] == _NOTIFICATION else parse(data)

    def ask(self, opcode: int, inode: int = ROOT, body: bytes = b"") -> Answer:
        """Send a request and receive its answer; no other request may be in flight."""
        unique = self.fresh_unique()
        self.send(frame(opcode, unique, inode, body))
        answer = self.receive()
        assert answer.unique == unique
        return answer


def make_store(*, hanging: bool) -> MemoryStore:
    """The objects of each test's server.

    The store is soon full, to bound what a fuzzer makes; one of its objects hangs.
    """

    def fill(key: str, *_: object, **__: object) -> None:
        if key not in store.keys and len(store.keys) >= _MOST_OBJECTS:
            raise QuotaExceeded("the test's store is full")

    def hang(key: str, *_: object) -> None:
        if key == "never":
            threading.Event().wait()

    limits = Limits(2 * LARGE_BYTES, 1, 1 << 30, 10_000)
    store = MemoryStore(limits, put=before(fill), get=before(hang))
    store.put("a", b"hello")
    if hanging:
        store.put("never", b"comes")
    store.put("dir/large", bytes(range(250)) * (LARGE_BYTES // 250))
    store.put("dir/sub/leaf", b"")
    for number in range(50):
        store.put(f"many/{number:02d}", b"x")
    return store


def _fetcher(store: MemoryStore, state: Path) -> Fetcher:
    metrics = VolumeMetrics(state / "metrics", "data/memory", "data-memory")
    return Fetcher(store, ThreadPoolExecutor(4), BufferPool(1 << 24), metrics, part_bytes=1 << 20)


def main() -> None:
    """Serve on an inherited descriptor until standard input ends: the test ended."""
    descriptor, state = int(sys.argv[1]), Path(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    store, count = make_store(hanging=bool(sys.argv[3])), int(sys.argv[4])
    readers = ReaderPool(count, lambda number, _: _fetcher(store, state / f"reader{number}"), print)
    filesystem, metrics = build(store, state, read_only=bool(count))
    server = Server(
        filesystem, descriptor, metrics, lambda _can_resend: None, readers if count else None
    )
    serving = threading.Thread(target=server.serve, daemon=True)
    serving.start()
    sys.stdin.read()
    sys.stderr.flush()
    os._exit(0 if serving.is_alive() else 1)


if __name__ == "__main__":
    main()
