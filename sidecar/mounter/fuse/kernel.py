"""The kernel transport: the FUSE protocol spoken directly on /dev/fuse, without libfuse.

One thread reads requests and answers at once whatever needs no waiting: names and
attributes within their lifetime, bytes that are here. What must wait (for the store, for a
disk) is handed, with the buffer it arrived in, to a pool, and READs to other processes. So
the common case costs two system calls and no switch between threads, and a slow store stops
nobody else. A READ that concerns no other one, while no such READ is being fetched here, is
fetched by the thread that read it; another one takes its turn at the connection.

Replies are gathered by writev(2) from where the bytes lie: a read is not copied in user
space. A request that is short, unknown or malformed is answered with an errno, and never
ends the loop.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import queue
import stat
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from sidecar.errors import NotFound, SidecarError, Stale, WouldBlock, to_errno
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.attributes import BLOCK_BYTES, Attributes, Caller, Entry
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.readdir import DirectoryEntry
from sidecar.mounter.filesystem.records import FILE_HANDLE
from sidecar.mounter.fuse import protocol as p
from sidecar.mounter.fuse.callers import Callers, is_killed
from sidecar.mounter.fuse.connection import Reply, answer, end_if_starved, notify
from sidecar.mounter.fuse.notifier import Notifier
from sidecar.mounter.fuse.open_policy import OpenPolicy
from sidecar.mounter.fuse.passthrough import ORDINARY, Backings
from sidecar.mounter.fuse.protocol import Opcode
from sidecar.mounter.fuse.readers import direct_read
from sidecar.mounter.fuse.readers.direct_read import DirectRead
from sidecar.mounter.fuse.readers.pool import Readers

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 1024 * 1024
"""Largest read and write (max_pages 256)."""
MAX_BACKGROUND = 64
"""Requests of readahead in flight; the kernel drops readahead above the threshold."""
_BUFFER_BYTES = MAX_REQUEST_BYTES + 4096
_POOL_THREADS = 32
_SMALL_BYTES = 16 * 1024
_KEPT_BUFFERS = 8
_MOST_INODES = 100_000
"""Beyond so many (of 1.2 KiB), names are listed without the inodes that the kernel would hold."""
_WANTED = (
    p.Init.ASYNC_READ
    | p.Init.ATOMIC_O_TRUNC  # else open(O_TRUNC) would save an empty object first
    | p.Init.BIG_WRITES
    | p.Init.DO_READDIRPLUS
    | p.Init.ASYNC_DIO
    | p.Init.PARALLEL_DIROPS
    | p.Init.MAX_PAGES
    | p.Init.INIT_EXT
    | p.Init.PASSTHROUGH
    | p.Init.HAS_RESEND
)
# Not DONT_MASK: the kernel takes the umask off the mode of what is new.
# Not WRITEBACK_CACHE: it hides write errors from the writer and excludes passthrough.
# Not READDIRPLUS_AUTO: the kernel would ask for attributes with the first lines only, and for
# the rest one by one; how many are given with lines is decided here.

_SET_FIELDS = ((p.Set.MODE, "mode"), (p.Set.UID, "uid"), (p.Set.GID, "gid"))


class Request(NamedTuple):
    """One request. ``body`` lies in the buffer it was read into."""

    opcode: int
    unique: int
    inode: int
    body: memoryview
    uid: int
    gid: int
    thread: int
    """Who asks, by its number in this process's PID namespace; 0 where it has none."""

    @property
    def caller(self) -> Caller:
        """Whose process asks, by its file system uid and gid (credentials(7))."""
        return Caller(self.uid, self.gid)


class _Result(NamedTuple):
    """An answer, and what to do once it was written."""

    reply: Reply
    release: Callable[[], None] | None = None


_HANDED_ON = _Result(())
"""A reader process answers and counts, or this thread once it has passed its turn on."""

Handler = Callable[["Server", Request, bool], "_Result | None"]
"""Serves one opcode; the flag says whether it may wait. None: the kernel wants no answer."""


class Operation(NamedTuple):
    """One line of the table of opcodes: a handler, or the errno that is the answer.

    ``waits``: always handed to the pool, since it changes something or waits on a disk.
    """

    handler: Handler | None
    errno: int = 0
    waits: bool = False


