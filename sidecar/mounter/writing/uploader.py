"""From the spool to the store: how the bytes of a spool file become an object.

A new file is sent part by part while it is written; the rest is sent when it is saved. If the store
has an older version of a file, the new one is put together there, of ranges of that version and of
the ranges that changed. The file system decides which file is saved, and when.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from sidecar.errors import (
    AccessDenied,
    ObjectArchived,
    SidecarError,
    Stale,
    StoreProtocolError,
    TooLarge,
)
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.store.interface import (
    Condition,
    Content,
    Fetch,
    FileSlice,
    ObjectInfo,
    Revision,
    Store,
)
from sidecar.mounter.writing.active_upload import (
    ActiveUpload,
    Description,
    wait_until,
    warn_of_leftover,
)
from sidecar.mounter.writing.part_threads import PartThreads
from sidecar.mounter.writing.spool import SpoolFile
from sidecar.mounter.writing.spool_log import SpoolLog, UploadRecord
from sidecar.mounter.writing.turns import Turns

log = logging.getLogger(__name__)

_REFUSALS = (StoreProtocolError, AccessDenied, ObjectArchived)
"""Errors of a copy that may be due to the copy alone. If not, sending all of the file meets the
same error."""


class Uploader:
    """Sends spool files. Calls for one spool file must not overlap: the caller holds a lock.

    Args:
        threads: for copies inside the store, and for abandoning uploads. Parts have other threads.
        fetch: gets back what only the store has.
    """

    def __init__(
        self, store: Store, threads: ThreadPoolExecutor, fetch: Fetch, metrics: VolumeMetrics
    ) -> None:
        self._store = store
        self._threads = threads
        self._part_threads = PartThreads(metrics.parts_sent_at_once.set)
        self._fetch = fetch
        self._metrics = metrics
        self._active: dict[SpoolFile, ActiveUpload] = {}
        self._turns = Turns()

    @property
    def is_hurried(self) -> bool:
        """Whether time is short."""
        return self._turns.have_begun

    def hurry(self, deadline_s: float) -> None:
        """Let parts wait for the turn of their file, because time is short.

        This holds for files that are being saved already, too.

        Args:
            deadline_s: when :meth:`save` gives up (monotonic).
        """
        self._turns.begin(deadline_s)
        for upload in list(self._active.values()):
            upload.withdraw()

    # --- while a file is written ----------------------------------------------------------

    def has_full_parts(self, spool: SpoolFile) -> bool:
        """Whether a new file has parts that are written completely and not submitted yet."""
        if spool.base is not None:
            return False  # the store may have most of it already, so it is sent when it is saved
        full = spool.layout.number(spool.contiguous_bytes) - 1
        upload = self._active.get(spool)
        if upload is None:
            return full > 0
        return upload.last_submitted < full and upload.error is None

    def send_full_parts(self, key: str, spool: SpoolFile, description: Description) -> None:
        """Submit the parts of a new file that are written completely."""
        upload = self._upload_of(key, spool)
        if upload.key != key:
            return  # the file was renamed; the upload begins anew when it is saved
        full = spool.layout.number(spool.contiguous_bytes) - 1
        done = self._metrics.uploaded_bytes.inc
        for number in range(upload.last_submitted + 1, full + 1):
            with spool.hold():
                content = spool.content(*spool.span(number))
                upload.submit(self._part_threads, number, content, description, done)
        upload.last_submitted = full

    def invalidate(self, spool: SpoolFile, numbers: Collection[int]) -> None:
        """Note that parts are about to change."""
        upload = self._active.get(spool)
        if upload is not None:
            upload.invalidate(numbers)

    def must_restart(self, spool: SpoolFile, numbers: Collection[int]) -> bool:
        """Whether parts that are about to change cannot be sent again within this upload."""
        upload = self._active.get(spool)
        return upload is not None and upload.cannot_replace(numbers)

    def is_in_flight(self, spool: SpoolFile) -> bool:
        """Whether an upload was begun and has not become an object."""
        return spool in self._active

    def metadata_in_flight(self, spool: SpoolFile) -> list[Mapping[str, str]]:
        """The metadata that uploads in flight were begun with. Their object may have it."""
        found = [upload.metadata for upload in list(spool.log.uploads.values())]
        return [metadata for metadata in found if metadata is not None]

    def sent_parts(self, spool: SpoolFile) -> int:
        """How many parts of an upload in flight the store has."""
        upload = self._active.get(spool)
        return len(upload.sent) if upload is not None else 0

    def is_full(self) -> bool:
        """Whether nearly as many parts of all files are in flight as make it faster."""
        is_busy = any(upload.is_busy() for upload in list(self._active.values()))
        return is_busy and not self._part_threads.are_idle

    def is_busy(self, spool: SpoolFile) -> bool:
        """Whether parts are in flight."""
        upload = self._active.get(spool)
        return upload is not None and upload.is_busy()

    def evictable(self, spool: SpoolFile) -> list[int]:
        """Parts that the store has, except at the end, where more may come."""
        upload = self._active.get(spool)
        there = set(upload.lasting) if upload is not None else set()
        if spool.base is not None:
            there.update(number for number in spool.parts() if spool.is_unchanged(number))
        return sorted(there.intersection(spool.parts()[:-1]) - spool.missing)

    # --- taking over, giving up -----------------------------------------------------------

    def adopt(self, spool: SpoolFile) -> None:
        """Go on with the upload of a process that ended."""
        begun = list(spool.log.uploads.values())
        if begun and begun[-1].resumable:
            newest = begun.pop()
            upload = ActiveUpload(self._store, newest.key, spool.log)
            try:
                upload.resume(newest, spool.parts())
            except StoreProtocolError as error:
                log.warning("the upload of %r is lost, and begun anew: %s", newest.key, error)
                upload.close()
            else:
                self._active[spool] = upload
        for record in begun:
            self._submit(self._abandon, spool.log, record)

    def abandon(self, logs: Iterable[SpoolLog]) -> None:
        """Remove leftovers of processes that ended from the store, in other threads."""
        for spool_log in logs:
            for record in list(spool_log.uploads.values()):
                self._submit(self._abandon, spool_log, record)
            spool_log.discard()

    def drop(self, spool: SpoolFile) -> None:
        """Abort an upload in flight, in another thread; the file may go on or be discarded."""
        upload = self._active.pop(spool, None)
        if upload is not None:
            self._submit(upload.abort)

    def _abandon(self, spool_log: SpoolLog, record: UploadRecord) -> None:
        try:
            self._store.abandon(record.key, record.state)
        except LookupError:
            raise StoreProtocolError(f"`{record.key}`: no upload is of this store") from None
        spool_log.note_ended(record)

    def _submit(self, action: Callable[..., None], *arguments: object) -> None:
        def act() -> None:
            try:
                action(*arguments)
            except SidecarError as error:
                warn_of_leftover(error)

        self._threads.submit(act)

    # --- saving -----------------------------------------------------------------------------

    def save(
        self,
        key: str,
        spool: SpoolFile,
        description: Description,
        condition: Condition | None = None,
    ) -> ObjectInfo:
        """Make ``key`` the spool file's content; returns the version that the store confirmed.

        The old object stays whole until the new one is. If this fails, parts that were sent need
        not be sent again. ``metadata`` of the result is what the object has.

        Raises what the store raises, TooLarge if the store takes no such object, Stale if something
        that only the store had is gone, and TimeIsUp (:meth:`hurry`).
        """
        size_bytes = spool.size_bytes
        if size_bytes > self._store.limits.max_object_bytes:
            raise TooLarge(
                f"`{key}` has {size_bytes} bytes; an object of this store holds "
                f"{self._store.limits.max_object_bytes}"
            )
        upload = self._active.get(spool)
        if upload is not None and upload.key != key:
            self.drop(spool)
            upload = None
        if upload is not None:
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
            with self._turns.turn(size_bytes):
                made_of_base = self._patch(key, spool, description)
            return made_of_base or self._complete(key, spool, description, condition)

    def _complete(
        self,
        key: str,
        spool: SpoolFile,
        description: Description,
        condition: Condition | None,
    ) -> ObjectInfo:
        """Send the parts that are not sent, and make the object."""
        upload = self._upload_of(key, spool)
        with self._turns.turn(spool.size_bytes):
            upload.wait(self._turns.deadline_s)
        upload.error = None
        done = self._metrics.uploaded_bytes.inc
        # Again, if parts were withdrawn meanwhile: an object of the other parts would be taken for
        # the file.
        while unsent := sorted(set(spool.parts()) - upload.sent):
            with self._turns.turn(spool.size_bytes):
                for number in unsent:
                    with spool.hold():
                        content = self._content(spool, *spool.span(number))
                        if not isinstance(content, FileSlice):
                            upload.wait(self._turns.deadline_s)  # one such part at a time
                        upload.submit(self._part_threads, number, content, description, done)
                upload.wait(self._turns.deadline_s)
            if upload.error is not None:
                raise upload.error
        made = upload.complete(condition, len(spool.parts()), description.metadata)
        del self._active[spool]
        return made

    def _patch(self, key: str, spool: SpoolFile, description: Description) -> ObjectInfo | None:
        """Put the object together in the store; None if all of it must be sent."""
        base = spool.base
        if base is None or base.size_bytes == 0:  # there is nothing to copy
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
                lambda state: begun.append(spool.log.note_begun(key, state, resumable=False)),
                like=description.like,
            )
        except Stale:
            if spool.missing:
                raise
            made = None  # another writer's version is there, and is replaced as a whole
        except _REFUSALS as error:
            log.warning("%r is sent whole: the store makes nothing of what it has: %s", key, error)
            made = None
        for record in begun:
            spool.log.note_ended(record)
        if made is not None:
            self._metrics.uploaded_bytes.inc(sum(sent_bytes))
        return made

    def _content(self, spool: SpoolFile, offset: int, size_bytes: int) -> Content:
        """A range to send. Parts of it that only the store has are fetched."""
        if spool.missing.isdisjoint(spool.layout.covering(offset, size_bytes)):
            return spool.content(offset, size_bytes)
        base = spool.base
        if base is None:
            raise Stale("what was given up of the file is not in the store any more")
        return spool.read_through(offset, size_bytes, functools.partial(self._fetch, base))

    def _run(self, actions: Sequence[Callable[[], object]]) -> None:
        """Run all in the uploader's threads. When none is running, raise what one raised."""
        futures = [self._threads.submit(action) for action in actions]
        try:
            for future in futures:
                wait_until([future], self._turns.deadline_s)
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def _upload_of(self, key: str, spool: SpoolFile) -> ActiveUpload:
        """The upload in flight of a spool file, or a new one to ``key``."""
        upload = self._active.get(spool)
        if upload is None:
            upload = self._active[spool] = ActiveUpload(self._store, key, spool.log)
        return upload
