"""The kernel transport: serves one connection to /dev/fuse, without libfuse.

Reads requests, has :mod:`.operations` serve them, and answers.

One thread reads requests and answers at once whatever needs no waiting: names and attributes
within their lifetime, bytes that are here. Requests that must wait for the store or a disk go to a
thread pool, with the buffer in which they arrived, and READs go to reader processes. So the common
case costs two system calls and no switch between threads, and a slow store stops nobody else. A
direct read is fetched by the thread that received it, one at a time, while another thread takes its
turn at the connection; further ones go to reader processes.

writev(2) gathers answers from where the bytes lie: a read is not copied in user space. A request
that is short, unknown or malformed is answered with an errno, and never ends the loop.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import queue
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sidecar.errors import SidecarError, Stale, WouldBlock, to_errno
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.journal.records import FILE_HANDLE
from sidecar.mounter.fuse import protocol as p
from sidecar.mounter.fuse.callers import Callers
from sidecar.mounter.fuse.codec import MAX_REQUEST_BYTES, Request, decode
from sidecar.mounter.fuse.connection import Reply, answer, end_if_starved, notify
from sidecar.mounter.fuse.notifier import Notifier
from sidecar.mounter.fuse.open_policy import OpenPolicy
from sidecar.mounter.fuse.operations import (
    OPERATIONS,
    UNANSWERED,
    UNKNOWN,
    Answer,
    HandedOn,
    Operation,
    Refusal,
    Session,
)
from sidecar.mounter.fuse.passthrough import BackingFiles
from sidecar.mounter.fuse.protocol import Opcode
from sidecar.mounter.fuse.readers import direct_read
from sidecar.mounter.fuse.readers.direct_read import DirectRead, StaleRead
from sidecar.mounter.fuse.readers.reader_pool import ReaderPool
from sidecar.mounter.reading.read_log import ReadLog

log = logging.getLogger(__name__)

_BUFFER_BYTES = MAX_REQUEST_BYTES + 4096
_POOL_THREADS = 32
_SMALL_BYTES = 16 * 1024
_KEPT_BUFFERS = 8
_NAMES = {int(opcode): opcode.name.lower() for opcode in Opcode}
_SIGNALS_S = 1.0
"""A signal that comes just before the main thread waits: Python runs its handler after the wait."""
_QUEUED_APART = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT))
"""The kernel queues these separately, so they say nothing about the order of others."""


class Server:
    """Serves one connection.

    Args:
        descriptor: the open /dev/fuse; it is mounted already.
        on_serving: called once the connection is initialised, with whether the kernel can
            send requests again to a successor of this process (FUSE_NOTIFY_RESEND).
        readers: reader processes that answer READs; without them this process does.
        notifier: tells the kernel what changed in the bucket; without it names expire.
        read_log: notes what programs read, if that is wanted.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        descriptor: int,
        metrics: VolumeMetrics,
        on_serving: Callable[[bool], None],
        readers: ReaderPool | None = None,
        notifier: Notifier | None = None,
        read_log: ReadLog | None = None,
    ) -> None:
        # On a read-only volume the opens of a file need not be known: an inode is one version, and
        # closing it saves nothing. Only a copy in the disk cache is read through an open.
        by_inode = readers is not None and filesystem.read_only
        self.session = Session(
            filesystem,
            metrics,
            Callers(descriptor),
            BackingFiles(descriptor),
            OpenPolicy(needed=not by_inode, by_copy=filesystem.has_cache),
            readers,
            by_inode,
            on_serving,
            read_log or ReadLog(0),
        )
        self._filesystem = filesystem
        self._descriptor = descriptor
        self._metrics = metrics
        self._notifier = notifier
        self._pool = ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="serve")
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._recovering = False
        self._turn = threading.Lock()
        self._direct_read: DirectRead | None = None  # for the thread that has the turn to fetch
        self._is_fetching = False
        self._over = threading.Event()
        self._failure: BaseException | None = None
        if readers is not None:
            readers.connect(descriptor)
        if notifier is not None:
            notifier.connect(descriptor)
            filesystem.tell_kernel(notifier.changed, notifier.forget)

    def resume(self) -> None:
        """Take over from a dead process, whose state the file system has restored.

        The kernel sends again what was read but not answered. Raises OSError if it cannot.
        """
        self._recovering = True
        notify(self._descriptor, p.Notify.RESEND)
        self.session.backing_files.restore(self._filesystem.opens())
        self.session.on_serving(True)

    def serve(self) -> None:
        """Read and answer requests until the file system is unmounted."""
        if self.session.readers is not None:
            listen = functools.partial(self.session.readers.listen, self._answer_stale_read)
            threading.Thread(target=listen, name="listen", daemon=True).start()
        # With direct reads one thread has the turn while the other fetches. Not in this thread,
        # which would have to wait at the end for a fetch.
        for _ in range(2 if self.session.reads_directly else 1):
            threading.Thread(target=self._take_turns, name="turn", daemon=True).start()
        while not self._over.wait(_SIGNALS_S):
            pass
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._failure is not None:
            raise self._failure

    def _take_turns(self) -> None:
        """The life of a thread: read requests while it has the turn, then fetch one direct read."""
        content = memoryview(bytearray(direct_read.MOST_BYTES))
        fetcher = self._filesystem.fetcher
        try:
            while True:
                with self._turn:
                    read = None if self._over.is_set() else self._take_turn()
                    if read is None:
                        break
                    self._is_fetching = True
                read.answer(self._descriptor, fetcher, content, self._answer_stale_read)
                self._is_fetching = False
        except BaseException as error:  # noqa: BLE001 - raised where serve() was called
            self._failure = error
        self._over.set()

    def _take_turn(self) -> DirectRead | None:
        """Read and answer requests until there is a direct read; None after the last one."""
        buffer = self._take_buffer()
        while (size := self._read(buffer)) is not None:
            if self._receive(buffer, size):
                buffer = self._take_buffer()
            if self._direct_read is not None:
                read, self._direct_read = self._direct_read, None
                self._buffers.put(buffer)
                return read
        return None

    # --- one request ------------------------------------------------------------------------------

    def _read(self, buffer: bytearray) -> int | None:
        """The length of the next request; None when the connection ended."""
        while True:
            try:
                return os.readv(self._descriptor, [buffer])
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                    return None
                if error.errno not in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    raise  # ENOENT: the request was interrupted before it could be read

    def _receive(self, buffer: bytearray, size: int) -> bool:
        """Answer a request or hand it on; True if the buffer went with it."""
        try:
            request = decode(memoryview(buffer)[:size])
        except struct.error as error:
            log.warning("passed over: %s", error)
            return False
        operation = OPERATIONS.get(request.opcode, UNKNOWN)
        if isinstance(operation, Refusal):
            self._answer_errno(request, operation.errno)
            return False
        if request.unique & p.UNIQUE_RESEND:
            if self._replay(request, operation):
                return False
        elif self._recovering and request.opcode not in _QUEUED_APART:
            # The kernel puts requests that it sends again before all others (fs/fuse/dev.c,
            # fuse_resend), so all of them have come.
            self._recovering = False
            self._filesystem.recovery.all_resent()
        if not operation.waits and self._perform(request, operation, wait=False):
            return False
        self.session.callers.wait(request.unique, request.thread)
        if size <= _SMALL_BYTES:
            # Copying is cheaper than keeping a large buffer from the next request.
            request = request._replace(body=memoryview(bytes(request.body)))
            self._pool.submit(self._perform_later, request, operation, None)
            return False
        self._pool.submit(self._perform_later, request, operation, buffer)
        return True

    def _replay(self, request: Request, operation: Operation) -> bool:
        """Answer a request whose worker died, or hand it on; False if it must be served as new."""
        unique = request.first_unique
        replayed = self._filesystem.recovery.resent(unique)
        if replayed.answer is not None:
            code, reply = replayed.answer
            answer(self._descriptor, request.unique, code, [reply])
            self._filesystem.recovery.end_request(unique)
            return True
        if self._filesystem.read_only:  # nothing below waits; this thread has the backing files
            for kind, _ in replayed.granted:
                if kind == FILE_HANDLE:
                    self.session.backing_files.release(request.inode)
            self._filesystem.recovery.revoke(unique)
            return False
        request = request._replace(body=memoryview(bytes(request.body)))
        self.session.callers.wait(request.unique, request.thread)
        self._pool.submit(self._perform_later, request, operation, None, replayed=True)
        return True

    def _perform_later(
        self,
        request: Request,
        operation: Operation,
        buffer: bytearray | None,
        *,
        replayed: bool = False,
    ) -> None:
        try:
            if replayed:
                self._filesystem.recovery.revoke(request.first_unique)
            self._perform(request, operation, wait=True)
            self.session.callers.answered(request.unique)
            request.body.release()
            if buffer is not None and self._buffers.qsize() < _KEPT_BUFFERS:
                self._buffers.put(buffer)
        except BaseException:
            # Nobody would ever answer this request. The kernel sends it again to the next worker.
            log.exception("a bug: opcode %d got no answer", request.opcode)
            os._exit(os.EX_SOFTWARE)

    def _perform(self, request: Request, operation: Operation, *, wait: bool) -> bool:
        """Run an operation and answer; False if it has to wait and may not."""
        if not (operation.gives or operation.once or request.unique & p.UNIQUE_RESEND):
            return self._perform_once(request, operation, wait=wait)
        unique = request.first_unique
        self._filesystem.recovery.begin_request(unique)
        try:
            return self._perform_once(request, operation, wait=wait)
        finally:
            self._filesystem.recovery.end_request(unique)

    def _perform_once(self, request: Request, operation: Operation, *, wait: bool) -> bool:
        began_s = time.perf_counter()
        failure: BaseException | None = None
        try:
            outcome = operation.handler(self.session, request, wait)
        except WouldBlock:
            return False
        except (SidecarError, OSError) as error:
            end_if_starved(error)
            failure = error
            self._answer_error(request, error)
        except (struct.error, OverflowError) as error:
            failure = error
            # It is shorter than its opcode needs, or has an offset that no file can have.
            self._answer_errno(request, errno.EINVAL)
        except Exception as error:
            end_if_starved(error)
            failure = error
            log.exception("a bug: opcode %d", request.opcode)
            self._answer_errno(request, errno.EIO)
        else:  # type() and not isinstance(), which is slower: this runs for every request
            if type(outcome) is list:
                self._answer(request, operation, outcome)
            elif type(outcome) is HandedOn:
                return True
            elif type(outcome) is Answer:
                reply, afterwards, failure = outcome
                try:
                    self._answer(request, operation, reply)
                finally:
                    if afterwards is not None:
                        afterwards()
            elif type(outcome) is DirectRead:
                self._fetch(outcome)
                return True
            elif type(outcome) is Refusal:
                self._answer_errno(request, outcome.errno)
        took_s = time.perf_counter() - began_s
        self._metrics.operation(_NAMES[request.opcode], took_s, failure)
        return True

    def _answer(self, request: Request, operation: Operation, reply: Reply) -> None:
        if operation.once:
            self._filesystem.recovery.replied(request.first_unique, b"".join(reply))
        if not answer(self._descriptor, request.unique, 0, reply):
            self._filesystem.recovery.revoke(request.first_unique)

    def _fetch(self, read: DirectRead) -> None:
        """Have a direct read fetched: by this thread, unless another one is fetching."""
        if self._is_fetching:
            assert self.session.readers is not None
            self.session.readers.read_directly(read)
        else:
            self._direct_read = read

    def _answer_error(self, request: Request, error: SidecarError | OSError) -> None:
        if isinstance(error, Stale):
            self._answer_stale(request.unique, request.inode)
        else:
            self._answer_errno(request, to_errno(error))

    def _answer_stale(self, unique: int, inode_id: int) -> None:
        """Answer ESTALE, once the file system and the kernel have dropped the inode's name."""
        inode = self._filesystem.doubt(inode_id)
        if not (inode and self._notifier and self._notifier.answer_stale(unique, inode)):
            answer(self._descriptor, unique, errno.ESTALE)

    def _answer_stale_read(self, read: StaleRead) -> None:
        """Answer a READ whose version is gone, without waiting."""
        if read.handle is None:
            self._answer_stale(read.unique, read.inode)
        else:
            # The file may have another name by now, or be in the spool since it lost its name.
            self._pool.submit(self._read_here, read, read.handle)

    def _read_here(self, read: StaleRead, handle: int) -> None:
        try:
            result = self._filesystem.read(handle, read.offset, read.size)
        except Stale:
            self._answer_stale(read.unique, read.inode)
        except SidecarError as error:  # BadHandle: the program was killed meanwhile
            answer(self._descriptor, read.unique, to_errno(error))
        else:
            answer(self._descriptor, read.unique, 0, result.views)
            result.release()

    def _answer_errno(self, request: Request, code: int) -> None:
        if request.opcode not in UNANSWERED:
            answer(self._descriptor, request.unique, code)

    def _take_buffer(self) -> bytearray:
        try:
            return self._buffers.get_nowait()
        except queue.Empty:
            return bytearray(_BUFFER_BYTES)


SERVING: Final = (Server._receive, Server._perform_later, DirectRead.answer)
"""A thread has one of these on its stack while it serves a request."""
