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
import selectors
import signal
import socket
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from sidecar.errors import SidecarError, Stale, to_errno
from sidecar.mounter.fuse.connection import answer, end_if_starved, fill_pages
from sidecar.mounter.fuse.readers import direct_read
from sidecar.mounter.fuse.readers.child import fork_child, receive_descriptor, send_descriptor
from sidecar.mounter.fuse.readers.direct_read import AnswerStale, DirectRead
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.reading.object_reader import ObjectReader, ReadResult
from sidecar.mounter.reading.read_around import MOST_BYTES
from sidecar.mounter.reading.window import (
    KEEP_BEHIND_BYTES,
    MAX_STREAMS,
    SEEK_FORWARD_BYTES,
    WHOLE_OBJECT_BYTES,
)
from sidecar.mounter.store.failures import Outcome, Tell
from sidecar.mounter.store.interface import ObjectInfo

log = logging.getLogger(__name__)

_READ = struct.Struct(
    "<BQqQI"
)  # kind unique number offset size; a marshalled ObjectInfo may follow
# Marshalled numbers follow a close.
_KIND_READ, _KIND_CLOSE, _KIND_ALONE = 1, 2, 3
_TOLD_OUTCOME, _TOLD_STALE = 1, 2
"""What a child tells: marshalled, an Outcome, or what AnswerStale takes."""
_MESSAGE_BYTES = 16 * 1024
_THREADS = 32
_MOST_PINNED = 1024
_EVICTED_TOGETHER = 64
_IDLE_S = 60.0
_ALONE_BYTES = 32 * 1024 * 1024
"""What is read at random of an object before reads of it concern each other (widening)."""


class _Pinned:
    """What the worker remembers of something that is read.

    Attributes:
        told: the children that know ``info``.
        ends: where recent reads ended, and which child has them, the latest last.
        alone_bytes: what was read where nobody had a window.
    """

    __slots__ = ("alone_bytes", "ends", "info", "told")

    def __init__(self, info: ObjectInfo) -> None:
        self.info = info
        self.told: set[int] = set()
        self.ends: deque[tuple[int, int]] = deque(maxlen=MAX_STREAMS)
        self.alone_bytes = 0

    def follows(self, offset: int) -> tuple[int, int] | None:
        """Which of the recent reads one at ``offset`` follows, or steps back from a little."""
        for end, child in self.ends:
            if -KEEP_BEHIND_BYTES <= offset - end <= SEEK_FORWARD_BYTES:
                return end, child
        return None


