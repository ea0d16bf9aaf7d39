"""From the spool to the store.

A new file is sent part by part while it is written (:class:`ActiveUpload`); what is left is sent
when it is saved. A file that the store has in an older version is put together there, of
what that version has and of the parts that changed.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from sidecar.errors import SidecarError, SpoolFull, Stale, StoreProtocolError, TooLarge
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.store.interface import (
    Condition,
    Content,
    Fetch,
    FileSlice,
    ObjectInfo,
    Revision,
    Store,
    Upload,
)
from sidecar.mounter.writing.spool import SpoolFile
from sidecar.mounter.writing.spool_log import SpoolLog, UploadRecord

log = logging.getLogger(__name__)


class Description(NamedTuple):
    """What an object is made with besides its content.

    Attributes:
        metadata: all of them.
        like: what has the properties that it shall have; None for a new file.
    """

    metadata: Mapping[str, str]
    like: ObjectInfo | None = None


_LEFT = "an upload may be left in the store: %s"
"""The spool file's state remembers it: the next start tries again."""


class ActiveUpload:
    """One multipart upload of one spool file. Threads of the uploader send its parts.

    Attributes:
        key: the object that it will be.
        ahead: the last part that was sent ahead, or is on its way.
        error: why a part could not be sent ahead; it is tried again when the file is saved.
    """

    def __init__(self, store: Store, key: str, spool: SpoolFile) -> None:
        self.key = key
        self.error: SidecarError | None = None
        self._store = store
        self._state = spool.state
        self._fd = spool.duplicate()  # it may be discarded while a part is on its way
        self._lock = threading.Lock()
        self._beginning = threading.Lock()
        self._upload: Upload | None = None
        self._record: UploadRecord | None = None
        self._asked: UploadRecord | None = None
        self._futures: dict[int, Future[None]] = {}
        self._touched: set[int] = set()
        self._doubtful = 0
        self.ahead = 0

    def resume(self, record: UploadRecord) -> None:
        """Go on with what a process that ended began."""
        self._record = record
        self._upload = self._store.resume_upload(self.key, record.state, record.parts)
        self.ahead = max(record.parts, default=0)
        # Where parts go in order, one more may be in the store than was written down.
        self._doubtful = len(record.parts) + 1 if self._store.limits.ordered_parts else 0

    @property
    def sent(self) -> frozenset[int]:
        """The parts that the store has as they are."""
        with self._lock:
            return frozenset(self._record.parts) if self._record is not None else frozenset()

    def submit(
        self,
        threads: ThreadPoolExecutor,
        number: int,
        content: Content,
        description: Description,
        done: Callable[[int], None],
    ) -> None:
        """Send a part by and by, unless it is sent or on its way.

        Args:
            description: for the object, if this is what begins the upload.
            done: called with the number of bytes once they are sent.
        """
        with self._lock:
            if number in self._futures or (self._record and number in self._record.parts):
                return
            if isinstance(content, FileSlice):
                content = FileSlice(self._fd, content.offset, content.size_bytes)
            self._touched.discard(number)
            self._futures[number] = threads.submit(self._send, number, content, description, done)

    def is_busy(self) -> bool:
        """Whether parts are on their way."""
        with self._lock:
            return bool(self._futures)

    def touches(self, numbers: Iterable[int]) -> bool:
        """Whether one of the parts is sent, or may be."""
        with self._lock:
            known = self._record.parts if self._record is not None else ()
            return any(n in known or n in self._futures or n == self._doubtful for n in numbers)

    def touch(self, numbers: Iterable[int]) -> None:
        """The parts are about to change: what was sent of them must be sent again."""
        with self._lock:
            for number in numbers:
                if number in self._futures:
                    self._touched.add(number)
                if self._record is not None and number in self._record.parts:
                    self._state.unsent(self._record, number)

    def wait(self) -> None:
        """Until no part is on its way, whatever became of them."""
        while True:
            with self._lock:
                pending = list(self._futures.values())
            if not pending:
                return
            wait(pending)
            with self._lock:
                for number, future in list(self._futures.items()):
                    if future.cancelled():
                        del self._futures[number]

    def complete(
        self, condition: Condition | None, count: int, metadata: Mapping[str, str]
    ) -> ObjectInfo:
        """Make the object of the first ``count`` parts, all of which are sent."""
        assert self._upload is not None
        assert self._record is not None
        made = self._upload.complete(condition, parts=count, metadata=metadata)
        self._state.end(self._record)
        os.close(self._fd)
        return made

    def abort(self) -> None:
        """Remove everything from the store. Raises what the store raises."""
        with self._lock:
            for future in self._futures.values():
                future.cancel()
        self.wait()
        os.close(self._fd)
        self._end_asked()
        if self._upload is not None and self._record is not None:
            self._upload.abort()
            self._state.end(self._record)

    def _send(
        self,
        number: int,
        content: Content,
        description: Description,
        done: Callable[[int], None],
    ) -> None:
        try:
            upload = self._begin(description)
            receipt = upload.put_part(number, content)
            done(len(content))
            with self._lock:
                if self._record is not None and number not in self._touched:
                    self._state.sent(self._record, number, len(content), receipt)
        except SidecarError as error:
            self.error = error
        except OSError as error:
            self.error = SpoolFull(f"the spool's disk: {error.strerror}")
        finally:
            with self._lock:
                del self._futures[number]

    def _begin(self, description: Description) -> Upload:
        with self._beginning:
            if self._upload is None:
                try:
                    self._end_asked()
                except SidecarError as error:
                    log.warning(_LEFT, error.message)
                since = {"since_s": time.time()}
                self._asked = self._state.begin(self.key, since, resumable=False)
                upload = self._store.start_upload(
                    self.key, description.metadata, like=description.like
                )
                try:
                    record = self._state.begin(self.key, upload.state, resumable=True)
                except OSError:
                    upload.abort()  # nobody would know of it
                    raise
                with self._lock:
                    self._upload, self._record = upload, record
                self._state.end(self._asked)
                self._asked = None
            return self._upload

    def _end_asked(self) -> None:
        """Remove what was perhaps begun by a request whose answer never came."""
        if self._asked is not None:
            self._store.abandon(self._asked.key, self._asked.state)
            self._state.end(self._asked)
            self._asked = None


