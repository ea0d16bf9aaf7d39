"""The log of one spool file: what a successor must know beside its bytes.

The file begins with magic and version. A frame of JSON follows for each record, ``[tag, values]``.
The process that writes the log appends to it and never reads it back. An act that makes a record
untrue comes after the next record: a part is "unsent" before it is written to again, and "missing"
before its bytes are given up. So a torn last record loses nothing: its act was not done. Any other
damage makes the log unusable, since it no longer says which bytes are there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypedDict, cast

import msgspec

from sidecar.errors import StateUnusable
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.frames import Damage, frame, read_frames
from sidecar.mounter.writing.stored_values import Key, Number, PartNumber, Seconds

log = logging.getLogger(__name__)

SUFFIX = ".state"
_HEADER = b"msspol01"
_MOST_BYTES = 64 * 1024 * 1024
_MOST_ATTEMPTS = 8


def log_name(spool_name: str) -> str:
    """The name of the log of a spool file."""
    return spool_name.rpartition(".")[0] + SUFFIX


class Attempt(NamedTuple):
    """An object that may have been made of a spool file: the answer never came.

    Attributes:
        size_bytes: its length.
        metadata: the object has one of these: what was asked for, or what its upload began with.
            Each holds the file's time in nanoseconds, which no other writer's object has.
    """

    size_bytes: int
    metadata: Sequence[Mapping[str, str]]

    def made(self, found: ObjectInfo) -> bool:
        """Whether ``found`` is this object."""
        return found.size_bytes == self.size_bytes and dict(found.metadata or {}) in self.metadata


class SentPart(NamedTuple):
    """A part that the store has, and its receipt."""

    size_bytes: int
    receipt: str


@dataclass(slots=True, eq=False)
class UploadRecord:
    """Something in the store that must be completed or removed.

    Attributes:
        number: its number within one spool file's log.
        state: as :attr:`Upload.state`.
        resumable: False for a patch, which is begun anew.
        parts: the parts that were sent, by part number.
    """

    number: int
    key: str
    state: Mapping[str, Any]
    resumable: bool
    parts: dict[int, SentPart] = field(default_factory=dict)

    @property
    def metadata(self) -> Mapping[str, str] | None:
        """What the upload was begun with, if the store keeps that in ``state``."""
        return self.state.get("metadata")


class SpoolLog:
    """The log of one spool file. Safe to use from any thread.

    Every ``note_`` method appends a record, and raises OSError if that fails, unless its docstring
    says that it does not.

    Attributes:
        uploads: those that were begun and have not ended, by number, the oldest first.
        missing: parts whose bytes are not in the spool file.
        in_memory: parts whose bytes are in process 1's memory, and not in the spool file.
        base: the object that has the missing parts.
        attributes_set: attributes were set while an upload was in flight.
        exclusive: made with O_EXCL, and no save was tried yet. After that, an object that a
            successor finds may be its predecessor's.
        attempts: objects that may have been made since the file was last saved, the latest last.
    """

    def __init__(self, directory: StateDirectory, name: str) -> None:
        self._directory = directory
        self._name = name
        self.uploads: dict[int, UploadRecord] = {}
        self.missing: set[int] = set()
        self.in_memory: set[int] = set()
        self.base: ObjectInfo | None = None
        self.attributes_set = False
        self.exclusive = False
        self.attempts: list[Attempt] = []
        self._lock = threading.Lock()
        self._last_upload = 0
        self._exists = False
        self._is_discarded = False

    @classmethod
    def read(cls, directory: StateDirectory, name: str) -> SpoolLog:
        """The log of a process that ended; empty if it left none.

        A torn last record is cut off. Raises StateUnusable for any other record that makes no
        sense, and for another format.
        """
        found = cls(directory, name)
        try:
            descriptor = directory.open_file(name, os.O_RDWR)
        except FileNotFoundError:
            return found
        found._exists = True
        with open(descriptor, "r+b") as file:
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes > _MOST_BYTES:
                raise found._unusable(f"{size_bytes} bytes are more than a log has")
            header = file.read(len(_HEADER))
            if header == _HEADER:
                found._read_frames(file, size_bytes)
            elif _HEADER.startswith(header):  # torn, or not written yet
                found._exists = False
                directory.remove(name)
            else:
                raise found._unusable(f"it begins with {header!r}; known is {_HEADER!r}")
        return found

    def _read_frames(self, file: BinaryIO, size_bytes: int) -> None:
        for one in read_frames(file, size_bytes):
            if not isinstance(one, Damage):
                offset, payload = one
                self._apply(payload, offset)
            elif one.is_end:  # cut off, so that the next record begins cleanly
                log.warning("`%s`: its last record is torn, and ignored", self._path)
                os.ftruncate(file.fileno(), one.offset)
            else:
                raise self._unusable(f"{one.size_bytes} bytes at byte {one.offset}: {one.why}")

    def _apply(self, content: bytes, offset: int) -> None:
        try:
            record = _decode(content)
        except (LookupError, ValueError, RecursionError):
            raise self._unusable(f"the record at byte {offset} makes no sense") from None
        record.apply(self)

    def _unusable(self, why: str) -> StateUnusable:
        return StateUnusable(f"`{self._path}`: {why}")

    @property
    def _path(self) -> Path:
        return self._directory.path / self._name

    @classmethod
    def all_in(cls, directory: StateDirectory, but: Collection[str] = ()) -> Iterator[SpoolLog]:
        """The logs of a directory, except some. A log that cannot be used is left alone."""
        for name in directory.names(SUFFIX):
            if name not in but:
                try:
                    yield cls.read(directory, name)
                except StateUnusable as error:
                    log.warning("uploads may be left in the store: %s", error.what)

    def note_begun(self, key: str, state: Mapping[str, Any], *, resumable: bool) -> UploadRecord:
        """Note that something was begun in the store."""
        with self._lock:
            number = self._last_upload + 1
            self._append(_Begun(number, key, cast("_State", dict(state)), resumable))
            return self.uploads[number]

    def note_ended(self, upload: UploadRecord) -> None:
        """Note that it was completed or removed. Never raises OSError."""
        ended = _Ended(upload.number)
        with self._lock:
            try:
                self._append(ended)
            except OSError:  # removing it once more does no harm
                ended.apply(self)
            if self._is_discarded and not self.uploads:
                self._directory.remove(self._name)

    def note_sent(self, upload: UploadRecord, part: int, sent: SentPart) -> None:
        """Note that the store has a part as it is in the spool file."""
        with self._lock:
            self._append(_Sent(upload.number, part, *sent))

    def note_unsent(self, upload: UploadRecord, part: int) -> None:
        """Note that the part is about to be written to."""
        with self._lock:
            self._append(_Unsent(upload.number, part))

    def note_missing(self, parts: list[int]) -> None:
        """Note that the bytes of parts are about to be given up."""
        with self._lock:
            self._append(_Missing(parts))

    def note_in_memory(self, part: int) -> None:
        """Note that the bytes of a part are about to be written to memory."""
        with self._lock:
            self._append(_InMemory(part))

    def note_present(self, part: int) -> None:
        """Note that the bytes of a part, as far as there are any, are in the spool file."""
        with self._lock:
            self._append(_Present(part))

    def note_copied(self, part: int) -> None:
        """Note that the spool file has a part's bytes, too, unless it was given up meanwhile."""
        with self._lock:
            if part in self.in_memory:
                self._append(_Present(part))

    def note_base(self, base: ObjectInfo) -> None:
        """Note that from now on ``base`` has the missing parts."""
        with self._lock:
            self._append(_Base(*base.bare))

    def note_attributes_set(self) -> None:
        """Note that attributes were set that the upload in flight does not carry."""
        if not self.attributes_set:
            with self._lock:
                self._append(_AttributesSet(True))

    def note_exclusive(self, exclusive: bool) -> None:
        """Note whether a successor must replace no object when it first saves the file.

        Never raises OSError: a full disk must not fail a save.
        """
        if exclusive != self.exclusive:
            with self._lock, contextlib.suppress(OSError):
                self._append(_Exclusive(exclusive))

    def note_attempt(self, attempt: Attempt) -> None:
        """Note that an object is about to be replaced: a successor may find this one there.

        Never raises OSError: a full disk must not fail a save.
        """
        with self._lock, contextlib.suppress(OSError):
            self._append(_Attempted(attempt.size_bytes, list(map(dict, attempt.metadata))))

    def note_saved(self) -> None:
        """Note that the store has the file with its attributes. Never raises OSError."""
        saved = _Saved()
        with self._lock:
            saved.apply(self)
            if self._exists and not (self.uploads or self.missing or self.in_memory):
                # Nothing is left to know, and the log of a file that is saved again and again
                # must not grow for ever.
                self._directory.remove(self._name)
                self._exists = False
            elif self._exists:
                with contextlib.suppress(OSError):  # setting attributes again does no harm
                    self._append(saved)

    def discard(self) -> None:
        """Note that the spool file is gone. The log stays until its uploads have ended."""
        with self._lock:
            self._is_discarded = True
            if self._exists and not self.uploads:
                self._directory.remove(self._name)

    def _append(self, record: _Record) -> None:
        data = _encode(record)
        # Sessions are secrets, so nobody else may read the file.
        if self._exists:
            try:
                descriptor = self._directory.open_file(self._name, os.O_WRONLY | os.O_APPEND)
            except StateUnusable as error:
                raise OSError(errno.EIO, error.what) from None
        else:
            data = _HEADER + data
            descriptor = self._directory.create_file(self._name, os.O_WRONLY | os.O_APPEND)
        try:
            end = os.fstat(descriptor).st_size
            if os.write(descriptor, data) < len(data):  # a full disk
                os.ftruncate(descriptor, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        self._exists = True
        record.apply(self)


class _Record(Protocol):
    """One record: its tag, and its fields in order.

    The types of fields also say what is believed of a record that is read. Each kind is a named
    tuple, a class that is made ten times as fast as a dataclass.
    """

    def apply(self, to: SpoolLog) -> None:
        """Bring ``to`` up to date."""


class _State(TypedDict, total=False):
    """The entries of an upload's state (:attr:`Upload.state`) in all stores."""

    upload: str
    session: str
    series: str
    replaced: str
    tags: str
    leftover: Key
    since_s: Seconds
    metadata: dict[str, str]
    properties: dict[str, str]


class _Begun(NamedTuple):
    upload: Number
    key: Key
    state: _State
    resumable: bool

    def apply(self, to: SpoolLog) -> None:
        to.uploads[self.upload] = UploadRecord(self.upload, self.key, self.state, self.resumable)
        to._last_upload = self.upload


class _Ended(NamedTuple):
    upload: Number

    def apply(self, to: SpoolLog) -> None:
        to.uploads.pop(self.upload, None)


class _Sent(NamedTuple):
    upload: Number
    part: PartNumber
    size_bytes: Number
    receipt: str

    def apply(self, to: SpoolLog) -> None:
        if self.upload in to.uploads:
            to.uploads[self.upload].parts[self.part] = SentPart(self.size_bytes, self.receipt)


class _Unsent(NamedTuple):
    upload: Number
    part: PartNumber

    def apply(self, to: SpoolLog) -> None:
        if self.upload in to.uploads:
            to.uploads[self.upload].parts.pop(self.part, None)


class _Missing(NamedTuple):
    parts: list[PartNumber]

    def apply(self, to: SpoolLog) -> None:
        to.missing.update(self.parts)
        to.in_memory.difference_update(self.parts)


class _InMemory(NamedTuple):
    part: PartNumber

    def apply(self, to: SpoolLog) -> None:
        to.in_memory.add(self.part)


class _Present(NamedTuple):
    part: PartNumber

    def apply(self, to: SpoolLog) -> None:
        to.missing.discard(self.part)
        to.in_memory.discard(self.part)


class _Base(NamedTuple):
    key: Key
    size_bytes: Number
    mtime_s: Seconds
    version: str

    def apply(self, to: SpoolLog) -> None:
        to.base = ObjectInfo(self.key, self.size_bytes, self.mtime_s, self.version)


class _AttributesSet(NamedTuple):
    is_set: bool

    def apply(self, to: SpoolLog) -> None:
        to.attributes_set = self.is_set


class _Exclusive(NamedTuple):
    exclusive: bool

    def apply(self, to: SpoolLog) -> None:
        to.exclusive = self.exclusive


class _Attempted(NamedTuple):
    size_bytes: Number
    metadata: list[dict[str, str]]

    def apply(self, to: SpoolLog) -> None:
        to.attempts = [*to.attempts, Attempt(self.size_bytes, self.metadata)][-_MOST_ATTEMPTS:]


class _Saved(NamedTuple):
    def apply(self, to: SpoolLog) -> None:
        to.attempts = []
        to.attributes_set = False


_KINDS: dict[str, type[Any]] = {
    "begin": _Begun,
    "end": _Ended,
    "sent": _Sent,
    "unsent": _Unsent,
    "missing": _Missing,
    "memory": _InMemory,
    "here": _Present,
    "base": _Base,
    "attributes": _AttributesSet,
    "exclusive": _Exclusive,
    "attempt": _Attempted,
    "saved": _Saved,
}
"""The type of each tag. A change here, or of a type, needs a new version."""
_TAGS = {kind: tag for tag, kind in _KINDS.items()}
_ENCODER = msgspec.json.Encoder()
_TAGGED = msgspec.json.Decoder(tuple[str, msgspec.Raw])
_DECODERS = {tag: msgspec.json.Decoder(kind) for tag, kind in _KINDS.items()}


def _encode(record: Any) -> bytes:
    return frame(_ENCODER.encode((_TAGS[type(record)], record)))


def _decode(content: bytes) -> _Record:
    """Raises LookupError, ValueError or RecursionError."""
    tag, values = _TAGGED.decode(content)
    record: _Record = _DECODERS[tag].decode(values)
    return record
