"""One object that a program loads whole, in whatever order: each block is fetched once.

Weights are read through mapped memory, tensor by tensor, or by many threads. To the kernel that
looks random, and a window around each read would fetch much of the object twice. Here a read
fetches its own block, and threads fetch the others, those after the last read first. Bytes that no
program has asked for go into the kernel's page cache.

A thread that fills pages waits for READs in flight of the same pages. So a block is ready for
those READs before its pages are filled, and they never wait for a thread that fills.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator

from sidecar.contract.options import ReadWhole
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.reading.read_result import ReadResult
from sidecar.mounter.reading.window import Part
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import MIB

log = logging.getLogger(__name__)

BLOCK_BYTES = 8 * MIB
_THREADS = 5
"""For one object in one process, beside the threads of its reads."""
_FILLED_TOGETHER_BYTES = 1 * MIB
_DROPPED_READS = 32
"""After more reads than this of what the kernel had and dropped, no more is fetched."""
_NOT_FETCHED, _IN_MEMORY, _GIVEN = 0, 1, 2

_MODELS = (".safetensors", ".gguf", ".pt", ".pth", ".ckpt", ".onnx")

Fill = Callable[[int, memoryview], None]
"""Fills the kernel's page cache from an offset. Bytes that the kernel refuses are lost."""


def is_loaded_whole(choice: ReadWhole, key: str) -> bool:
    """Whether programs load an object of this name whole, according to an option."""
    if choice == "models":
        name = key.rpartition("/")[2].lower()
        # Not every `.bin`: that may be a data set of a terabyte.
        is_torch = name.startswith("pytorch_model") and name.endswith(".bin")
        return name.endswith(_MODELS) or is_torch
    return choice == "always"


