"""What is known of a spool file beside its bytes, for whoever takes it over.

A file of lines beside the spool file, appended to and never read back by the process that
writes it. What makes a line untrue is done only once the next line is there: a part is
"unsent" before it is written to again, "missing" before its bytes are given up. A last line
that is torn says nothing, for what it would have allowed was not done.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.mounter.store.interface import ObjectInfo

SUFFIX = ".state"
_MOST_ATTEMPTS = 8


class Attempt(NamedTuple):
    """An object that was perhaps made of a spool file.

    Attributes:
        size_bytes: its length.
        metadata: one of these it has: what it was to have, or what its upload was begun with.
            There the file's time is in nanoseconds, which tells it from another writer's.
    """

    size_bytes: int
    metadata: Sequence[Mapping[str, str]]

    def made(self, found: ObjectInfo) -> bool:
        """Whether this is the object."""
        return found.size_bytes == self.size_bytes and dict(found.metadata or {}) in self.metadata


class UploadRecord:
    """Something in the store that must be completed or removed.

    Attributes:
        number: among those of one spool file.
        state: as :attr:`Upload.state`.
        parts: what was sent: number to (bytes, receipt).
        resumable: False for a patch: it is begun anew.
    """

    def __init__(self, number: int, key: str, state: Mapping[str, Any], resumable: bool) -> None:
        self.number = number
        self.key = key
        self.state = state
        self.resumable = resumable
        self.parts: dict[int, tuple[int, str]] = {}


class SpoolLog:
    """The lines of one spool file. Safe to use from any thread.

    Attributes:
        uploads: those that were begun and did not end, the oldest first.
        missing: parts whose bytes are not in the spool file.
        base: the object that has them.
        attributes_set: chmod, chown or utimensat while an upload is under way.
        exclusive: made with O_EXCL, and nothing was tried yet: what a successor finds later may be
            what its predecessor made.
        attempts: objects that were perhaps made since the file was saved, and nobody has heard;
            the latest last.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._next = 1
        self._exists = False
        self._gone = False
        self.uploads: dict[int, UploadRecord] = {}
        self.missing: set[int] = set()
        self.base: ObjectInfo | None = None
        self.attributes_set = False
        self.exclusive = False
        self.attempts: list[Attempt] = []

    @classmethod
    def read(cls, path: Path) -> SpoolLog:
        """What a process that ended wrote; nothing where it wrote none."""
        state = cls(path)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return state
        state._exists = True
        *lines, torn = content.split(b"\n")
        if torn:  # what is appended from now on is a line of its own
            os.truncate(path, len(content) - len(torn))
        for line in lines:
            try:
                kind, values = json.loads(line)
            except ValueError:
                break
            state._apply(kind, values)
        return state

    @classmethod
    def all_in(cls, directory: Path) -> Iterator[SpoolLog]:
        """Of every spool file that has one."""
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            yield cls.read(path)

    @property
    def path(self) -> Path:
        """Its file."""
        return self._path

    def begin(self, key: str, state: Mapping[str, Any], *, resumable: bool) -> UploadRecord:
        """Something was begun in the store."""
        with self._lock:
            number = self._next
            self._write("begin", [number, key, dict(state), resumable])
            return self.uploads[number]

    def end(self, record: UploadRecord) -> None:
        """It was completed or removed."""
        with self._lock:
            try:
                self._write("end", record.number)
            except OSError:  # a full disk; to remove what is gone already does no harm
                self._apply("end", record.number)
            if self._gone and not self.uploads:
                self._path.unlink(missing_ok=True)

    def sent(self, record: UploadRecord, part: int, size_bytes: int, receipt: str) -> None:
        """The store has a part as it is in the spool file."""
        with self._lock:
            self._write("sent", [record.number, part, size_bytes, receipt])

    def unsent(self, record: UploadRecord, part: int) -> None:
        """The part is about to be written to."""
        with self._lock:
            self._write("unsent", [record.number, part])

    def evict(self, parts: list[int]) -> None:
        """The bytes of parts are about to be given up."""
        with self._lock:
            self._write("missing", parts)

    def recall(self, part: int) -> None:
        """The bytes of a part are back."""
        with self._lock:
            self._write("here", part)

    def rebase(self, base: ObjectInfo) -> None:
        """From now on ``base`` has what is missing."""
        with self._lock:
            self._write("base", [base.key, base.size_bytes, base.mtime_s, base.version])

    def set_attributes(self) -> None:
        """Attributes were set that the upload under way does not carry."""
        if not self.attributes_set:
            with self._lock:
                self._write("attributes", True)

    def note_exclusive(self, exclusive: bool) -> None:
        """Whether a successor must replace no object when it saves the file for the first time."""
        if exclusive != self.exclusive:
            with self._lock, contextlib.suppress(OSError):  # a full disk must not fail a save
                self._write("exclusive", exclusive)

    def note_attempt(self, attempt: Attempt) -> None:
        """An object is about to be replaced: what a successor finds there may be this."""
        with self._lock, contextlib.suppress(OSError):  # a full disk must not fail a save
            self._write("attempt", [attempt.size_bytes, list(map(dict, attempt.metadata))])

    def saved(self) -> None:
        """The store has the file as it is, attributes included."""
        with self._lock:
            self.attempts, self.attributes_set = [], False
            if self._exists and not (self.uploads or self.missing):
                # Nothing is left to be known, and a log that is saved again and again would
                # make it longer and longer.
                self._path.unlink(missing_ok=True)
                self._exists = False
            elif self._exists:
                with contextlib.suppress(OSError):  # to set attributes again does no harm
                    self._write("saved", None)

    def discard(self) -> None:
        """The spool file is gone; what is still in the store is remembered until it ends."""
        with self._lock:
            self._gone = True
            if self._exists and not self.uploads:
                self._path.unlink(missing_ok=True)

    def _write(self, kind: str, values: Any) -> None:
        line = json.dumps([kind, values]).encode() + b"\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)  # sessions are secrets
        try:
            end = os.fstat(descriptor).st_size
            if os.write(descriptor, line) < len(line):  # a full disk
                os.ftruncate(descriptor, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        self._exists = True
        self._apply(kind, values)

    def _apply(self, kind: str, values: Any) -> None:
        if kind == "missing":
            self.missing.update(values)
        elif kind == "here":
            self.missing.discard(values)
        elif kind == "base":
            self.base = ObjectInfo(*values)
        elif kind == "attributes":
            self.attributes_set = values
        elif kind == "exclusive":
            self.exclusive = values
        elif kind == "attempt":
            self.attempts = [*self.attempts, Attempt(*values)][-_MOST_ATTEMPTS:]
        elif kind == "saved":
            self.attempts, self.attributes_set = [], False
        else:
            self._apply_to_uploads(kind, values)

    def _apply_to_uploads(self, kind: str, values: Any) -> None:
        if kind == "begin":
            number, key, state, resumable = values
            self.uploads[number] = UploadRecord(number, key, state, resumable)
            self._next = number + 1
        elif kind == "end":
            self.uploads.pop(values, None)
        elif kind == "sent":
            number, part, size_bytes, receipt = values
            if number in self.uploads:
                self.uploads[number].parts[part] = (size_bytes, receipt)
        elif kind == "unsent":
            number, part = values
            if number in self.uploads:
                self.uploads[number].parts.pop(part, None)