class Uploader:
    """Sends spool files. The caller holds the file inode's lock.

    Args:
        threads: send parts; their number bounds the connections that upload.
        fetch: gets back what only the store has.
    """

    def __init__(
        self, store: Store, threads: ThreadPoolExecutor, fetch: Fetch, metrics: VolumeMetrics
    ) -> None:
        self._store = store
        self._threads = threads
        self._fetch = fetch
        self._metrics = metrics
        self._active: dict[SpoolFile, ActiveUpload] = {}

    # --- while a file is written ----------------------------------------------------------

    def is_ahead(self, spool: SpoolFile) -> bool:
        """Whether everything that could be sent ahead is sent, or on its way."""
        if spool.base is not None:
            return True  # most of it may be in the store already: sent when it is saved
        filled = spool.layout.number(spool.filled_bytes) - 1
        upload_ = self._active.get(spool)
        if upload_ is None:
            return not filled
        return upload_.ahead >= filled or upload_.error is not None

    def send_ahead(self, key: str, spool: SpoolFile, description: Description) -> None:
        """Send the parts of a new file that are written from end to end."""
        upload_ = self._sending_of(key, spool)
        if upload_.key != key:
            return  # it was renamed: begun anew when it is saved
        filled = spool.layout.number(spool.filled_bytes) - 1
        for number in range(upload_.ahead + 1, filled + 1):
            content = spool.content(*spool.span(number))
            upload_.submit(
                self._threads, number, content, description, self._metrics.uploaded_bytes.inc
            )
        upload_.ahead = filled

    def touch(self, spool: SpoolFile, numbers: Collection[int]) -> None:
        """Parts are about to change."""
        upload_ = self._active.get(spool)
        if upload_ is not None:
            upload_.touch(numbers)

    def must_begin_anew(self, spool: SpoolFile, numbers: Collection[int]) -> bool:
        """Whether parts that are about to change cannot be sent again within this upload."""
        upload_ = self._active.get(spool)
        return upload_ is not None and self._store.limits.ordered_parts and upload_.touches(numbers)

    def is_under_way(self, spool: SpoolFile) -> bool:
        """Whether an upload was begun that no object was made of."""
        return spool in self._active

    def begun_with(self, spool: SpoolFile) -> list[Mapping[str, str]]:
        """The metadata of uploads under way, which what is made of them may have."""
        states = [record.state for record in list(spool.state.uploads.values())]
        return [state["metadata"] for state in states if "metadata" in state]

    def sent_parts(self, spool: SpoolFile) -> int:
        """How many parts of an upload under way the store has."""
        upload_ = self._active.get(spool)
        return len(upload_.sent) if upload_ is not None else 0

    def is_busy(self, spool: SpoolFile) -> bool:
        """Whether parts are on their way."""
        upload_ = self._active.get(spool)
        return upload_ is not None and upload_.is_busy()

    def evictable(self, spool: SpoolFile) -> list[int]:
        """Parts whose bytes the store has, and that are not at the end, where more may come."""
        upload_ = self._active.get(spool)
        there = set(upload_.sent) if upload_ is not None else set()
        if spool.base is not None:
            there.update(number for number in spool.parts() if spool.is_as_in_base(number))
        return sorted(there.intersection(spool.parts()[:-1]) - spool.missing)

    # --- taking over, giving up -----------------------------------------------------------

    def adopt(self, spool: SpoolFile) -> None:
        """Go on with the upload that a process which ended had under way."""
        begun = list(spool.state.uploads.values())
        if begun and begun[-1].resumable:
            newest = begun.pop()
            upload_ = ActiveUpload(self._store, newest.key, spool)
            upload_.resume(newest)
            self._active[spool] = upload_
        for record in begun:
            self._later(self._abandon, spool.state, record)

    def abandon(self, states: Iterable[SpoolLog]) -> None:
        """Remove from the store what processes that ended left there, by and by."""
        for state in states:
            for record in list(state.uploads.values()):
                self._later(self._abandon, state, record)
            state.discard()

    def drop(self, spool: SpoolFile) -> None:
        """Give up an upload under way, by and by; the file may go on or be discarded."""
        upload_ = self._active.pop(spool, None)
        if upload_ is not None:
            self._later(upload_.abort)

    def _abandon(self, state: SpoolLog, record: UploadRecord) -> None:
        self._store.abandon(record.key, record.state)
        state.end(record)

    def _later(self, action: Callable[..., None], *arguments: object) -> None:
        def act() -> None:
            try:
                action(*arguments)
            except SidecarError as error:
                log.warning(_LEFT, error.message)

        self._threads.submit(act)

    # --- saving -----------------------------------------------------------------------------

    def save(
        self,
        key: str,
        spool: SpoolFile,
        description: Description,
        condition: Condition | None = None,
    ) -> ObjectInfo:
        """Make ``key`` the spool file's content; returns the version the store confirmed.

        The old object stays whole until the new one is. What was sent when this fails need
        not be sent again. The answer's ``metadata`` is what the object has.

        Raises what the store raises, TooLarge for what no object of this store can hold, and
        Stale where something that only the store had is gone.
        """
        size_bytes = spool.size_bytes
        if size_bytes > self._store.limits.max_object_bytes:
            raise TooLarge(
                f"`{key}` has {size_bytes} bytes; an object of this store holds "
                f"{self._store.limits.max_object_bytes}"
            )
        upload_ = self._active.get(spool)
        if upload_ is not None and upload_.key != key:
            self.drop(spool)
            upload_ = None
        if upload_ is not None:
            try:
                return self._complete(key, spool, description, condition)
            except StoreProtocolError:
                if spool.missing:
                    raise
            log.warning("the upload of %r is lost, and begun anew", key)
            self.drop(spool)
        with spool.hold():
            if size_bytes <= spool.layout.size(1):
                content = self._content(spool, 0, size_bytes) if size_bytes else b""
                made = self._store.put(
                    key, content, description.metadata, condition, like=description.like
                )
                self._metrics.uploaded_bytes.inc(size_bytes)
                return made
            made_of_base = self._patch(key, spool, description)
            return made_of_base or self._complete(key, spool, description, condition)

    def _complete(
        self,
        key: str,
        spool: SpoolFile,
        description: Description,
        condition: Condition | None,
    ) -> ObjectInfo:
        """Send what is not sent, and make the object."""
        upload_ = self._sending_of(key, spool)
        upload_.wait()
        upload_.error = None
        done = self._metrics.uploaded_bytes.inc
        sent = upload_.sent
        for number in spool.parts():
            if number in sent:
                continue
            content = self._content(spool, *spool.span(number))
            if not isinstance(content, FileSlice):
                upload_.wait()  # of what is in memory, one part at a time
            upload_.submit(self._threads, number, content, description, done)
        upload_.wait()
        if upload_.error is not None:
            raise upload_.error
        made = upload_.complete(condition, len(spool.parts()), description.metadata)
        del self._active[spool]
        return made

    def _patch(self, key: str, spool: SpoolFile, description: Description) -> ObjectInfo | None:
        """Put the object together in the store; None where it must be sent whole."""
        base = spool.base
        if base is None or base.size_bytes == 0:  # nothing that could be copied
            return None
        begun: list[UploadRecord] = []
        sent_bytes: list[int] = []

        def content(offset: int, size_bytes: int) -> Content:
            sent_bytes.append(size_bytes)
            return self._content(spool, offset, size_bytes)

        revision = Revision(
            spool.size_bytes, list(spool.changed), content, spool.layout.size(1), self._run
        )
        try:
            made = self._store.patch(
                base,
                key,
                revision,
                description.metadata,
                lambda state: begun.append(spool.state.begin(key, state, resumable=False)),
                like=description.like,
            )
        except Stale:
            if spool.missing:
                raise
            made = None  # someone else's version is there: ours replaces it whole
        for record in begun:
            spool.state.end(record)
        if made is not None:
            self._metrics.uploaded_bytes.inc(sum(sent_bytes))
        return made

    def _content(self, spool: SpoolFile, offset: int, size_bytes: int) -> Content:
        """A range, to be sent; what only the store has of it is fetched."""
        if spool.missing.isdisjoint(spool.layout.covering(offset, size_bytes)):
            return spool.content(offset, size_bytes)
        base = spool.base
        if base is None:
            raise Stale("what was given up of the file is not in the store any more")
        return spool.read_whole(offset, size_bytes, functools.partial(self._fetch, base))

    def _run(self, actions: Sequence[Callable[[], object]]) -> None:
        """Run them in the uploader's threads; once none runs any more, raise what one raised."""
        futures = [self._threads.submit(action) for action in actions]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def _sending_of(self, key: str, spool: SpoolFile) -> ActiveUpload:
        upload_ = self._active.get(spool)
        if upload_ is None:
            upload_ = self._active[spool] = ActiveUpload(self._store, key, spool)
        return upload_
