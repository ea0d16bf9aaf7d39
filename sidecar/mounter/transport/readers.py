"""Reader processes: reads are fetched and answered beside the process that reads requests.

One Python process stops at one core. The worker therefore forks a few children before it
does anything else; the process that reads /dev/fuse keeps names, attributes and writes to
itself, and passes each READ on, a few dozen bytes, to the child that has the handle. The
child has the handle's window, fetches, and writes the answer on the connection that it
shares. The kernel accepts an answer from whoever holds the same open file description
(fs/fuse/dev.c).

If a child ends, its worker ends: the supervisor's next one is asked everything again.
"""

from __future__ import annotations

import logging
import marshal
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from sidecar.errors import Stale, WouldBlock, to_errno
from sidecar.mounter.prefetch import Fetcher, ObjectReader
from sidecar.mounter.store.base import ObjectInfo
from sidecar.mounter.transport.forked import fork_child, receive_descriptor, send_descriptor
from sidecar.mounter.transport.replies import answer, end_if_starved

log = logging.getLogger(__name__)

_READ = struct.Struct("<BQQQI")  # kind unique handle offset size
_HANDLE = struct.Struct("<BQ")  # kind handle; a marshalled ObjectInfo follows a pin
_KIND_READ, _KIND_PIN, _KIND_CLOSE = 1, 2, 3
_MESSAGE_BYTES = 16 * 1024
_THREADS = 32


class Readers:
    """The children of one worker, seen from the worker.

    Args:
        count: how many.
        build: makes the fetcher of child ``n``, in that child.
    """

    def __init__(self, count: int, build: Callable[[int], Fetcher]) -> None:
        self._sockets: list[socket.socket] = []
        self._pinned: dict[int, ObjectInfo] = {}
        self._pids: list[int] = []
        for number in range(count):

            def run(end: socket.socket, number: int = number) -> None:
                _Reader(end, build(number)).run()

            pid, end = fork_child(run, self._sockets)
            self._pids.append(pid)
            self._sockets.append(end)
        signal.signal(signal.SIGCHLD, self._child_ended)

    def connect(self, descriptor: int) -> None:
        """Give every child the connection to answer on."""
        for end in self._sockets:
            send_descriptor(end, descriptor)

    def read(self, unique: int, handle: int, info: ObjectInfo, offset: int, size: int) -> None:
        """Let the handle's child answer a READ of the pinned version ``info``."""
        if self._pinned.get(handle) is not info:
            self._pinned[handle] = info
            fields = (info.key, info.size_bytes, info.mtime_s, info.version)
            self._send(handle, _HANDLE.pack(_KIND_PIN, handle) + marshal.dumps(fields))
        self._send(handle, _READ.pack(_KIND_READ, unique, handle, offset, size))

    def close(self, handle: int) -> None:
        """The handle was released."""
        if self._pinned.pop(handle, None) is not None:
            self._send(handle, _HANDLE.pack(_KIND_CLOSE, handle))

    def _send(self, handle: int, message: bytes) -> None:
        try:
            self._sockets[handle % len(self._sockets)].send(message)
        except ConnectionError:
            self._end_with_child()  # it ended just now, and SIGCHLD is still to come

    def _child_ended(self, _number: int, _frame: object) -> None:
        # By pid: an SDK may start a program of its own (uname, say) and wait for that.
        for pid in self._pids:
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                self._end_with_child()

    def _end_with_child(self) -> NoReturn:
        log.error("a reader process ended; this worker ends too and is replaced")
        os._exit(os.EX_SOFTWARE)


class _Reader:
    """One child: handles to windows, requests to answers."""

    def __init__(self, end: socket.socket, fetcher: Fetcher) -> None:
        self._end = end
        self._fetcher = fetcher
        self._metrics = fetcher.metrics
        self._readers: dict[int, ObjectReader] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")
        self._descriptor = -1

    def run(self) -> None:
        """Serve until the worker is gone."""
        descriptor = receive_descriptor(self._end)
        if descriptor is None:
            return
        self._descriptor = descriptor
        while message := self._end.recv(_MESSAGE_BYTES):
            if message[0] == _KIND_READ:
                _, unique, handle, offset, size = _READ.unpack(message)
                reader = self._readers[handle]
                if not self._read(reader, unique, offset, size, wait=False):
                    self._pool.submit(self._read_later, reader, unique, offset, size)
            elif message[0] == _KIND_PIN:
                _, handle = _HANDLE.unpack_from(message)
                info = ObjectInfo(*marshal.loads(message[_HANDLE.size :]))  # noqa: S302 - the parent's
                self._close(handle)
                self._readers[handle] = ObjectReader(self._fetcher, info)
            else:
                _, handle = _HANDLE.unpack(message)
                self._close(handle)

    def _close(self, handle: int) -> None:
        reader = self._readers.pop(handle, None)
        if reader is not None:
            reader.close()

    def _read_later(self, reader: ObjectReader, unique: int, offset: int, size: int) -> None:
        try:
            self._read(reader, unique, offset, size, wait=True)
        except BaseException:
            # Nobody would ever answer this request. The next worker is asked it again.
            log.exception("a bug: a READ got no answer")
            os._exit(os.EX_SOFTWARE)

    def _read(
        self, reader: ObjectReader, unique: int, offset: int, size: int, *, wait: bool
    ) -> bool:
        """Answer one READ; False if it has to wait and may not."""
        began_s = time.perf_counter()
        failure: BaseException | None = None
        try:
            result = reader.read(offset, size, wait=wait)
        except WouldBlock:
            return False
        except Exception as error:  # noqa: BLE001 - every READ needs an answer
            end_if_starved(error)
            failure = error
            if not isinstance(error, Stale):
                log.warning("a read of `%s` failed: %s", reader.info.key, error)
            answer(self._descriptor, unique, to_errno(error))
        else:
            answer(self._descriptor, unique, 0, result.views)
            result.release()
            self._metrics.read_bytes.inc(sum(map(len, result.views)))
        self._metrics.operation("read", time.perf_counter() - began_s, failure)
        return True