class Readers:
    """The children of one worker, seen from the worker.

    Args:
        count: how many.
        build: makes the fetcher of child ``n``, in that child, and is given who takes what came
            of its calls to the store.
        tell: takes that here.
    """

    def __init__(self, count: int, build: Callable[[int, Tell], Fetcher], tell: Tell) -> None:
        self._tell = tell
        self._sockets: list[socket.socket] = []
        self._pinned: OrderedDict[int, _Pinned] = OrderedDict()  # the latest read last
        self._pids: list[int] = []
        self._next_alone = 0
        for number in range(count):

            def run(end: socket.socket, number: int = number) -> None:
                def tell(outcome: Outcome) -> None:
                    end.send(bytes((_TOLD_OUTCOME,)) + marshal.dumps(tuple(outcome)))

                _Reader(end, build(number, tell), number, count).run()

            pid, end = fork_child(run, self._sockets)
            self._pids.append(pid)
            self._sockets.append(end)
        signal.signal(signal.SIGCHLD, self._child_ended)

    def connect(self, descriptor: int) -> None:
        """Give every child the connection to answer on."""
        for end in self._sockets:
            send_descriptor(end, descriptor)

    def listen(self, answer_stale: AnswerStale) -> None:
        """Take what the children tell, as long as they live."""
        with selectors.DefaultSelector() as selector:
            for end in self._sockets:
                selector.register(end, selectors.EVENT_READ, end)
            while selector.get_map():
                for key, _ in selector.select():
                    message = key.data.recv(_MESSAGE_BYTES)
                    if not message:
                        selector.unregister(key.data)  # it ended: _child_ended
                        continue
                    details = marshal.loads(message[1:])  # noqa: S302 - our child's
                    if message[0] == _TOLD_OUTCOME:
                        self._tell(Outcome(*details))
                    else:
                        answer_stale(*details)

    def read(
        self,
        unique: int,
        number: int,
        info: ObjectInfo,
        offset: int,
        size: int,
    ) -> None:
        """Let a child answer a READ of the pinned version ``info``.

        Args:
            number: the inode that is read, of which the kernel may be told more than it asked;
                where a handle is read, its negative.
        """
        pinned = self._pin(number, info)
        child = self._child_for(pinned, number, offset)
        pinned.ends.append((offset + size, child))
        message = _READ.pack(_KIND_READ, unique, number, offset, size)
        if child not in pinned.told:
            pinned.told.add(child)
            message += _marshalled(info)
        self._send(child, message)

    def is_alone(self, number: int, info: ObjectInfo, offset: int, wanted: int) -> bool:
        """Whether a read needs no window and makes none, so that anybody may fetch it.

        That is a small object read whole, and one of the first reads of an object that follow
        no other one; it is remembered as read.
        """
        if not 0 < wanted <= direct_read.MOST_BYTES:
            return False
        if info.size_bytes <= WHOLE_OBJECT_BYTES:
            return wanted == info.size_bytes
        if offset == 0:
            return False
        pinned = self._pin(number, info)
        if pinned.alone_bytes >= _ALONE_BYTES or pinned.follows(offset):
            return False
        pinned.alone_bytes += wanted
        pinned.ends.append((offset + wanted, self._child_by_place(number, offset)))
        return True

    def read_alone(self, read: DirectRead) -> None:
        """Let a child answer a READ that :meth:`is_alone`."""
        message = _READ.pack(_KIND_ALONE, read.unique, read.number, read.offset, read.size)
        message += _marshalled(read.info)
        self._next_alone += 1
        self._send(self._next_alone % len(self._sockets), message)

    def close(self, numbers: Iterable[int]) -> None:
        """These handles or inodes are not read any more."""
        closed: dict[int, list[int]] = {}
        for number in numbers:
            pinned = self._pinned.pop(number, None)
            if pinned is not None:
                for child in pinned.told:
                    closed.setdefault(child, []).append(number)
        for child, known in closed.items():
            self._send(child, bytes((_KIND_CLOSE,)) + marshal.dumps(known))

    def _pin(self, number: int, info: ObjectInfo) -> _Pinned:
        """What is remembered of something that is about to be read."""
        pinned = self._pinned.get(number)
        if pinned is not None and pinned.info is info:
            self._pinned.move_to_end(number)
            return pinned
        self.close([number])
        pinned = self._pinned[number] = _Pinned(info)
        if len(self._pinned) > _MOST_PINNED:
            self.close(list(self._pinned)[:_EVICTED_TOGETHER])
        return pinned

    def _child_for(self, pinned: _Pinned, number: int, offset: int) -> int:
        """The child whose window the read belongs to, else one by the place of the read."""
        followed = pinned.follows(offset)
        if followed is not None:
            pinned.ends.remove(followed)
            return followed[1]
        return self._child_by_place(number, offset)

    def _child_by_place(self, number: int, offset: int) -> int:
        # What is fetched together is asked of one child.
        return child_by_place(number, offset, len(self._sockets))

    def _send(self, child: int, message: bytes) -> None:
        try:
            self._sockets[child].send(message)
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


