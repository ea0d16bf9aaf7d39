"""One multipart upload of one spool file, from the first part to the object.

:mod:`.uploader` says which parts are sent, and when.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

from sidecar.errors import SidecarError, SpoolFull, StoreProtocolError, TimeIsUp
from sidecar.mounter.store.interface import (
    Condition,
    Content,
    FileSlice,
    ObjectInfo,
    Store,
    Upload,
)
from sidecar.mounter.writing.part_threads import PartThreads
from sidecar.mounter.writing.spool_log import SentPart, SpoolLog, UploadRecord

log = logging.getLogger(__name__)


class Description(NamedTuple):
    """What an object is made with beside its content.

    Attributes:
        metadata: all of its metadata.
        like: the object whose properties it gets; None for a new file.
    """

    metadata: Mapping[str, str]
    like: ObjectInfo | None = None


class ActiveUpload:
    """One multipart upload of one spool file. Threads of the uploader send its parts.

    Attributes:
        key: of the object that the upload will make.
        last_submitted: parts up to this one were submitted while the file was written; 0: none.
        error: why a part could not be sent; it is sent again when the file is saved.
    """

    def __init__(self, store: Store, key: str, spool_log: SpoolLog) -> None:
        self.key = key
        self.last_submitted = 0
        self.error: SidecarError | None = None
        self._store = store
        self._log = spool_log
        # Its own, by device and inode: the file may be discarded while a part is in flight.
        self._descriptors: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()
        self._beginning = threading.Lock()
        self._upload: Upload | None = None
        self._record: UploadRecord | None = None
        self._unanswered: UploadRecord | None = None  # a request to begin the upload
        self._in_flight: dict[int, Future[None]] = {}
        self._invalidated: set[int] = set()
        self._unconfirmed = range(0)

    def resume(self, record: UploadRecord, parts: range) -> None:
        """Go on with an upload that a process which ended began.

        Args:
            parts: the parts that the file has by now; no others can have been sent.

        Raises StoreProtocolError if the record cannot be of an upload of this store.
        """
        self._record = record
        try:
            self._upload = self._store.resume_upload(self.key, record.state, record.parts)
        except LookupError:
            raise StoreProtocolError(f"`{self.key}`: no upload is of this store") from None
        self.last_submitted = max(record.parts, default=0)
        if self._upload.ordered_parts:
            # The store may have more than the log, which threads write in any order.
            in_order = itertools.takewhile(record.parts.__contains__, itertools.count(1))
            self._unconfirmed = range(len(list(in_order)) + 1, parts.stop)
            for number in [one for one in record.parts if one in self._unconfirmed]:
                self._log.note_unsent(record, number)

    @property
    def sent(self) -> frozenset[int]:
        """The parts that the store has as they are."""
        with self._lock:
            return frozenset(self._record.parts) if self._record is not None else frozenset()

    @property
    def lasting(self) -> frozenset[int]:
        """The part of :attr:`sent` that a successor can rely on, too (:meth:`resume`)."""
        sent = self.sent
        if self._upload is None or not self._upload.ordered_parts:
            return sent
        return frozenset(itertools.takewhile(sent.__contains__, itertools.count(1)))

    def submit(
        self,
        threads: PartThreads,
        number: int,
        content: Content,
        description: Description,
        done: Callable[[int], None],
    ) -> None:
        """Have ``threads`` send a part, unless it is sent or in flight. Raises OSError.

        Args:
            content: of the part. Its file is held until this returns.
            description: for the object, if this begins the upload.
            done: called with the number of bytes once they are sent.
        """
        with self._lock:
            if number in self._in_flight or (self._record and number in self._record.parts):
                return
            if isinstance(content, FileSlice):
                content = FileSlice(self._own(content.fd), content.offset, content.size_bytes)
            self._invalidated.discard(number)
            self._in_flight[number] = threads.submit(
                functools.partial(self._send, number, content, description, done)
            )

    def is_busy(self) -> bool:
        """Whether parts are in flight."""
        with self._lock:
            return bool(self._in_flight)

    def cannot_replace(self, numbers: Iterable[int]) -> bool:
        """Whether the store has, or may have, one of the parts and does not take it again.

        Whether the store takes parts again is not known before it has begun the upload.
        """
        with self._lock:
            if self._upload is not None and not self._upload.ordered_parts:
                return False
            sent = self._record.parts if self._record is not None else ()
            return any(
                number in sent or number in self._in_flight or number in self._unconfirmed
                for number in numbers
            )

    def invalidate(self, numbers: Iterable[int]) -> None:
        """Parts are about to change: if they were sent, they must be sent again."""
        with self._lock:
            for number in numbers:
                if number in self._in_flight:
                    self._invalidated.add(number)
                if self._record is not None and number in self._record.parts:
                    self._log.note_unsent(self._record, number)

    def withdraw(self) -> None:
        """Take back submitted parts that no thread sends yet."""
        with self._lock:
            for number, future in list(self._in_flight.items()):
                if future.cancel():
                    del self._in_flight[number]

    def wait(self, deadline_s: float = math.inf) -> None:
        """Wait until no part is in flight, whether they were sent or not.

        Raises TimeIsUp at ``deadline_s`` (monotonic); what a thread is sending then goes on.
        """
        while True:
            with self._lock:
                pending = list(self._in_flight.values())
            if not pending:
                return
            try:
                wait_until(pending, deadline_s)
            except TimeIsUp:
                self.withdraw()
                raise
            with self._lock:
                for number, future in list(self._in_flight.items()):
                    if future.cancelled():
                        del self._in_flight[number]

    def complete(
        self, condition: Condition | None, count: int, metadata: Mapping[str, str]
    ) -> ObjectInfo:
        """Make the object of the first ``count`` parts, all of which are sent."""
        assert self._upload is not None
        assert self._record is not None
        made = self._upload.complete(condition, parts=count, metadata=metadata)
        self._log.note_ended(self._record)
        self.close()
        return made

    def close(self) -> None:
        """Forget the file: no part is in flight, and none will be."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def abort(self) -> None:
        """Remove everything from the store. Raises what the store raises."""
        with self._lock:
            for future in self._in_flight.values():
                future.cancel()
        self.wait()
        self.close()
        self._abandon_unanswered()
        if self._upload is not None and self._record is not None:
            self._upload.abort()
            self._log.note_ended(self._record)

    def _send(
        self,
        number: int,
        content: Content,
        description: Description,
        done: Callable[[int], None],
    ) -> int:
        try:
            upload = self._begin(description)
            receipt = upload.put_part(number, content)
            done(len(content))
            with self._lock:
                if self._record is not None and number not in self._invalidated:
                    self._log.note_sent(self._record, number, SentPart(len(content), receipt))
            return len(content)
        except SidecarError as error:
            self.error = error
        except OSError as error:
            self.error = SpoolFull(f"the spool's disk: {error.strerror}")
        finally:
            with self._lock:
                del self._in_flight[number]
        return 0

    def _own(self, descriptor: int) -> int:
        found = os.fstat(descriptor)
        file = (found.st_dev, found.st_ino)
        if file not in self._descriptors:
            self._descriptors[file] = os.dup(descriptor)
        return self._descriptors[file]

    def _begin(self, description: Description) -> Upload:
        with self._beginning:
            if self._upload is None:
                try:
                    self._abandon_unanswered()
                except SidecarError as error:
                    warn_of_leftover(error)
                since = {"since_s": time.time()}
                self._unanswered = self._log.note_begun(self.key, since, resumable=False)
                upload = self._store.start_upload(
                    self.key, description.metadata, like=description.like
                )
                try:
                    record = self._log.note_begun(self.key, upload.state, resumable=True)
                except OSError:
                    upload.abort()  # nothing else would ever remove it
                    raise
                with self._lock:
                    self._upload, self._record = upload, record
                self._log.note_ended(self._unanswered)
                self._unanswered = None
            return self._upload

    def _abandon_unanswered(self) -> None:
        """Remove what a request whose answer never came may have begun."""
        if self._unanswered is not None:
            self._store.abandon(self._unanswered.key, self._unanswered.state)
            self._log.note_ended(self._unanswered)
            self._unanswered = None


def wait_until(futures: Collection[Future[Any]], deadline_s: float) -> None:
    """Wait until all are done. Raises TimeIsUp at ``deadline_s`` (monotonic)."""
    left_s = None if deadline_s == math.inf else max(0.0, deadline_s - time.monotonic())
    if wait(futures, left_s).not_done:
        raise TimeIsUp("the pod ends before it can be saved")


def warn_of_leftover(error: SidecarError) -> None:
    """Log that something could not be removed. The spool log keeps it for the next start."""
    log.warning("an upload may be left in the store: %s", error.message)