def region_of_process(size_bytes: int, process: int, processes: int) -> range:
    """The bytes of an object that a reader process loads: whole blocks. All of them cover it."""
    blocks = -(-size_bytes // BLOCK_BYTES)
    first, last = blocks * process // processes, blocks * (process + 1) // processes
    return range(first * BLOCK_BYTES, min(last * BLOCK_BYTES, size_bytes))


def process_of_region(size_bytes: int, offset: int, processes: int) -> int:
    """The reader process that loads the block of ``offset``."""
    blocks = -(-size_bytes // BLOCK_BYTES)
    return ((offset // BLOCK_BYTES + 1) * processes - 1) // blocks


class WholeLoad:
    """The blocks of a region of one version. Safe to use from any thread.

    Args:
        region: the bytes, from a multiple of BLOCK_BYTES.
        fill: gives the kernel bytes.
    """

    def __init__(self, fetcher: Fetcher, info: ObjectInfo, region: range, fill: Fill) -> None:
        self._fetcher = fetcher
        self._info = info
        self._region = region
        self._fill = fill
        self._lock = threading.Lock()
        self._state = bytearray(-(-region.stop // BLOCK_BYTES))  # before the region: unused
        self._first = region.start // BLOCK_BYTES
        self._parts: dict[int, Part] = {}
        self._served: dict[int, list[tuple[int, int]]] = {}  # by block: what reads have got of it
        self._unfilled: deque[Part] = deque()
        self._next = self._first
        self._threads = 0
        self._dropped_reads = 0
        self._ended = False

    @property
    def pays(self) -> bool:
        """Whether the kernel keeps what it is given."""
        return self._dropped_reads <= _DROPPED_READS

    def covers(self, offset: int, end: int) -> bool:
        """Whether a read of ``[offset, end)`` is in the region."""
        return self._region.start <= offset and end <= self._region.stop

    def read(self, offset: int, end: int) -> ReadResult | None:
        """The bytes; None if the kernel has dropped them, or memory is short.

        Raises what the store raises.
        """
        parts, mine = self._join(offset, end)
        if parts is None:
            return None
        for part in mine[1:]:
            self._fetcher.threads.submit(part.fetch, self._fetcher, self._info)
        for part in mine[:1]:
            part.fetch(self._fetcher, self._info)
        for part in parts:
            part.wait(part.end)
        self._start_threads()
        return self._result(parts, mine, offset, end)

    def end(self) -> None:
        """Fetch nothing more. Parts in flight are dropped when they arrive."""
        with self._lock:
            self._ended = True
            for part in self._parts.values():
                part.drop()
            self._parts.clear()
            self._unfilled.clear()

    # --- reads --------------------------------------------------------------------------------

    def _join(self, offset: int, end: int) -> tuple[list[Part] | None, list[Part]]:
        """The parts of a read, held, and those that it must fetch itself."""
        parts: list[Part] = []
        mine: list[Part] = []
        with self._lock:
            for number in range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                part = self._parts.get(number)
                if part is None:
                    part = self._begin(number)
                    if part is None:
                        break
                    mine.append(part)
                part.hold()
                parts.append(part)
            else:
                self._next = number + 1
                return parts, mine
        for part in mine:  # from now on other reads find it
            self._fetcher.threads.submit(part.fetch, self._fetcher, self._info)
        with self._lock:
            self._unfilled += mine
        self._start_threads()
        for part in parts:
            part.drop()
        return None, []

    def _begin(self, number: int) -> Part | None:
        """A part that is about to be fetched; None if it must not be. The lock is held."""
        if self._state[number] == _GIVEN:
            self._dropped_reads += 1  # the kernel would not ask for a page that it still has
            return None
        start = number * BLOCK_BYTES
        size = min(BLOCK_BYTES, self._region.stop - start)
        buffer = None if self._ended else self._fetcher.buffers.take(size)
        if buffer is None:
            return None
        part = self._parts[number] = Part(start, buffer, self._fetcher.buffers, None)
        self._state[number] = _IN_MEMORY
        self._fetcher.in_flight.begin_now()
        return part

    def _result(self, parts: list[Part], mine: list[Part], offset: int, end: int) -> ReadResult:
        failure = next((part.error for part in parts if part.error is not None), None)
        if failure is not None:
            with self._lock:  # the parts that came are given to the kernel all the same
                self._unfilled += [part for part in mine if part.error is None]
            for part in parts:
                self._forget_failed(part)
                part.drop()
            raise failure
        views, surplus = [], []
        with self._lock:
            for part in parts:
                low, high = max(offset, part.start), min(end, part.end)
                views.append(_bytes_of(part, low, high))
                self._served.setdefault(part.start // BLOCK_BYTES, []).append((low, high))
        for part in mine:
            surplus += [(low, _bytes_of(part, low, high)) for low, high in self._left(part)]
        given = threading.Event()
        return ReadResult(
            views, functools.partial(self._release, parts, mine, given), surplus, given.set
        )

    def _release(self, parts: list[Part], mine: list[Part], given: threading.Event) -> None:
        for part in mine:
            if given.is_set() or not self._left(part):
                self._give(part)
            else:
                with self._lock:
                    self._unfilled.append(part)
                self._start_threads()
        for part in parts:
            part.drop()

    # --- the others ---------------------------------------------------------------------------

    def _start_threads(self) -> None:
        with self._lock:
            is_work = bool(self._unfilled) or self._following() is not None
            if self._ended or self._threads >= _THREADS or not is_work:
                return
            self._threads += 1
        threading.Thread(target=self._bring, name="whole", daemon=True).start()

    def _following(self) -> int | None:
        """The next block that nobody has fetched. The lock is held."""
        for low, high in ((self._next, len(self._state)), (self._first, self._next)):
            number = self._state.find(_NOT_FETCHED, low, high)
            if number >= 0:
                return number
        return None

    def _bring(self) -> None:
        """Fetch blocks and give them to the kernel, one after the other, as long as that pays."""
        with self._fetcher.loading:
            while (taken := self._take()) is not None:
                if not self._bring_one(*taken):
                    with self._lock:
                        self._threads -= 1
                    return

    def _take(self) -> tuple[Part, bool] | None:
        """A part to give, held, and whether to fetch it first.

        None if there is no part: this thread no longer counts then, and a new part needs another.
        """
        with self._lock:
            if not self._ended and self.pays:
                if self._unfilled:
                    part = self._unfilled.popleft()
                    part.hold()
                    return part, False
                number = self._following()
                begun = None if number is None else self._begin(number)
                if begun is not None:
                    self._next = begun.end // BLOCK_BYTES
                    begun.hold()
                    return begun, True
            self._threads -= 1
            return None

    def _bring_one(self, part: Part, is_begun: bool) -> bool:
        """Give the kernel a part that is held, and drop it. False if there should be no more."""
        try:
            if is_begun:
                part.fetch(self._fetcher, self._info)
            part.wait(part.end)
            if part.error is not None:  # a read gets the error, if it lasts
                self._forget_failed(part)
                return False
            self._start_threads()
            for low, high in self._left(part):
                for at in range(low, high, _FILLED_TOGETHER_BYTES):
                    last = min(high, at + _FILLED_TOGETHER_BYTES)
                    self._fill(at, _bytes_of(part, at, last))
            self._give(part)
        finally:
            part.drop()
        return True

    def _left(self, part: Part) -> Iterator[tuple[int, int]]:
        """The ranges of a part that no read has got."""
        with self._lock:
            served = sorted(self._served.get(part.start // BLOCK_BYTES, ()))
        at = part.start
        left = []
        for low, high in served:
            if low > at:
                left.append((at, low))
            at = max(at, high)
        if at < part.end:
            left.append((at, part.end))
        return iter(left)

    def _give(self, part: Part) -> None:
        """Note that the kernel has the whole part."""
        number = part.start // BLOCK_BYTES
        with self._lock:
            self._state[number] = _GIVEN
            self._served.pop(number, None)
            is_there = self._parts.pop(number, None) is part
        if is_there:
            part.drop()

    def _forget_failed(self, part: Part) -> None:
        """Forget a part that failed, so that the next read fetches it again."""
        if part.error is None:
            return
        number = part.start // BLOCK_BYTES
        with self._lock:
            is_there = self._parts.get(number) is part
            if is_there:
                del self._parts[number]
                self._state[number] = _NOT_FETCHED
        if is_there:
            part.drop()


def _bytes_of(part: Part, low: int, high: int) -> memoryview:
    assert part.buffer is not None
    return memoryview(part.buffer)[low - part.start : high - part.start]