class Server:
    """Serves one connection.

    Args:
        descriptor: the open /dev/fuse; it is mounted already.
        on_serving: called once the connection is initialised, with whether the kernel can
            hand open requests to a successor of this process (FUSE_NOTIFY_RESEND).
        readers: processes that answer READs; without them this one does.
        notifier: tells the kernel what changed in the bucket; without it names expire.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        descriptor: int,
        metrics: VolumeMetrics,
        on_serving: Callable[[bool], None],
        readers: Readers | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.filesystem = filesystem
        self._readers = readers
        if readers is not None:
            readers.connect(descriptor)
        self._descriptor = descriptor
        self._metrics = metrics
        self._on_serving = on_serving
        self._backings = Backings(descriptor)
        # Nothing of a read-only volume has to know what is open: an inode is one version, and
        # closing it saves nothing. Only a file of the disk cache is opened by its copy.
        by_inode = readers is not None and filesystem.read_only
        self._opens = OpenPolicy(needed=not by_inode, by_copy=filesystem.has_cache)
        self._reads_alone = by_inode and not filesystem.has_cache
        self._pool = ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="serve")
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._callers = Callers(descriptor)
        self._recovering = False
        self._turn = threading.Lock()
        self._alone: DirectRead | None = None
        self._fetches = False
        self._notifier = notifier
        self._over = threading.Event()
        self._failure: BaseException | None = None
        if notifier is not None:
            notifier.connect(descriptor)
            filesystem.namespace.on_remote_change = notifier.changed

    def resume(self) -> None:
        """Take over from a dead process: the file system is restored, INIT was its business.

        The kernel queues again what was read but not answered. Raises OSError where it
        cannot.
        """
        self._recovering = True
        notify(self._descriptor, p.Notify.RESEND)
        self._backings.restore(
            (opened.inode.id, opened.backing_id) for opened in self.filesystem.files.opened()
        )
        self._on_serving(True)

    def serve(self) -> None:
        """Read and answer requests until the file system is unmounted."""
        if self._readers is not None:
            listen = functools.partial(self._readers.listen, self._answer_stale_read)
            threading.Thread(target=listen, name="listen", daemon=True).start()
        # Not in this thread: it would have to wait for what is being fetched at the end.
        for _ in range(2 if self._reads_alone else 1):  # one has the turn, and one fetches
            threading.Thread(target=self._take_turns, name="turn", daemon=True).start()
        self._over.wait()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._failure is not None:
            raise self._failure

    def _take_turns(self) -> None:
        """One thread: read requests while it has the turn, then fetch one READ itself."""
        content = memoryview(bytearray(direct_read.MOST_BYTES))
        fetch = self.filesystem.fetch
        try:
            while True:
                with self._turn:
                    read = None if self._over.is_set() else self._take_turn()
                    if read is None:
                        break
                    self._fetches = True
                read.answer(
                    self._descriptor, fetch, content, self._metrics, self._answer_stale_read
                )
                self._fetches = False
        except BaseException as error:  # noqa: BLE001 - raised where serve() was called
            self._failure = error
        self._over.set()

    def _take_turn(self) -> DirectRead | None:
        """Read and answer requests until there is a READ to fetch; None after the last one."""
        buffer = self._take_buffer()
        while (size := self._read(buffer)) is not None:
            if self._receive(buffer, size):
                buffer = self._take_buffer()
            if self._alone is not None:
                read, self._alone = self._alone, None
                self._buffers.put(buffer)
                return read
        return None

    # --- one request --------------------------------------------------------------------------

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
        request = decode(memoryview(buffer)[:size])
        if request is None:
            return False
        operation = OPERATIONS.get(request.opcode, _UNKNOWN)
        if operation.handler is None:
            self._answer_errno(request, operation.errno)
            return False
        if request.unique & p.UNIQUE_RESEND:
            if self._answered_again(request, operation.handler):
                return False
        elif self._recovering and request.opcode not in _QUEUED_APART:
            # The kernel puts what it asks again before everything else (fs/fuse/dev.c,
            # fuse_resend), so that was all of it.
            self._recovering = False
            self.filesystem.recovery.all_resent()
        if not operation.waits and self._perform(request, operation.handler, wait=False):
            return False
        self._callers.wait(request.unique, request.thread)
        if size <= _SMALL_BYTES:
            # Cheaper to copy than to keep a large buffer from the next request.
            request = request._replace(body=memoryview(bytes(request.body)))
            self._pool.submit(self._perform_later, request, operation.handler, None)
            return False
        self._pool.submit(self._perform_later, request, operation.handler, buffer)
        return True

    def _answered_again(self, request: Request, handler: Handler) -> bool:
        """Answer a request whose worker died, or hand it on; False if it is as a new one."""
        unique = request.unique & ~p.UNIQUE_RESEND
        replayed = self.filesystem.recovery.resent(unique)
        if replayed.answer is not None:
            code, reply = replayed.answer
            self._answer(request, code, (reply,))
            self.filesystem.recovery.end_request(unique)
            return True
        if self.filesystem.read_only:  # nothing below has to wait, and this thread has backings
            for kind, number in replayed.granted:
                if kind == FILE_HANDLE:
                    self._backings.release(self.filesystem.files.get(number).inode.id)
            self.filesystem.recovery.revoke(unique)
            return False
        request = request._replace(body=memoryview(bytes(request.body)))
        self._callers.wait(request.unique, request.thread)
        self._pool.submit(self._perform_later, request, handler, None, replayed=True)
        return True

    def _perform_later(
        self,
        request: Request,
        handler: Handler,
        buffer: bytearray | None,
        *,
        replayed: bool = False,
    ) -> None:
        try:
            if replayed:
                self.filesystem.recovery.revoke(request.unique & ~p.UNIQUE_RESEND)
            self._perform(request, handler, wait=True)
            self._callers.answered(request.unique)
            request.body.release()
            if buffer is not None and self._buffers.qsize() < _KEPT_BUFFERS:
                self._buffers.put(buffer)
        except BaseException:
            # Nobody would ever answer this request. The next worker is asked it again.
            log.exception("a bug: opcode %d got no answer", request.opcode)
            os._exit(os.EX_SOFTWARE)

    def _perform(self, request: Request, handler: Handler, *, wait: bool) -> bool:
        """Run a handler and write its answer; False if it has to wait and may not."""
        if request.opcode not in _REMEMBERED and not request.unique & p.UNIQUE_RESEND:
            return self._perform_once(request, handler, wait=wait)
        unique = request.unique & ~p.UNIQUE_RESEND
        self.filesystem.recovery.begin_request(unique)
        try:
            return self._perform_once(request, handler, wait=wait)
        finally:
            self.filesystem.recovery.end_request(unique)

    def _perform_once(self, request: Request, handler: Handler, *, wait: bool) -> bool:
        began_s = time.perf_counter()
        failure: BaseException | None = None
        result: _Result | None = None
        try:
            result = handler(self, request, wait)
        except WouldBlock:
            return False
        except (SidecarError, OSError) as error:
            end_if_starved(error)
            failure = error
            self._answer_error(request, error)
        except (struct.error, OverflowError) as error:
            failure = error
            # Shorter than its opcode needs, or an offset that no file can have.
            self._answer_errno(request, errno.EINVAL)
        except Exception as error:
            end_if_starved(error)
            failure = error
            log.exception("a bug: opcode %d", request.opcode)
            self._answer_errno(request, errno.EIO)
        else:
            if result is _HANDED_ON:
                return True
            if result is not None:
                if request.opcode in _CHANGES_NAMES:
                    unique = request.unique & ~p.UNIQUE_RESEND
                    self.filesystem.recovery.replied(unique, b"".join(result.reply))
                try:
                    if not self._answer(request, 0, result.reply):
                        self.filesystem.recovery.revoke(request.unique & ~p.UNIQUE_RESEND)
                finally:
                    if result.release is not None:
                        result.release()
        self._metrics.operation(_name(request.opcode), time.perf_counter() - began_s, failure)
        return True

    def _answer_error(self, request: Request, error: SidecarError | OSError) -> None:
        if request.opcode == Opcode.LOOKUP and type(error) is NotFound:
            ttl_s = self.filesystem.absence_ttl_s(request.inode, _name_in(request.body))
            if ttl_s > 0:  # inode 0: the kernel remembers that the name does not exist
                self._answer(request, 0, (_entry(_NO_INODE, ttl_s, ttl_s),))
                return
        if isinstance(error, Stale):
            self._answer_stale(request.unique, request.inode)
            return
        self._answer_errno(request, to_errno(error))

    def _answer_stale(self, unique: int, inode_id: int) -> None:
        """ESTALE, once neither the file system nor the kernel believes in the inode's name."""
        inode = self.filesystem.doubt(inode_id)
        if not (inode and self._notifier and self._notifier.answer_stale(unique, inode)):
            answer(self._descriptor, unique, errno.ESTALE)

    def _answer_stale_read(self, unique: int, number: int, offset: int, size: int) -> None:
        """A version that was read elsewhere is gone; ``number`` as in :meth:`read`."""
        if number < 0:
            # Its file may have another name by now, or be in the spool since it lost its name.
            self._pool.submit(self._read_here, unique, -number, offset, size)
        else:
            self._answer_stale(unique, number)

    def _read_here(self, unique: int, handle: int, offset: int, size: int) -> None:
        inode = 0
        try:
            inode = self.filesystem.files.get(handle).inode.id
            result = self.filesystem.read(handle, offset, size)
        except Stale:
            self._answer_stale(unique, inode)
        except SidecarError as error:  # BadHandle: the program was killed meanwhile
            answer(self._descriptor, unique, to_errno(error))
        else:
            answer(self._descriptor, unique, 0, result.views)
            result.release()

    def _answer_errno(self, request: Request, code: int) -> None:
        if request.opcode not in _UNANSWERED:
            self._answer(request, code, ())

    def _answer(self, request: Request, code: int, reply: Reply) -> bool:
        return answer(self._descriptor, request.unique, code, reply)

    def _take_buffer(self) -> bytearray:
        try:
            return self._buffers.get_nowait()
        except queue.Empty:
            return bytearray(_BUFFER_BYTES)

    # --- the connection -----------------------------------------------------------------------

    def init(self, request: Request, _wait: bool) -> _Result | None:
        """Negotiate: of what is wanted, what the kernel offers."""
        major, _minor, max_readahead, flags = p.INIT_IN.unpack_from(request.body)
        if major < p.MAJOR:
            self._answer_errno(request, errno.EPROTO)
            return None
        if flags & p.Init.INIT_EXT and len(request.body) >= p.INIT_IN.size + 4:
            (flags2,) = p.INIT_IN_FLAGS2.unpack_from(request.body, p.INIT_IN.size)
            flags |= flags2 << 32
        agreed = int(flags & _WANTED)
        reply = p.INIT_OUT.pack(
            p.MAJOR,
            p.MINOR,
            max_readahead,
            agreed & 0xFFFFFFFF,
            MAX_BACKGROUND,
            MAX_BACKGROUND * 3 // 4,
            MAX_REQUEST_BYTES,
            1,  # time granularity, ns
            MAX_REQUEST_BYTES // 4096,
            0,
            agreed >> 32,
            1 if agreed & p.Init.PASSTHROUGH else 0,
        )
        self.filesystem.recovery.begin()
        self._answer(request, 0, (reply,))
        self._on_serving(bool(agreed & p.Init.HAS_RESEND))
        return None

    def destroy(self, _request: Request, _wait: bool) -> _Result:
        """The file system is being unmounted; the read that follows says ENODEV."""
        return _Result(())

    def interrupt(self, request: Request, _wait: bool) -> _Result | None:
        """A program got a signal while it waits: if it was killed it need not go on waiting."""
        (unique,) = p.INTERRUPT_IN.unpack_from(request.body)
        self._callers.watch(unique)
        return None

    # --- names ----------------------------------------------------------------------------------

    def lookup(self, request: Request, wait: bool) -> _Result:
        entry = self.filesystem.lookup(request.inode, _name_in(request.body), wait=wait)
        return _Result((_entry(*entry),), None)

    def forget(self, request: Request, _wait: bool) -> None:
        (count,) = p.FORGET_IN.unpack_from(request.body)
        self.filesystem.forget(request.inode, count)
        self._stop_reading([request.inode])

    def batch_forget(self, request: Request, _wait: bool) -> None:
        (count, _) = p.BATCH_FORGET_IN.unpack_from(request.body)
        offset = p.BATCH_FORGET_IN.size
        present = (len(request.body) - offset) // p.FORGET_ONE.size
        inodes = []
        for _ in range(min(count, present)):
            inode, lookups = p.FORGET_ONE.unpack_from(request.body, offset)
            self.filesystem.forget(inode, lookups)
            inodes.append(inode)
            offset += p.FORGET_ONE.size
        self._stop_reading(inodes)

    def _stop_reading(self, inodes: list[int]) -> None:
        if self._readers is not None and not self._opens.needed:
            self._readers.close(inodes)

    def get_attributes(self, request: Request, wait: bool) -> _Result:
        entry = self.filesystem.get_attributes(request.inode, wait=wait)
        return _Result((_attr_out(entry),))

    def set_attributes(self, request: Request, _wait: bool) -> _Result:
        fields = p.SETATTR_IN.unpack_from(request.body)
        valid, size, mtime_s, mtime_ns = fields[0], fields[3], fields[6], fields[9]
        given = {"mode": stat.S_IMODE(fields[11]), "uid": fields[13], "gid": fields[14]}
        changes = {name: given[name] for flag, name in _SET_FIELDS if valid & flag}
        if valid & p.Set.MTIME_NOW:
            changes["mtime_ns"] = time.time_ns()
        elif valid & p.Set.MTIME:
            # Before 1970 the kernel sends a negative number of seconds as a large one.
            signed_s = mtime_s - (mtime_s >> 63 << 64)
            changes["mtime_ns"] = signed_s * 10**9 + mtime_ns
        entry = self.filesystem.set_attributes(
            request.inode, changes, size if valid & p.Set.SIZE else None
        )
        return _Result((_attr_out(entry),))

    def make_directory(self, request: Request, _wait: bool) -> _Result:
        mode, _ = p.MKDIR_IN.unpack_from(request.body)
        name = _name_in(request.body[p.MKDIR_IN.size :])
        entry = self.filesystem.make_directory(
            request.inode, name, stat.S_IMODE(mode), request.caller
        )
        return _Result((_entry(*entry),))

    def remove_directory(self, request: Request, _wait: bool) -> _Result:
        self.filesystem.remove_directory(request.inode, _name_in(request.body))
        return _Result(())

    def unlink(self, request: Request, _wait: bool) -> _Result:
        self.filesystem.unlink(request.inode, _name_in(request.body))
        return _Result(())

    def rename(self, request: Request, _wait: bool) -> _Result:
        (new_parent,) = p.RENAME_IN.unpack_from(request.body)
        old, new = _names_in(request.body[p.RENAME_IN.size :], 2)
        self.filesystem.rename(request.inode, old, new_parent, new, 0)
        return _Result(())

    def rename2(self, request: Request, _wait: bool) -> _Result:
        new_parent, flags, _ = p.RENAME2_IN.unpack_from(request.body)
        old, new = _names_in(request.body[p.RENAME2_IN.size :], 2)
        self.filesystem.rename(request.inode, old, new_parent, new, flags)
        return _Result(())

    def link(self, _request: Request, _wait: bool) -> _Result:
        self.filesystem.link()

    def make_node(self, request: Request, _wait: bool) -> _Result:
        mode, *_ = p.MKNOD_IN.unpack_from(request.body)
        name = _name_in(request.body[p.MKNOD_IN.size :])
        entry = self.filesystem.make_node(request.inode, name, mode, request.caller)
        return _Result((_entry(*entry),))

    def symlink(self, request: Request, _wait: bool) -> _Result:
        name, end, target = bytes(request.body).partition(b"\0")
        if not (end and target.endswith(b"\0")):
            raise struct.error("a name and a target expected")
        entry = self.filesystem.symlink(
            request.inode, _name_in(name + end), target[:-1], request.caller
        )
        return _Result((_entry(*entry),))

    def read_link(self, request: Request, wait: bool) -> _Result:
        return _Result((self.filesystem.read_link(request.inode, wait=wait),))

    def statistics(self, _request: Request, _wait: bool) -> _Result:
        now = self.filesystem.statistics()
        reply = p.STATFS_OUT.pack(
            now.blocks,
            now.blocks_free,
            now.blocks_free,
            now.files + now.files_free,
            now.files_free,
            BLOCK_BYTES,
            now.name_max,
            BLOCK_BYTES,
            0,
        )
        return _Result((reply,))

    # --- directories ------------------------------------------------------------------------------

    def open_directory(self, request: Request, _wait: bool) -> _Result:
        handle = self.filesystem.open_directory(request.inode)
        return _Result((p.OPEN_OUT.pack(handle, 0, 0),))

    def release_directory(self, request: Request, _wait: bool) -> _Result:
        (handle,) = p.HANDLE_IN.unpack_from(request.body)
        self.filesystem.release_directory(handle)
        return _Result(())

    def read_directory(self, request: Request, wait: bool) -> _Result:
        handle, offset, size = _read_in(request.body)
        reply = bytearray()
        last = offset
        try:
            for line in self.filesystem.read_directory(handle, offset, wait=wait):
                name = os.fsencode(line.name)
                if len(reply) + p.dirent_bytes(len(name), plus=False) > size:
                    break
                _add_dirent(reply, line.inode or p.UNKNOWN_INO, line.offset, name, line.type_mode)
                last = line.offset
        except WouldBlock:
            if not reply:
                raise  # what is here is answered first; the kernel asks for the rest
        self.filesystem.entries_read(handle, last)
        return _Result((reply,))

    def read_directory_plus(self, request: Request, wait: bool) -> _Result:
        handle, last, size = _read_in(request.body)
        reply = bytearray()
        while not reply and (lines := self._lines_plus(handle, last, size, wait)):
            last = lines[-1][0].offset
            names = [line.name for line, _ in lines if line.name not in (".", "..")]
            del names[max(0, _MOST_INODES - len(self.filesystem.namespace.inodes)) :]
            entries = dict(zip(names, self.filesystem.enter(handle, names), strict=True))
            for line, name in lines:
                entry = entries.get(line.name, _NO_ENTRY)
                if entry is not None:  # else the name is gone again
                    reply += _entry(*entry)
                    inode = entry.attributes.inode or line.inode or p.UNKNOWN_INO
                    _add_dirent(reply, inode, line.offset, name, line.type_mode)
        self.filesystem.entries_read(handle, last)
        return _Result((reply,))

    def _lines_plus(
        self, handle: int, offset: int, size: int, wait: bool
    ) -> list[tuple[DirectoryEntry, bytes]]:
        """As many lines as a reply of READDIRPLUS has room for, with their encoded names."""
        lines: list[tuple[DirectoryEntry, bytes]] = []
        try:
            for line in self.filesystem.read_directory(handle, offset, wait=wait):
                name = os.fsencode(line.name)
                size -= p.dirent_bytes(len(name), plus=True)
                if size < 0:
                    break
                lines.append((line, name))
        except SidecarError:
            if not lines:
                raise  # what is here is answered first; the kernel asks for the rest
        return lines

    def synchronise_directory(self, _request: Request, _wait: bool) -> _Result:
        """Changes of names are in the store when their system call returns."""
        return _Result(())

    # --- files ------------------------------------------------------------------------------------

    def create(self, request: Request, _wait: bool) -> _Result:
        flags, mode, *_ = p.CREATE_IN.unpack_from(request.body)
        name = _name_in(request.body[p.CREATE_IN.size :])
        entry, handle = self.filesystem.create(request.inode, name, mode, flags, request.caller)
        return _Result(
            (
                _entry(*entry),
                p.OPEN_OUT.pack(handle, p.Open.KEEP_CACHE, 0),
            )
        )

    def open(self, request: Request, wait: bool) -> _Result | None:
        flags, _ = p.OPEN_IN.unpack_from(request.body)
        if not (self._opens.needed or self._is_open_answered(request.inode)):
            # The kernel then opens and closes files without asking (FUSE_NO_OPEN_SUPPORT).
            self._answer_errno(request, errno.ENOSYS)
            return None
        if flags & os.O_TRUNC and not wait:
            raise WouldBlock("truncate")
        backing_id = ORDINARY
        if self.filesystem.read_only:
            copy = functools.partial(self.filesystem.open_copy, request.inode)
            backing_id = self._backings.acquire(request.inode, copy)
        try:
            handle = self.filesystem.open(request.inode, flags, backing_id, wait=wait)
        except BaseException:
            if self.filesystem.read_only:
                self._backings.release(request.inode)
            raise
        if backing_id != ORDINARY:
            self._metrics.passthrough_opens.inc()
            how = p.Open.PASSTHROUGH | p.Open.NOFLUSH
        elif flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY:
            # An inode is one version, so the kernel's pages of it are always right; and
            # close(2) has nothing to wait for. (With O_TRUNC it has: the file is empty now.)
            how = p.Open.KEEP_CACHE | p.Open.NOFLUSH
        else:
            how = p.Open.KEEP_CACHE
        return _Result((p.OPEN_OUT.pack(handle, how, backing_id),))

    def _is_open_answered(self, inode: int) -> bool:
        version = self.filesystem.version(inode)
        return self._opens.is_answered(version, others_open=self._backings.in_use)

    def read(self, request: Request, wait: bool) -> _Result:
        handle, offset, size = _read_in(request.body)
        if self._readers is not None:
            # By its handle where it has one: closing that gives its room in the disk cache back.
            if handle or self._opens.needed:
                number, info = -handle, self.filesystem.pinned(handle)
            else:
                number, info = request.inode, self.filesystem.version(request.inode)
            if info is not None:
                self._callers.wait_elsewhere(request.unique, request.thread)
                wanted = min(size, info.size_bytes - offset)
                if not (self._reads_alone and self._readers.is_alone(number, info, offset, wanted)):
                    self._readers.read(request.unique, number, info, offset, size)
                    return _HANDED_ON
                began_s = time.perf_counter()
                alone_read = DirectRead(request.unique, number, info, offset, wanted, began_s)
                if self._fetches:
                    self._readers.read_alone(alone_read)
                else:
                    self._alone = alone_read
                return _HANDED_ON
        result = self.filesystem.read(handle, offset, size, wait=wait)
        return _Result(result.views, result.release)

    def write(self, request: Request, _wait: bool) -> _Result:
        handle, offset, size, *_ = p.WRITE_IN.unpack_from(request.body)
        data = request.body[p.WRITE_IN.size :]
        if len(data) != size or not size:  # write(2) of nothing never comes this far
            raise struct.error(f"WRITE of {size} bytes carries {len(data)}")
        return _Result((p.WRITE_OUT.pack(self.filesystem.write(handle, offset, data), 0),))

    def flush(self, request: Request, _wait: bool) -> _Result | None:
        if not self._opens.needed:
            self._answer_errno(request, errno.ENOSYS)  # nothing is written, nor asked again
            return None
        (handle,) = p.HANDLE_IN.unpack_from(request.body)
        # Of a program that was killed nobody hears how it went, and it must not hang while
        # gigabytes are sent: what it wrote is saved after its RELEASE.
        if request.opcode == Opcode.FSYNC or not is_killed(request.thread):
            self.filesystem.flush(handle)
        return _Result(())

    def release(self, request: Request, wait: bool) -> _Result:
        (handle,) = p.HANDLE_IN.unpack_from(request.body)
        self.filesystem.release(handle, wait=wait)
        if self._readers is not None:
            self._readers.close([-handle])
        if self.filesystem.read_only:
            self._backings.release(request.inode)
        return _Result(())


