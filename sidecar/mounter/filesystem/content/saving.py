"""Saving a file: which object is made of its content, with what, and over which version.

close(2) and :mod:`.write_back` say when.
"""

from __future__ import annotations

import contextlib
import logging
import math
import stat
import time
from collections.abc import Mapping

from sidecar import logs
from sidecar.errors import (
    AlreadyExists,
    NotFound,
    SidecarError,
    Stale,
    StoreError,
)
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.content.contents import Contents
from sidecar.mounter.filesystem.inodes.attributes import from_metadata, merge_metadata
from sidecar.mounter.filesystem.inodes.inode import File
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.journal.replay import UnsavedFile
from sidecar.mounter.store.interface import Condition, ObjectInfo, Store
from sidecar.mounter.writing.active_upload import Description
from sidecar.mounter.writing.spool import Spool, SpoolFile
from sidecar.mounter.writing.spool_log import Attempt
from sidecar.mounter.writing.uploader import Uploader

log = logging.getLogger(__name__)


class Saver:
    """Makes objects of the files of one mount. Safe to use from any thread."""

    def __init__(
        self,
        store: Store,
        namespace: Namespace,
        contents: Contents,
        spool: Spool,
        uploader: Uploader,
        metrics: VolumeMetrics,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._contents = contents
        self._spool = spool
        self._uploader = uploader
        self._metrics = metrics

    def is_large(self, inode: File) -> bool:
        """Whether a file is sent in parts."""
        spool = inode.spool
        return spool is not None and spool.size_bytes > spool.layout.size(1)

    def save(self, inode: File) -> None:
        """Upload the spool file if the store lacks it. Raises TimeIsUp, the store's errors."""
        with inode.lock:
            spool = inode.spool
            if not inode.is_dirty or inode.parent is None:
                return
            if spool is None:
                self._save_attributes(inode)
                return
            try:
                inode.remote = self._upload(inode, spool)
            except AlreadyExists:
                self._yield_name(inode)
                raise
            except SidecarError:
                spool.failed = True
                raise
            spool.dirty = spool.failed = spool.exclusive = False
            spool.attempts.clear()
            spool.rebase(inode.remote)
            inode.saved_s = time.monotonic()
            inode.fresh_until_s = inode.saved_s + self._namespace.ttl_s
            # The journal comes first: a successor that knew only the old version, and no attempt
            # to replace it, would take the new one for another writer's.
            self._namespace.inodes.note(inode)
            spool.log.note_saved()
            self._namespace.apply_version(inode)
            self._contents.drop_if_unneeded(inode)

    def attempt(self, inode: File) -> SidecarError | None:
        """As :meth:`save`, while nobody changes keys above the file; the error that it raised."""
        try:
            with self._namespace.subtree_locks.shared(inode):
                self.save(inode)
        except SidecarError as error:
            return error
        return None

    def copy(self, inode: File, key: str) -> None:
        """Copy the object of a closed file to a key, with the file's present attributes.

        The key may be its own. Raises NotFound, Stale, the store's errors.
        """
        remote = inode.remote
        assert remote is not None
        metadata = None
        if inode.attributes_set_s is not None or key == remote.key:
            metadata = self.describe(inode).metadata
        inode.remote = self._store.copy(remote.key, key, known=inode.remote, metadata=metadata)
        inode.attributes_set_s = None

    def _save_attributes(self, inode: File) -> None:
        """Give the object of a closed file the attributes that were set since it was made."""
        try:
            self.copy(inode, inode.key)
            self._namespace.apply_version(inode)
        except (NotFound, Stale):  # another writer's object has the name, or none does
            inode.attributes_set_s = None
            self._namespace.invalidate(inode)
        except SidecarError:
            inode.attributes_set_s = math.inf  # tried again when everything is saved
            raise
        self._namespace.inodes.note(inode)
        self._namespace.inodes.drop_unused(inode)

    def complete_upload(self, inode: File) -> bool:
        """Make an object of an upload in flight if only the upload has some parts of the file.

        An object can be read, and copied to another name; an upload cannot. Returns whether that
        was necessary. Raises the store's errors.
        """
        with inode.lock:
            spool = inode.spool
            if (
                spool is None
                or inode.detached
                or not spool.missing
                or not self._uploader.is_in_flight(spool)
            ):
                return False
            self.save(inode)
            return True

    def send_full_parts(self, inode: File, spool: SpoolFile) -> None:
        """Begin to send parts that are written completely. The caller holds the file's lock."""
        if self._uploader.is_hurried:
            return  # it would delay a file that may be whole in time
        with contextlib.suppress(StoreError):  # saving the file sends them, or raises the error
            self._uploader.send_full_parts(inode.key, spool, self.describe(inode))

    def salvage(self, unsaved: UnsavedFile) -> bool:
        """Upload what a run that ended left in the spool. Raises the store's errors.

        Raises StateUnusable for a file whose log cannot be used, so that it is not known which of
        its bytes are there. False if there is no such file, or if only attributes were not saved
        and the object is another one by now.
        """
        if unsaved.spool_name is None:
            return self._salvage_attributes(unsaved)
        try:
            spool = self._spool.adopt(unsaved.spool_name)
        except FileNotFoundError:  # it was saved, and the run ended before it could note that
            return False
        self._uploader.adopt(spool)
        replaced = self._head_if_there(unsaved.key)
        description = self._description(unsaved.attributes, replaced)
        metadata = description.metadata
        made = self._uploader.save(unsaved.key, spool, description)
        if spool.log.attributes_set and dict(made.metadata or {}) != metadata:
            self._store.copy(unsaved.key, unsaved.key, known=made, metadata=metadata)
        spool.discard()
        return True

    def _salvage_attributes(self, unsaved: UnsavedFile) -> bool:
        found = self._head_if_there(unsaved.key)
        if found is None or unsaved.version is None or found.version != unsaved.version[3]:
            return False
        metadata = self._description(unsaved.attributes, found).metadata
        self._store.copy(unsaved.key, unsaved.key, known=found, metadata=metadata)
        return True

    # --- what an object is made with ------------------------------------------------------------

    def describe(self, inode: File) -> Description:
        """What the next version of a file is made with. Other tools' metadata are kept.

        Raises the store's errors: a successor asks again for what its predecessor knew, as
        :meth:`InodeAttributes.load` does when a file is opened.
        """
        remote = inode.remote
        if remote is not None and (remote.metadata is None or remote.properties is None):
            inode.remote = remote = self._completed(remote)
        return self._description(inode.attributes, remote)

    def _description(self, attributes: Mapping[str, int], like: ObjectInfo | None) -> Description:
        """The description of a file with these attributes, in place of ``like``."""
        most = self._store.limits.max_metadata_bytes
        kept = like.metadata if like is not None else None
        return Description(merge_metadata(kept, attributes, stat.S_IFREG, most), like)

    def _completed(self, remote: ObjectInfo) -> ObjectInfo:
        """The object with metadata and properties: the one that has the name and is replaced."""
        found = self._head_if_there(remote.key)
        if found is None:
            return remote._replace(metadata={}, properties={})
        return remote._replace(metadata=found.metadata, properties=found.properties)

    def _head_if_there(self, key: str) -> ObjectInfo | None:
        try:
            return self._store.head(key)
        except NotFound:
            return None

    # --- over which version ---------------------------------------------------------------------

    def _upload(self, inode: File, spool: SpoolFile) -> ObjectInfo:
        """Send a file, on condition that nobody else has changed the object; or over it.

        If two writers save, the last one wins, whole. The other writer's version is logged.
        """
        description = self.describe(inode)
        metadata = description.metadata
        self._contents.base(inode, spool)
        condition = None
        if spool.exclusive:
            condition = Condition(absent=True)
            spool.log.note_exclusive(False)
        elif inode.remote is not None and inode.remote.key == inode.key:
            # After a rename its version is still that of the old name.
            condition = Condition(version=inode.remote.version)
        before = list(spool.attempts)
        in_flight = self._uploader.metadata_in_flight(spool)
        attempt = Attempt(spool.size_bytes, [metadata, *in_flight])
        spool.attempts.append(attempt)
        if condition is not None:
            spool.log.note_attempt(attempt)
        try:
            made = self._uploader.save(inode.key, spool, description, condition)
        except (AlreadyExists, Stale) as error:
            found = self._head_if_answered(inode.key)
            # It may be of an earlier attempt, or of this one, if their answers were lost. In this
            # order: the metadata of an upload's begin are in both, and the file may have changed.
            if found is not None and any(earlier.made(found) for earlier in before):
                ours = Condition(version=found.version)
                spool.update_base(found)  # it has what is missing here
                made = self._uploader.save(inode.key, spool, description, ours)
            elif found is not None and attempt.made(found):
                made = found
            elif isinstance(error, AlreadyExists) or spool.missing or inode.remote is None:
                raise  # the object to overwrite is another version than this one began as
            else:
                self._metrics.overwritten_versions.inc()
                logs.event(
                    log, "another writer's version is overwritten", logging.WARNING, key=inode.key
                )
                if found is not None:
                    description = self._description(inode.attributes, found)
                    metadata = description.metadata
                    spool.attempts.append(Attempt(spool.size_bytes, [metadata]))
                made = self._uploader.save(inode.key, spool, description)
        if made.metadata is None or dict(made.metadata) == metadata:
            return made
        if spool.log.attributes_set:
            return self._store.copy(inode.key, inode.key, known=made, metadata=metadata)
        # The object's time is when its upload began. The file takes that time.
        inode.attributes = {**inode.attributes, **from_metadata(made.metadata)}
        return made

    def _head_if_answered(self, key: str) -> ObjectInfo | None:
        """The object that is there now; None also if the store does not say."""
        try:
            return self._store.head(key)
        except SidecarError:
            return None

    def _yield_name(self, inode: File) -> None:
        """Leave the name to another writer, who made the object that was to be made here."""
        parent = inode.parent
        assert parent is not None
        logs.event(log, "another writer made it first", logging.WARNING, key=inode.key)
        theirs = self._store.head(inode.key)
        self._namespace.apply_change(parent, inode.name, theirs)
        self._namespace.inodes.detach(inode)
        self._contents.release_unlinked(inode)
