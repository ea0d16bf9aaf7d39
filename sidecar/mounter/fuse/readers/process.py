"""One reader process: it has read windows, fetches, and answers READs."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from sidecar.errors import SidecarError
from sidecar.mounter.fuse.connection import answer, end_if_starved, fill_pages
from sidecar.mounter.fuse.readers import direct_read
from sidecar.mounter.fuse.readers.child import receive_descriptor
from sidecar.mounter.fuse.readers.direct_read import DirectRead, StaleRead, answer_failure
from sidecar.mounter.fuse.readers.messages import (
    MESSAGE_BYTES,
    Close,
    Read,
    Source,
    pack_outcome,
    pack_stale_read,
    unpack_request,
)
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.reading.object_reader import ObjectReader, PageCache
from sidecar.mounter.reading.read_around import MOST_BYTES
from sidecar.mounter.reading.read_result import ReadResult
from sidecar.mounter.reading.whole_load import Fill, region_of_process
from sidecar.mounter.store.failures import Outcome, Tell
from sidecar.mounter.system.memory_pressure import MemoryPressure

log = logging.getLogger(__name__)

_THREADS = 32
_MOST_FILLING = _THREADS // 4
_MOST_READING_AHEAD = _THREADS // 8
_IDLE_S = 60.0
_TICK_S = 1.0


def process_by_place(source: int, offset: int, processes: int) -> int:
    """The reader process for a READ that follows no other read."""
    return (source + offset // MOST_BYTES) % processes


def blocks_of_process(source: int, size_bytes: int, process: int, processes: int) -> range:
    """The blocks of MOST_BYTES for which :func:`process_by_place` is this process."""
    return range((process - source) % processes, -(-size_bytes // MOST_BYTES), processes)


def run(
    end: socket.socket, build: Callable[[int, Tell], Fetcher], index: int, processes: int
) -> None:
    """Serve in this process until the worker is gone.

    Args:
        end: the connection to the worker.
        build: makes the fetcher, from the index and a function that takes the outcomes of calls to
            the store.
        index: of this process among ``processes``.
    """

    def tell(outcome: Outcome) -> None:
        end.send(pack_outcome(outcome))

    fetcher = build(index, tell)
    descriptor = receive_descriptor(end)
    if descriptor is not None:
        _ReaderProcess(end, descriptor, fetcher, index, processes).serve()


class _OpenSource:
    """A source, and the windows on it."""

    __slots__ = ("handle", "inode", "reader")

    def __init__(self, source: Source, reader: ObjectReader) -> None:
        self.inode = source.inode
        self.handle = source.handle
        self.reader = reader


class _ReaderProcess:
    """The sources, and the threads that answer READs of them.

    The threads take turns at the connection to the worker. The one that has the turn answers READs
    whose bytes are here. If a READ has to wait, it passes the turn on, and waits itself. So a READ
    changes threads as rarely as possible: a wake-up costs as much as a small answer.
    """

    def __init__(
        self, end: socket.socket, descriptor: int, fetcher: Fetcher, index: int, processes: int
    ) -> None:
        self._end = end
        self._descriptor = descriptor
        self._fetcher = fetcher
        self._index = index
        self._processes = processes
        self._metrics = fetcher.metrics
        self._sources: dict[int, _OpenSource] = {}
        self._turn = threading.Lock()
        self._next_in_turn = 0
        self._threads = 1
        self._filling = threading.BoundedSemaphore(_MOST_FILLING)
        self._reading_ahead = threading.BoundedSemaphore(_MOST_READING_AHEAD)

    def serve(self) -> None:
        """Answer READs until the worker is gone."""
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
                    # A thread must be there for the next READ.
                    if not self._next_in_turn and self._threads < _THREADS:
                        self._threads += 1
                        threading.Thread(target=self._serve, name="read", daemon=True).start()
                if isinstance(read, DirectRead):
                    read.answer(self._descriptor, self._fetcher, content, self._answer_stale)
                else:
                    read.answer_later()
        except BaseException as error:  # noqa: BLE001 - it ends the process
            _end_unanswered(error)

    def _take_turn(self) -> _PendingRead | DirectRead:
        """Answer READs until one has to be fetched; that one. Ends the process with the worker."""
        while message := self._end.recv(MESSAGE_BYTES):
            request = unpack_request(message)
            if isinstance(request, Read):
                read = request
            elif isinstance(request, DirectRead):
                return request
            elif isinstance(request, Close):
                for number in request.sources:
                    self._sources.pop(number).reader.close()
                continue
            else:
                self._open(request.source)
                read = request.read
            pending = _PendingRead(read, self._sources[read.source], self._answer)
            if not pending.answer_when_here():
                return pending
        os._exit(0)

    def _open(self, source: Source) -> None:
        page_cache = None
        if source.handle is None:
            size_bytes, share = source.info.size_bytes, (self._index, self._processes)
            page_cache = PageCache(
                blocks_of_process(source.id, size_bytes, *share),
                region_of_process(size_bytes, *share),
                self._filler(source.inode),
            )
        reader = ObjectReader(self._fetcher, source.info, page_cache=page_cache)
        self._sources[source.id] = _OpenSource(source, reader)

    def _drop_idle(self) -> None:
        """Drop windows that nobody reads: programs pause, and some closes are not reported.

        While memory is short, also shrink the others.
        """
        pressure = MemoryPressure()
        next_drop_s = time.monotonic() + _IDLE_S / 4
        while True:
            time.sleep(_TICK_S)
            if pressure.look():
                self._fetcher.buffers.shrink(pressure.part)
            if time.monotonic() < next_drop_s:
                continue
            next_drop_s = time.monotonic() + _IDLE_S / 4
            for source in list(self._sources.values()):
                source.reader.drop_idle(_IDLE_S)
            self._fetcher.buffers.drop_unused()

    def _answer(self, pending: _PendingRead, result: ReadResult | Exception) -> None:
        if not isinstance(result, ReadResult):
            key = pending.source.reader.info.key
            answer_failure(self._descriptor, result, pending.stale(), key, self._answer_stale)
            self._metrics.operation("read", time.perf_counter() - pending.began_s, result)
            return
        views, release, surplus, given = result
        answer(self._descriptor, pending.unique, 0, views)
        self._metrics.read_bytes.inc(sum(map(len, views)))
        self._metrics.operation("read", time.perf_counter() - pending.began_s, None)
        if not surplus:
            release()
            return
        source = pending.source  # the program does not wait for the rest of this
        if self._fill(source.inode, surplus):
            given()
        release()
        self._read_ahead(source)

    def _answer_stale(self, read: StaleRead) -> None:
        """Let the worker answer: it knows what has become of the file."""
        self._end.send(pack_stale_read(read))

    def _fill(self, inode: int, surplus: Sequence[tuple[int, memoryview]]) -> bool:
        """Fill the kernel's page cache; False if enough threads are doing so.

        The kernel waits for pages that a READ in flight will fill, so a thread must be left that
        answers the READ.
        """
        if not self._filling.acquire(blocking=False):
            return False
        try:
            for offset, view in surplus:
                fill_pages(self._descriptor, inode, offset, view)
        finally:
            self._filling.release()
        return True

    def _filler(self, inode: int) -> Fill:
        """A function that fills pages of an inode, and waits while enough threads do so."""

        def fill(offset: int, view: memoryview) -> None:
            with self._filling:
                fill_pages(self._descriptor, inode, offset, view)

        return fill

    def _read_ahead(self, source: _OpenSource) -> None:
        """Background readahead of a source, unless enough threads are doing such things."""
        if not self._reading_ahead.acquire(blocking=False):
            return
        try:
            source.reader.read_ahead_in_background(self._filler(source.inode))
        except Exception as error:  # noqa: BLE001 - a read gets the error, if it lasts
            end_if_starved(error)
            if not isinstance(error, SidecarError):  # failures of the store are logged once
                log.info("nothing more of `%s` was read ahead: %s", source.reader.info.key, error)
        finally:
            self._reading_ahead.release()


class _PendingRead:
    """One READ and how it is answered."""

    __slots__ = ("_answer", "_offset", "_size", "began_s", "source", "unique")

    def __init__(
        self,
        read: Read,
        source: _OpenSource,
        answer: Callable[[_PendingRead, ReadResult | Exception], None],
    ) -> None:
        self.source = source
        self.began_s = time.perf_counter()
        _, self.unique, self._offset, self._size = read
        self._answer = answer

    def answer_when_here(self) -> bool:
        """Answer it now, or when the bytes in flight are here; False if nobody fetches them."""
        return self.source.reader.read_when_here(self._offset, self._size, self._take)

    def answer_later(self) -> None:
        """Fetch its bytes, and answer it."""
        result: ReadResult | Exception
        try:
            result = self.source.reader.read(self._offset, self._size)
        except Exception as error:  # noqa: BLE001 - every READ needs an answer
            result = error
        self._take(result)

    def stale(self) -> StaleRead:
        """The same READ, now that its version is gone."""
        source = self.source
        return StaleRead(self.unique, source.inode, source.handle, self._offset, self._size)

    def _take(self, result: ReadResult | Exception) -> None:
        """Answer it, maybe in the thread that fetches, which goes on."""
        try:
            self._answer(self, result)
        except BaseException as error:  # noqa: BLE001 - it ends the process
            _end_unanswered(error)


def _end_unanswered(error: BaseException) -> NoReturn:
    """End the process: nobody would ever answer this READ. The next worker gets it again."""
    end_if_starved(error)
    log.critical("a bug: a READ got no answer", exc_info=error)
    os._exit(os.EX_SOFTWARE)


SERVING: Final = (
    _PendingRead.answer_when_here,
    _PendingRead.answer_later,
    DirectRead.answer,
)
"""A thread has one of these on its stack while it answers a READ."""