OPERATIONS: dict[int, Operation] = {
    Opcode.LOOKUP: Operation(Server.lookup),
    Opcode.FORGET: Operation(Server.forget),
    Opcode.GETATTR: Operation(Server.get_attributes),
    Opcode.SETATTR: Operation(Server.set_attributes, waits=True),
    Opcode.READLINK: Operation(Server.read_link),
    Opcode.SYMLINK: Operation(Server.symlink, waits=True),
    Opcode.MKNOD: Operation(Server.make_node, waits=True),
    Opcode.MKDIR: Operation(Server.make_directory, waits=True),
    Opcode.UNLINK: Operation(Server.unlink, waits=True),
    Opcode.RMDIR: Operation(Server.remove_directory, waits=True),
    Opcode.RENAME: Operation(Server.rename, waits=True),
    Opcode.LINK: Operation(Server.link),
    Opcode.OPEN: Operation(Server.open),
    Opcode.READ: Operation(Server.read),
    Opcode.WRITE: Operation(Server.write, waits=True),
    Opcode.STATFS: Operation(Server.statistics),
    Opcode.RELEASE: Operation(Server.release),
    Opcode.FSYNC: Operation(Server.flush, waits=True),
    # ENOSYS is remembered by the kernel, which then answers EOPNOTSUPP without asking: that
    # saves one question about security.capability for each write(2).
    Opcode.SETXATTR: Operation(None, errno.ENOSYS),
    Opcode.GETXATTR: Operation(None, errno.ENOSYS),
    Opcode.LISTXATTR: Operation(None, errno.ENOSYS),
    Opcode.REMOVEXATTR: Operation(None, errno.ENOSYS),
    Opcode.FLUSH: Operation(Server.flush, waits=True),
    Opcode.INIT: Operation(Server.init),
    Opcode.OPENDIR: Operation(Server.open_directory),
    Opcode.READDIR: Operation(Server.read_directory),
    Opcode.RELEASEDIR: Operation(Server.release_directory),
    Opcode.FSYNCDIR: Operation(Server.synchronise_directory),
    # Locks are not negotiated: the kernel keeps them itself, for this inode alone.
    Opcode.GETLK: Operation(None, errno.ENOSYS),
    Opcode.SETLK: Operation(None, errno.ENOSYS),
    Opcode.SETLKW: Operation(None, errno.ENOSYS),
    Opcode.ACCESS: Operation(None, errno.ENOSYS),  # default_permissions: the kernel decides
    Opcode.CREATE: Operation(Server.create, waits=True),
    Opcode.INTERRUPT: Operation(Server.interrupt),
    Opcode.BMAP: Operation(None, errno.ENOSYS),
    Opcode.DESTROY: Operation(Server.destroy),
    Opcode.IOCTL: Operation(None, errno.ENOTTY),
    Opcode.POLL: Operation(None, errno.ENOSYS),
    Opcode.NOTIFY_REPLY: Operation(None, errno.ENOSYS),
    Opcode.BATCH_FORGET: Operation(Server.batch_forget),
    Opcode.FALLOCATE: Operation(None, errno.EOPNOTSUPP),
    Opcode.READDIRPLUS: Operation(Server.read_directory_plus),
    Opcode.RENAME2: Operation(Server.rename2, waits=True),
    Opcode.LSEEK: Operation(None, errno.ENOSYS),  # the kernel then uses the size
    Opcode.COPY_FILE_RANGE: Operation(None, errno.EOPNOTSUPP),  # the kernel then copies itself
    Opcode.SETUPMAPPING: Operation(None, errno.ENOSYS),
    Opcode.REMOVEMAPPING: Operation(None, errno.ENOSYS),
    Opcode.SYNCFS: Operation(None, errno.ENOSYS),
    Opcode.TMPFILE: Operation(None, errno.EOPNOTSUPP),
    Opcode.STATX: Operation(None, errno.ENOSYS),  # the kernel then asks GETATTR
    Opcode.COPY_FILE_RANGE_64: Operation(None, errno.ENOSYS),
}
"""Every opcode of the protocol: served, or answered with a chosen errno."""