def child_by_place(number: int, offset: int, children: int) -> int:
    """The child that is asked for what follows nothing."""
    return (number + offset // MOST_BYTES) % children


def blocks_of_child(number: int, size_bytes: int, child: int, children: int) -> range:
    """The blocks of MOST_BYTES for which :func:`child_by_place` is this one."""
    return range((child - number) % children, -(-size_bytes // MOST_BYTES), children)


def _marshalled(info: ObjectInfo) -> bytes:
    return marshal.dumps(info.bare)


def _info_in(message: bytes) -> ObjectInfo:
    return ObjectInfo(*marshal.loads(message[_READ.size :]))  # noqa: S302 - the parent's


class _Reader:
    """One child: numbers to windows, requests to answers.

    Its threads take turns at the connection: who has the turn answers what is here, and
    passes the turn on only when a read has to wait, which it then does itself. So a read
    changes threads as rarely as can be: a wake-up costs as much as a small answer.
    """

    def __init__(self, end: socket.socket, fetcher: Fetcher, index: int, count: int) -> None:
        self._end = end
        self._fetcher = fetcher
        self._index = index
        self._count = count
        self._metrics = fetcher.metrics
        self._readers: dict[int, ObjectReader] = {}
        self._turn = threading.Lock()
        self._next_in_turn = 0
        self._threads = 1
        self._givers = threading.BoundedSemaphore(_THREADS // 4)
        self._bringers = threading.BoundedSemaphore(_THREADS // 8)
        self._descriptor = -1

    def run(self) -> None:
        """Serve until the worker is gone."""
        descriptor = receive_descriptor(self._end)
        if descriptor is None:
            return
        self._descriptor = descriptor
        threading.Thread(target=self._drop_idle, name="idle", daemon=True).start()
        self._serve()

    def _serve(self) -> None:
        content = memoryview(bytearray(direct_read.MOST_BYTES))
        try:
            while True:
                self._next_in_turn += 1
                with self._turn:
                    self._next_in_turn -= 1
                    read = self._take_turn()
                    # Somebody must be there for the next one.
                    if not self._next_in_turn and self._threads < _THREADS:
                        self._threads += 1
                        threading.Thread(target=self._serve, name="read", daemon=True).start()
                if isinstance(read, DirectRead):
                    read.answer(
                        self._descriptor,
                        self._fetcher.get,
                        content,
                        self._metrics,
                        self._answer_stale,
                    )
                else:
                    read.answer_later()
        except BaseException as error:
            end_if_starved(error)
            # Somebody would never get an answer. The next worker is asked it again.
            log.exception("a bug: a READ got no answer")
            os._exit(os.EX_SOFTWARE)

    def _take_turn(self) -> _Read | DirectRead:
        """Answer until a read has to be fetched: that one. Ends the process with the worker."""
        while message := self._end.recv(_MESSAGE_BYTES):
            if message[0] != _KIND_CLOSE:
                kind, unique, number, offset, size = _READ.unpack_from(message)
                if kind == _KIND_ALONE:
                    began_s = time.perf_counter()
                    return DirectRead(unique, number, _info_in(message), offset, size, began_s)
                if len(message) > _READ.size:
                    info = _info_in(message)
                    self._readers[number] = self._open(number, info)
                read = _Read(self._readers[number], unique, number, offset, size, self._answer)
                if not read.answer_when_here():
                    return read
            else:
                for number in marshal.loads(message[1:]):  # noqa: S302 - the parent's
                    self._readers.pop(number).close()
        os._exit(0)

    def _open(self, number: int, info: ObjectInfo) -> ObjectReader:
        blocks = blocks_of_child(number, info.size_bytes, self._index, self._count)
        return ObjectReader(self._fetcher, info, background_blocks=blocks if number > 0 else None)

    def _drop_idle(self) -> None:
        """Windows that nobody reads: a close is not always heard of, and programs pause."""
        while True:
            time.sleep(_IDLE_S / 4)
            for reader in list(self._readers.values()):
                reader.drop_idle(_IDLE_S)

    def _answer(self, read: _Read, result: ReadResult | Exception) -> None:
        failure: Exception | None = None
        if isinstance(result, ReadResult):
            answer(self._descriptor, read.unique, 0, result.views)
            self._metrics.read_bytes.inc(sum(map(len, result.views)))
        else:
            end_if_starved(result)
            failure = result
            if not isinstance(failure, SidecarError | OSError):
                log.error("a bug: a read of `%s`", read.reader.info.key, exc_info=failure)
            if isinstance(failure, Stale):
                self._answer_stale(read.unique, read.number, read.offset, read.size)
            else:
                answer(self._descriptor, read.unique, to_errno(failure))
        self._metrics.operation("read", time.perf_counter() - read.began_s, failure)
        if isinstance(result, ReadResult):  # the program does not wait for this
            if result.surplus and self._give(read.number, result.surplus):
                result.given()
            result.release()
            if result.surplus:
                self._bring_more(read)

    def _answer_stale(self, unique: int, number: int, offset: int, size: int) -> None:
        """Let the worker answer, which knows what has become of what was read."""
        self._end.send(bytes((_TOLD_STALE,)) + marshal.dumps((unique, number, offset, size)))

    def _give(self, inode: int, surplus: Sequence[tuple[int, memoryview]]) -> bool:
        """Fill the kernel's page cache; False where too many threads are at it already.

        The kernel waits for pages that a READ under way will fill: somebody must be left who
        answers that.
        """
        if not self._givers.acquire(blocking=False):
            return False
        try:
            for offset, view in surplus:
                fill_pages(self._descriptor, inode, offset, view)
        finally:
            self._givers.release()
        return True

    def _bring_more(self, read: _Read) -> None:
        """Go on with what will be read, unless enough threads do such things."""

        def give(offset: int, view: memoryview) -> None:
            with self._givers:
                fill_pages(self._descriptor, read.number, offset, view)

        if not self._bringers.acquire(blocking=False):
            return
        try:
            read.reader.read_ahead_in_background(give)
        except Exception as error:  # noqa: BLE001 - whoever reads it is told, if it lasts
            end_if_starved(error)
            log.info("nothing more of `%s` was read ahead: %s", read.reader.info.key, error)
        finally:
            self._bringers.release()


class _Read:
    """One READ."""

    __slots__ = ("_answer", "began_s", "number", "offset", "reader", "size", "unique")

    def __init__(
        self,
        reader: ObjectReader,
        unique: int,
        number: int,
        offset: int,
        size: int,
        answer: Callable[[_Read, ReadResult | Exception], None],
    ) -> None:
        self.reader = reader
        self.unique = unique
        self.number = number
        self.began_s = time.perf_counter()
        self.offset = offset
        self.size = size
        self._answer = answer

    def answer_when_here(self) -> bool:
        """Answer it now or when what is being fetched is here; False if nobody fetches it."""
        return self.reader.read_when_here(self.offset, self.size, self._take)

    def answer_later(self) -> None:
        """Fetch what it needs, and answer it."""
        result: ReadResult | Exception
        try:
            result = self.reader.read(self.offset, self.size)
        except Exception as error:  # noqa: BLE001 - every READ needs an answer
            result = error
        self._answer(self, result)

    def _take(self, result: ReadResult | Exception) -> None:
        self._answer(self, result)
