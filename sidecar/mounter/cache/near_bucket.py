"""Blocks of objects in a bucket near the pods, for all nodes that read the same objects.

Blocks that are there are read there. Others are read from the object's own store, and are put there
for other pods without delaying the reader. Nothing depends on the near bucket: if it fails, is
full, or returns something else than was put there, the object's own store is asked. Reasons, and
whom it
trusts: docs/decisions/0053-a-near-bucket.md.

- A block's key is made of the object's origin (:meth:`Store.origin`), key and version, and of the
  block's number. So no block ever becomes wrong by age, the bucket's own lifecycle rule may delete
  anything, and a pod that reaches the object by another way has its own blocks.
- A block is a row of chunks, each after a checksum of its identity and content
(:mod:`.near_block`).
  So a part of a block is read by one request, and checked.
- A process that is about to fetch a block claims it: it writes a few bytes under the block's key,
on
  condition that nothing is there. Pods on other nodes that read the same then wait for the block
  for a short term, and do not fetch it, too. The block replaces its claim.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.errors import AlreadyExists, NotFound, SidecarError, Unavailable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache import near_block
from sidecar.mounter.cache.near_block import NEAR_BLOCK_BYTES, BlockName
from sidecar.mounter.cache.write_behind import WriteBehind
from sidecar.mounter.store.interface import Condition, Fetch, ObjectInfo, Store
from sidecar.units import MIB

log = logging.getLogger(__name__)

CLAIM_S = 5.0
"""How long others wait for a block that a process has claimed."""
UNCLAIMED_BYTES = 1 * MIB
"""So little is fetched as quickly as it is claimed, and pods rarely read small files in step."""
_FIRST_POLL_S = 0.01
_LONGEST_POLL_S = 0.1
_MOST_PENDING = 8
"""How many whole blocks of one process may wait to be put."""
_PATIENCE_S = 1.0
_PUT_THREADS = 4
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0

State = Literal["here", "claimed", "absent", "expired", "damaged"]
"""The state of a block. ``claimed``: by another process; ``expired``: its claim is over."""


class _Piece(NamedTuple):
    """The part of one block that a read wants.

    Attributes:
        start, end: in the object.
        is_whole: whether it is the whole block.
    """

    block: BlockName
    start: int
    end: int
    is_whole: bool


class _Read(NamedTuple):
    """Arguments of :meth:`NearBucket.fill`."""

    info: ObjectInfo
    offset: int
    buffer: memoryview
    fetch: Fetch

    def view(self, start: int, end: int) -> memoryview:
        """The memory for the object's bytes ``[start, end)``."""
        return self.buffer[start - self.offset : end - self.offset]

    def pieces(self, origin: str) -> Iterator[_Piece]:
        """The read's part of each block, in order."""
        name = near_block.object_name(origin, self.info.key, self.info.version)
        start, end = self.offset, self.offset + len(self.buffer)
        while start < end:
            number = start // NEAR_BLOCK_BYTES
            low = number * NEAR_BLOCK_BYTES
            high = min(low + NEAR_BLOCK_BYTES, self.info.size_bytes)
            stop = min(high, end)
            whole = (start, stop) == (low, high)
            yield _Piece(BlockName(name, number, high - low), start, stop, whole)
            start = stop