_UNKNOWN = Operation(None, errno.ENOSYS)
_UNANSWERED = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY))
_QUEUED_APART = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT))
_CHANGES_NAMES = frozenset(
    (
        Opcode.CREATE,
        Opcode.MKDIR,
        Opcode.MKNOD,
        Opcode.SYMLINK,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
    )
)
"""Doing these twice is something else than doing them once: the first answer is remembered."""
_REMEMBERED = _CHANGES_NAMES | {
    Opcode.LOOKUP,
    Opcode.OPEN,
    Opcode.OPENDIR,
    Opcode.READDIRPLUS,
}
"""These give out inodes and handles, which are taken back if the answer never left."""
_NAMES = {int(opcode): opcode.name.lower() for opcode in Opcode}


def decode(frame: memoryview) -> Request | None:
    """Split a frame; None, and a line in the log, if it is not a whole request."""
    if len(frame) < p.IN_HEADER.size:
        log.warning("a request of %d bytes has no header", len(frame))
        return None
    length, opcode, unique, inode, uid, gid, thread, *_ = p.IN_HEADER.unpack_from(frame)
    if length != len(frame):
        log.warning("a request of %d bytes says it has %d", len(frame), length)
        return None
    return Request(opcode, unique, inode, frame[p.IN_HEADER.size :], uid, gid, thread)


