"""Recovery: what a worker takes over from its predecessor, and requests that come again."""

from __future__ import annotations

import errno
import heapq
import logging
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

from sidecar import logs
from sidecar.errors import (
    AccessDenied,
    LoginRejected,
    NameInvalid,
    NameTooLong,
    NotFound,
    SidecarError,
    Stale,
    StateUnusable,
    StoreProtocolError,
    TooLarge,
    Unsupported,
)
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.content.open_files import OpenFiles
from sidecar.mounter.filesystem.directory_rename import DirectoryRename
from sidecar.mounter.filesystem.inodes.inode import ROOT, File, Link
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import (
    DIRECTORY_HANDLE,
    FILE_HANDLE,
    LOOKUP,
    LastNumbers,
    Record,
    RenameBegun,
)
from sidecar.mounter.filesystem.journal.replay import RecoveredState, ReplayedRequest, UnsavedFile
from sidecar.mounter.filesystem.open_directories import OpenDirectories
from sidecar.mounter.writing.spool import Spool, SpoolFile

log = logging.getLogger(__name__)

_HOPELESS = (
    *(AccessDenied, NameInvalid, NameTooLong, NotFound, Stale, StateUnusable),
    *(StoreProtocolError, TooLarge, Unsupported),
)
"""Errors that the next start would get again: the bucket was checked, and can be written."""
_MOST_VERSIONS = 10_000