class NearBucket:
    """The near bucket of one volume, in one process. Safe to use from several threads.

    Must not be used across a fork, which has no threads.

    Args:
        store: the near bucket; it does not retry.
        origin: that of the volume's own store.
    """

    def __init__(self, store: Store, origin: str, metrics: VolumeMetrics) -> None:
        self._store = store
        self._origin = origin
        self._metrics = metrics
        self._reads = _Breaker("read", metrics)
        self._writes = _Breaker("written", metrics)
        self._puts = WriteBehind("near", _MOST_PENDING * NEAR_BLOCK_BYTES, _PUT_THREADS)

    def fill(self, info: ObjectInfo, offset: int, buffer: memoryview, fetch: Fetch) -> None:
        """Fill ``buffer`` from ``offset`` of exactly this version.

        Args:
            fetch: reads what is not here; called once for neighbouring blocks.

        Raises what ``fetch`` raises, and nothing else.
        """
        if not info.has_final_version:
            fetch(info, offset, buffer)
            return
        read = _Read(info, offset, buffer, fetch)
        missing: list[_Piece] = []
        elsewhere: list[_Piece] = []
        claimed: set[int] = set()
        self._sort(read, missing, elsewhere, claimed)
        self._fetch(read, missing, claimed)
        give_up_s = time.monotonic() + CLAIM_S
        for piece in elsewhere:
            if not self._wait_for(read, piece, give_up_s):
                if self._claim(piece, None):
                    claimed.add(piece.block.number)
                self._fetch(read, [piece], claimed)

    def _sort(
        self,
        read: _Read,
        missing: list[_Piece],
        elsewhere: list[_Piece],
        claimed: set[int],
    ) -> None:
        """Take what is here, and sort the rest by who fetches it: this read, or another process.

        ``claimed`` gets the numbers of the blocks that this read has claimed.
        """
        absent_so_far = False
        for piece in read.pieces(self._origin):
            # After an absent block the next one mostly is absent, and a claim finds that out, too.
            unseen = absent_so_far and piece.block.size_bytes > UNCLAIMED_BYTES
            state: State = "absent" if unseen else self._look(read, piece)
            if state in ("absent", "expired", "damaged"):
                try:
                    if self._claim(piece, Condition(absent=True) if state == "absent" else None):
                        claimed.add(piece.block.number)
                except AlreadyExists:  # another process was faster
                    state = self._look(read, piece)
            absent_so_far = state == "absent"
            if state == "claimed" and piece.is_whole:
                elsewhere.append(piece)
            elif state != "here":
                missing.append(piece)

    def _look(self, read: _Read, piece: _Piece) -> State:
        """The state of a block. If it is ``here``, its bytes are taken."""
        state = self._look_once(read, piece)
        if state == "damaged":
            # Some servers mix an object with the one that is just replacing it.
            state = self._look_once(read, piece)
        if state == "damaged":
            self._metrics.near_damaged_blocks.inc()
        return state

    def _look_once(self, read: _Read, piece: _Piece) -> State:
        if not self._reads.may_try():
            return "absent"
        block = piece.block
        low = block.number * NEAR_BLOCK_BYTES
        first, size = block.stored_range(piece.start - low, piece.end - low)
        stored = memoryview(bytearray(size))
        try:
            count = self._store.get_range(block.key, None, first, stored)
        except NotFound:
            self._reads.worked()
            return "absent"
        except SidecarError as error:
            self._reads.failed(error)
            return "absent"
        self._reads.worked()
        into = read.view(piece.start, piece.end)
        if count == size and block.unpack(stored, piece.start - low, into):
            self._metrics.near_hit_bytes.inc(len(into))
            return "here"
        expires_s = near_block.claim_expires_s(stored[:count]) if first == 0 else None
        if expires_s is not None:
            return "claimed" if 0 < expires_s - time.time() <= CLAIM_S else "expired"
        return "damaged" if count else "expired"

    def _claim(self, piece: _Piece, condition: Condition | None) -> bool:
        """Claim a block before it is fetched. False if it cannot, or need not, be put later.

        Raises AlreadyExists if the condition is that nothing is there, and fails.
        """
        if not (piece.is_whole and self._reads.is_closed and self._writes.may_try()):
            return False
        if piece.block.size_bytes <= UNCLAIMED_BYTES:
            return True
        try:
            content = near_block.claim(time.time() + CLAIM_S)
            self._store.put(piece.block.key, content, condition=condition)
        except AlreadyExists:
            self._writes.worked()
            raise
        except SidecarError as error:
            self._writes.failed(error)
            return False
        self._writes.worked()
        return True

    def _fetch(self, read: _Read, pieces: list[_Piece], claimed: set[int]) -> None:
        """Fetch pieces from the object's own store, and put those that were claimed.

        If the fetch fails, its claims expire soon.
        """
        for run in _runs(pieces):
            start, end = run[0].start, run[-1].end
            read.fetch(read.info, start, read.view(start, end))
            for piece in run:
                if piece.block.number in claimed:
                    self._put_later(piece.block, read.view(piece.start, piece.end))

    def _put_later(self, block: BlockName, content: memoryview) -> None:
        """Copy a block, and put it in the background.

        If many wait already, the reader waits a little: without that, the next reader would find
        half of what was read here, and go far for the rest. A bucket that is slower than that
        counts as one that fails.
        """
        if not self._writes.is_closed:
            return
        put = functools.partial(self._put, block, block.pack(content))
        if not self._puts.later(block.size_bytes, put, _PATIENCE_S) and self._writes.is_closed:
            self._writes.failed(Unavailable("it takes blocks more slowly than they are read"))

    def _put(self, block: BlockName, stored: bytes) -> None:
        try:
            if self._writes.is_closed:
                self._store.put(block.key, stored)
                self._writes.worked()
                self._metrics.near_put_bytes.inc(block.size_bytes)
        except SidecarError as error:
            self._writes.failed(error)

    def _wait_for(self, read: _Read, piece: _Piece, give_up_s: float) -> bool:
        """Wait until another process has put a block. False if it does not."""
        delay = Backoff(_FIRST_POLL_S, _LONGEST_POLL_S, jitter=True)
        while time.monotonic() < give_up_s:
            time.sleep(delay.next_s())
            state = self._look(read, piece)
            if state != "claimed":
                return state == "here"
        return False


def _runs(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Neighbouring pieces together."""
    run: list[_Piece] = []
    for piece in pieces:
        if run and run[-1].end != piece.start:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


class _Breaker:
    """Whether the near bucket is worth a request: after a failure, not for a while.

    Safe to use from several threads.

    Args:
        what: its use, for the log.
    """

    def __init__(self, what: str, metrics: VolumeMetrics) -> None:
        self._what = what
        self._metrics = metrics
        self._pause = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._again_s: float | None = None
        self._lock = threading.Lock()

    @property
    def is_closed(self) -> bool:
        """Whether the bucket works, as far as is known."""
        return self._again_s is None

    def may_try(self) -> bool:
        """Whether to ask the bucket. While it does not work, one thread may now and then."""
        if self._again_s is None:
            return True
        with self._lock:
            now_s = time.monotonic()
            if self._again_s is not None and now_s < self._again_s:
                return False
            self._again_s = now_s + _LONGEST_PAUSE_S  # other threads wait for the outcome
            return True

    def worked(self) -> None:
        """Note that a request was answered."""
        if self._again_s is None:
            return
        with self._lock:
            self._again_s = None
            self._pause.reset()
        logs.event(log, f"the near bucket is {self._what} again")

    def failed(self, error: SidecarError) -> None:
        """Note that a request failed."""
        self._metrics.near_failed(error.code)
        with self._lock:
            first = self._again_s is None
            self._again_s = time.monotonic() + self._pause.next_s()
        if first:
            logs.event(
                log,
                f"the near bucket cannot be {self._what}; the volume's own store is asked",
                logging.WARNING,
                why=error.line(),
            )
