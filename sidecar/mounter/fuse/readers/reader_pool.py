"""The worker's side of its reader processes: which of them answers which READ.

One Python process uses one core at most. So the worker forks a few children before it does anything
else. It keeps names, attributes and writes to itself, and passes each READ on, a few dozen bytes,
to the process that has the read window. That process (:mod:`.process`) fetches, and writes the
answer to the connection that it shares: the kernel takes an answer from everybody with the same
open file description (fs/fuse/dev.c). If a reader process ends, its worker ends, too, and the
kernel sends everything again to the next one.
"""

from __future__ import annotations

import selectors
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import count

from sidecar.mounter.fuse.readers import direct_read, process
from sidecar.mounter.fuse.readers.child import end_with_child, fork_child, send_descriptor
from sidecar.mounter.fuse.readers.direct_read import AnswerStale, DirectRead, StaleRead
from sidecar.mounter.fuse.readers.messages import (
    MESSAGE_BYTES,
    Source,
    pack_close,
    pack_direct_read,
    pack_open_and_read,
    pack_read,
    unpack_report,
)
from sidecar.mounter.fuse.readers.process import process_by_place
from sidecar.mounter.reading.fetcher import (
    WHOLE_OBJECT_BYTES,
    Fetcher,
    LoadsWhole,
    never_whole,
)
from sidecar.mounter.reading.whole_load import process_of_region
from sidecar.mounter.reading.window import (
    KEEP_BEHIND_BYTES,
    MAX_STREAMS,
    SEEK_FORWARD_BYTES,
)
from sidecar.mounter.store.failures import Tell
from sidecar.mounter.store.interface import ObjectInfo

_MOST_SOURCES = 1024
"""The most handles, or inodes, that reader processes have windows for."""
_EVICTED_TOGETHER = 64
_MOST_DIRECT_BYTES = 32 * 1024 * 1024
"""How much of an object is read directly. Later random reads go where read-around sees them all."""


class _KnownSource:
    """What the worker remembers of a source.

    Attributes:
        id, info: the source's.
        processes: the reader processes that have it.
        ends: where recent reads ended, and in which process; the latest is last.
        direct_bytes: how much was read directly.
        may_load_whole: programs load it whole.
        is_out_of_order: it is not read from start to end.
    """

    __slots__ = (
        "direct_bytes",
        "ends",
        "id",
        "info",
        "is_out_of_order",
        "may_load_whole",
        "processes",
    )

    def __init__(self, source: int, info: ObjectInfo, *, may_load_whole: bool) -> None:
        self.id = source
        self.info = info
        self.processes: set[int] = set()
        self.ends: deque[tuple[int, int]] = deque(maxlen=MAX_STREAMS)
        self.direct_bytes = 0
        self.may_load_whole = may_load_whole
        self.is_out_of_order = False

    def follows(self, offset: int) -> tuple[int, int] | None:
        """The recent read that one at ``offset`` follows, or steps back from a little."""
        for end, number in self.ends:
            if -KEEP_BEHIND_BYTES <= offset - end <= SEEK_FORWARD_BYTES:
                return end, number
        return None