def _name(opcode: int) -> str:
    return _NAMES.get(opcode, "unknown")


def _read_in(body: memoryview) -> tuple[int, int, int]:
    """Handle, offset and size of READ and READDIR; no more than was negotiated."""
    handle, offset, size, _ = p.READ_IN.unpack_from(body)
    return handle, offset, min(size, MAX_REQUEST_BYTES)


def _name_in(body: memoryview | bytes) -> str:
    return _names_in(body, 1)[0]


def _names_in(body: memoryview | bytes, count: int) -> list[str]:
    """NUL-terminated names. Raises struct.error when there are fewer or one is no name."""
    parts = bytes(body).split(b"\0")
    if len(parts) <= count or any(not part or b"/" in part for part in parts[:count]):
        raise struct.error(f"{count} name(s) expected")
    return [os.fsdecode(part) for part in parts[:count]]


def _attr(attributes: Attributes) -> bytes:
    seconds, nanoseconds = divmod(attributes.mtime_ns, 10**9)
    seconds &= _UINT64_MAX  # two's complement, as the kernel reads it
    return p.ATTR.pack(
        attributes.inode,
        attributes.size_bytes,
        -(-attributes.size_bytes // 512),
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        0,
        BLOCK_BYTES,
        0,
    )


def _entry(attributes: Attributes, ttl_s: float, attributes_ttl_s: float) -> bytes:
    seconds, attributes_s = int(ttl_s), int(attributes_ttl_s)
    head = p.ENTRY_OUT.pack(
        attributes.inode,
        0,
        seconds,
        attributes_s,
        int((ttl_s - seconds) * 1e9),
        int((attributes_ttl_s - attributes_s) * 1e9),
    )
    return head + _attr(attributes)


def _attr_out(entry: Entry) -> bytes:
    seconds = int(entry.attributes_ttl_s)
    head = p.ATTR_OUT.pack(seconds, int((entry.attributes_ttl_s - seconds) * 1e9), 0)
    return head + _attr(entry.attributes)


def _add_dirent(reply: bytearray, inode: int, offset: int, name: bytes, type_mode: int) -> None:
    reply += p.DIRENT.pack(inode, offset, len(name), type_mode >> 12)
    reply += name
    reply += bytes(-len(reply) % 8)


_UINT64_MAX = (1 << 64) - 1
_NO_INODE = Attributes(0, 0, 0, 0, 0, 0, 0)
_NO_ENTRY = Entry(_NO_INODE, 0, 0)
"""Before a line of READDIRPLUS: the kernel makes no inode of it, and counts no lookup."""