class Recovery:
    """What one worker of a mount takes over, and leaves to the next one.

    A request is the number that the kernel gave it, without the RESEND bit.

    Attributes:
        begin_request: note that this thread serves this request from now on. What it hands out is
            written to the journal under the request.
        end_request: note that the request was answered.
    """

    def __init__(
        self,
        namespace: Namespace,
        files: OpenFiles,
        directories: OpenDirectories,
        renames: DirectoryRename,
        spool: Spool,
        journal: Journal,
        metrics: VolumeMetrics,
        threads: ThreadPoolExecutor,
        *,
        read_only: bool,
    ) -> None:
        self._namespace = namespace
        self._files = files
        self._directories = directories
        self._renames = renames
        self._spool = spool
        self._journal = journal
        self._metrics = metrics
        self._threads = threads
        self._read_only = read_only
        self._has_crashed = False
        # These are called for each request, so without a method of this class in between.
        self.begin_request = journal.begin_request
        self.end_request = journal.end_request

    # --- a run or a worker that ended, and the next one -----------------------------------------

    def begin(self) -> None:
        """From now on write what is handed out to the journal."""
        self._journal.begin(self.records)

    def records(self) -> list[Record]:
        """Everything that a successor must know. Takes no lock."""
        return [
            LastNumbers(
                self._namespace.inodes.last_number,
                self._files.last_number,
                self._directories.last_number,
            ),
            *self._namespace.inodes.records(),
            *self._files.records(),
            *self._renames.records(),
            *self._directories.records(),
        ]

    def finish_predecessor(self) -> list[str]:
        """Upload what an earlier run left in the spool, then :meth:`begin`. Returns the keys.

        Call it before anything is handed out: what this run writes is newer. Raises the store's
        errors; what is not saved by then stays in the spool for the next attempt.
        """
        try:
            state = self._read_journal()
        except StateUnusable as error:
            # It is not known which files those in the spool are, or they may not be saved. They are
            # set aside, also from later starts, and this run starts all the same.
            self._set_aside(error.what)
            self._journal.set_aside()
            saved = []
        else:
            saved = self._finish(state)
            if state.is_damaged:
                self._set_aside("the journal is damaged")
            self._files.contents.abandon_leftovers()
            self._spool.clear()
        self._spool.memory.sweep()
        self.begin()
        return saved

    def _read_journal(self) -> RecoveredState:
        state = RecoveredState.read(self._journal)
        if self._read_only and (state.unsaved() or state.renames):
            raise StateUnusable("the volume is read-only by now")
        return state

    def _finish(self, state: RecoveredState) -> list[str]:
        """Finish what an earlier run began; the keys of what was saved."""
        renames = []
        for begun in state.renames.values():
            try:
                self._renames.finish_predecessor(begun)
            except LoginRejected:
                raise
            except _HOPELESS as error:
                old, new = begun.old_key, begun.new_key
                what = "renaming a directory is not finished"
                logs.event(log, what, logging.ERROR, old=old, new=new, error=error)
                self._renames.in_flight.pop(begun.inode, None)
            else:
                renames.append(begun)
        saved = []
        for unsaved in state.unsaved():
            file = _renamed(unsaved, renames)
            try:
                if self._files.saver.salvage(file):
                    saved.append(file.key)
            except LoginRejected:
                raise
            except _HOPELESS as error:
                self._keep(file, error)
        return saved

    def _keep(self, file: UnsavedFile, error: SidecarError) -> None:
        """Set aside a file that no later attempt would save, so that it is in nobody's way."""
        if file.spool_name is None:
            logs.event(log, "attributes are lost", logging.ERROR, key=file.key, error=error)
            return
        logs.event(
            log,
            "not saved: its spool file is kept",
            logging.ERROR,
            key=file.key,
            path=str(self._spool.set_aside(file.spool_name)),
            error=error,
        )

    def _set_aside(self, why: str, but: Collection[str] = ()) -> None:
        kept = self._spool.set_all_aside(but)
        if kept or not but:
            log.warning(
                "what an earlier run left in the spool cannot be saved: %s; %d files kept in `%s`",
                why,
                len(kept),
                self._spool.path,
            )

    def restore(self, *, crashed: bool = False) -> None:
        """Take over the inodes and handles of a worker that died, then :meth:`begin`.

        Args:
            crashed: whether it ended by itself, and was not killed.

        Raises StateUnusable if there is no journal, or if it cannot be read.
        """
        self._has_crashed = crashed
        state = RecoveredState.read(self._journal)
        if ROOT not in state.inodes:
            # Every journal begins with it. The kernel holds numbers about which nothing is known.
            raise StateUnusable("there is no journal of the worker that died")
        inodes = self._namespace.inodes
        inodes.restore(state.inodes, state.last.inode, self._adopt)
        if state.is_damaged:
            adopted = [i.spool.name for i in inodes if isinstance(i, File) and i.spool is not None]
            self._set_aside("the journal is damaged", adopted)
        self._remember_versions()
        handles: dict[int, tuple[File, bool, int | None]] = {}
        for handle, opened in state.files.items():
            inode = inodes.find(opened.inode)
            if isinstance(inode, File):
                handles[handle] = (inode, opened.is_writable, opened.backing_id)
        self._spool.memory.sweep()
        self._files.restore(handles, state.last.file_handle)
        self._directories.restore(
            state.directories, state.listings, state.places, state.last.directory_handle
        )
        self._renames.in_flight = dict(state.renames)
        self._journal.inherit(state.requests)
        self.begin()

    def _remember_versions(self) -> None:
        """Remember the versions that are known: the predecessor may have made them just now.

        Listings may lag behind them. For others, a contradicting listing costs a HEAD.
        """
        if self._read_only:
            return
        known = (inode for inode in self._namespace.inodes if isinstance(inode, File | Link))
        versions = ((inode.remote.mtime_s, inode.id, inode) for inode in known if inode.remote)
        for _, _, inode in heapq.nlargest(_MOST_VERSIONS, versions):
            self._namespace.apply_version(inode)

    def _adopt(self, name: str) -> SpoolFile | None:
        """The spool file of a predecessor's inode; None if it cannot be used."""
        if self._read_only:  # no program has written anything here
            return None
        try:
            return self._spool.adopt(name)
        except FileNotFoundError:
            logs.event(log, "a file is lost: the spool has none", logging.ERROR, name=name)
        except StateUnusable as error:
            kept = self._spool.set_aside(name)
            what = "a file is lost: its spool file is kept"
            logs.event(log, what, logging.ERROR, path=str(kept), error=error)
        return None

    # --- requests that the kernel sends again -----------------------------------------------------

    def resent(self, request: int) -> ReplayedRequest:
        """Take a request that the kernel sent again because its worker died; what became of it.

        The answer of a request that has ended too many workers is EIO.
        """
        replayed = ReplayedRequest(self._journal.of_request(request))
        replayed.deaths += 1
        replayed.crashes += self._has_crashed
        self._journal.resent(request, replayed.deaths, replayed.crashes)
        if replayed.answer is None and replayed.is_hopeless:
            self._metrics.refused_requests.inc()
            log.error(
                "request %d has ended %d workers (%d by themselves) and is refused",
                request,
                replayed.deaths,
                replayed.crashes,
            )
            replayed.answer = errno.EIO, b""
        return replayed

    def revoke(self, request: int) -> None:
        """Release what was handed out for a request, because its answer never arrived."""
        for kind, number in ReplayedRequest(self._journal.of_request(request)).granted:
            self._journal.revoke(request, kind, number)
            if kind == LOOKUP:
                self._namespace.inodes.forget(number, 1)
            elif kind == FILE_HANDLE:
                self._files.release(number)
            elif kind == DIRECTORY_HANDLE:
                self._directories.release(number)

    def all_resent(self) -> None:
        """Note that the kernel has sent everything again: other requests are new."""
        self._journal.end_inherited()
        if self._renames.in_flight:
            self._threads.submit(self._renames.finish_all)

    def replied(self, request: int, reply: bytes) -> None:
        """Note that the request made its change. A successor that gets it again answers this."""
        self._journal.replied(request, 0, reply)


def _renamed(file: UnsavedFile, renames: Iterable[RenameBegun]) -> UnsavedFile:
    """The file under its new key, if a directory above it was renamed."""
    for begun in renames:
        if file.key.startswith(begun.old_key):
            file = file._replace(key=begun.new_key + file.key[len(begun.old_key) :])
    return file