class ReaderPool:
    """The reader processes of one worker. Only the thread that reads requests passes READs.

    ``handle`` is the open file that is read; None if the kernel opens files by itself, and the
    inode is read.

    Args:
        processes: their number.
        build: makes the fetcher of process ``n``, in that process, from ``n`` and a function that
            takes the outcomes of its calls to the store.
        tell: takes these outcomes in the worker.
        loads_whole: whether programs load an object whole (:mod:`...reading.whole_load`).
        has_cache: there is a disk cache, which keeps whole blocks of large objects.

    Attributes:
        pids: of the processes.
    """

    def __init__(
        self,
        processes: int,
        build: Callable[[int, Tell], Fetcher],
        tell: Tell,
        loads_whole: LoadsWhole = never_whole,
        *,
        has_cache: bool = False,
    ) -> None:
        self._tell = tell
        self._loads_whole = loads_whole
        self._has_cache = has_cache
        self._sockets: list[socket.socket] = []
        self.pids: list[int] = []
        self._ids = count(1)
        self._handles: OrderedDict[int, _KnownSource] = OrderedDict()  # the latest read is last
        self._inodes: OrderedDict[int, _KnownSource] = OrderedDict()  # the latest read is last
        self._direct_reads = 0
        for index in range(processes):

            def run(end: socket.socket, index: int = index) -> None:
                process.run(end, build, index, processes)

            pid, end = fork_child("reader", run, self._sockets)
            self.pids.append(pid)
            self._sockets.append(end)

    def connect(self, descriptor: int) -> None:
        """Give every reader process the connection to the kernel."""
        for pid, end in zip(self.pids, self._sockets, strict=True):
            send_descriptor(pid, end, descriptor)

    def listen(self, answer_stale: AnswerStale) -> None:
        """Take the reader processes' messages, as long as they live."""
        with selectors.DefaultSelector() as selector:
            for end in self._sockets:
                selector.register(end, selectors.EVENT_READ, end)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        message = key.data.recv(MESSAGE_BYTES)
                    except ConnectionResetError:  # it was killed and had not read all messages
                        message = b""
                    if not message:
                        selector.unregister(key.data)  # it ended, and this process will end, too
                        continue
                    report = unpack_report(message)
                    if isinstance(report, StaleRead):
                        answer_stale(report)
                    else:
                        self._tell(report)

    def read(
        self, unique: int, inode: int, handle: int | None, info: ObjectInfo, offset: int, size: int
    ) -> None:
        """Let a reader process answer the READ ``unique`` of the version ``info``."""
        opened = self._open(inode, handle, info)
        number = self._process_for(opened, offset)
        opened.ends.append((offset + size, number))
        if number in opened.processes:
            message = pack_read(opened.id, unique, offset, size)
        else:
            opened.processes.add(number)
            source = Source(opened.id, inode, handle, info)
            message = pack_open_and_read(source, unique, offset, size)
        self._send(number, message)

    def is_direct(
        self, inode: int, handle: int | None, info: ObjectInfo, offset: int, wanted: int
    ) -> bool:
        """Whether a READ needs no window and makes none, so that any thread may fetch it.

        Those are a small object read whole, and, without a disk cache, the first reads of an object
        that follow no other read. The READ is remembered.
        """
        if not 0 < wanted <= direct_read.MOST_BYTES:
            return False
        if info.size_bytes <= WHOLE_OBJECT_BYTES:
            return wanted == info.size_bytes
        if offset == 0 or self._has_cache:
            return False
        opened = self._open(inode, handle, info)
        if opened.may_load_whole:
            return False
        if opened.direct_bytes >= _MOST_DIRECT_BYTES or opened.follows(offset):
            return False
        opened.direct_bytes += wanted
        opened.ends.append((offset + wanted, self._process_by_place(opened, offset)))
        return True

    def read_directly(self, read: DirectRead) -> None:
        """Let a reader process answer a READ that :meth:`is_direct`."""
        self._direct_reads += 1
        self._send(self._direct_reads % len(self._sockets), pack_direct_read(read))

    def close_handle(self, handle: int) -> None:
        """Note that a handle is not read any more. Any thread may call this."""
        self._close((self._handles.pop(handle, None),))

    def close_inodes(self, inodes: Iterable[int]) -> None:
        """Note that inodes are not read any more."""
        self._close([self._inodes.pop(inode, None) for inode in inodes])

    def _open(self, inode: int, handle: int | None, info: ObjectInfo) -> _KnownSource:
        """The remembered source for a READ, made if it is new."""
        if handle is None:
            known, number = self._inodes, inode
        else:
            known, number = self._handles, handle
        opened = known.get(number)
        if opened is not None and opened.info is info:
            known.move_to_end(number)
            return opened
        self._close((opened,))
        opened = known[number] = _KnownSource(
            next(self._ids), info, may_load_whole=handle is None and self._loads_whole(info)
        )
        known.move_to_end(number)
        if len(known) > _MOST_SOURCES:
            self._close([known.pop(old, None) for old in list(known)[:_EVICTED_TOGETHER]])
        return opened

    def _close(self, closed: Iterable[_KnownSource | None]) -> None:
        messages: dict[int, list[int]] = {}
        for opened in closed:
            if opened is not None:
                for number in opened.processes:
                    messages.setdefault(number, []).append(opened.id)
        for number, sources in messages.items():
            self._send(number, pack_close(sources))

    def _process_for(self, opened: _KnownSource, offset: int) -> int:
        """The process whose window the READ belongs to, else one by the place of the READ."""
        if opened.is_out_of_order:
            return process_of_region(opened.info.size_bytes, offset, len(self._sockets))
        followed = opened.follows(offset)
        if followed is not None:
            opened.ends.remove(followed)
            return followed[1]
        if opened.may_load_whole and offset:
            opened.is_out_of_order = True
            return self._process_for(opened, offset)
        return self._process_by_place(opened, offset)

    def _process_by_place(self, opened: _KnownSource, offset: int) -> int:
        # Bytes that are fetched together are asked of one process.
        return process_by_place(opened.id, offset, len(self._sockets))

    def _send(self, number: int, message: bytes) -> None:
        try:
            self._sockets[number].send(message)
        except ConnectionError:
            end_with_child(self.pids[number])
