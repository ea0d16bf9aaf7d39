"""Messages between a worker and its reader processes, one in a datagram, to bytes and back."""

from __future__ import annotations

import functools
import marshal
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from sidecar.mounter.fuse.readers.direct_read import DirectRead, StaleRead
from sidecar.mounter.store.failures import Outcome
from sidecar.mounter.store.interface import ObjectInfo

MESSAGE_BYTES = 16 * 1024
"""The longest message."""

# The first byte is the kind. Messages without a struct are marshalled: both ends are one program.
_READ, _OPEN_AND_READ, _DIRECT_READ, _CLOSE = 1, 2, 3, 4
_OUTCOME, _STALE_READ = 5, 6
_READ_MESSAGE = struct.Struct("<BQQQI")  # kind source unique offset size
_READ_FIELDS = struct.Struct("<xQQQI")  # the same without the kind
_DIRECT_READ_MESSAGE = struct.Struct("<B?QQQQI")  # kind has_handle unique inode handle offset size


class Source(NamedTuple):
    """What is read: one version of an inode, or of an open file.

    Attributes:
        id: its name in messages; no other source of this worker ever has the same.
        handle: the open file; None if the kernel opens files by itself. Then the kernel may
            be given more of the inode than it asked for.
        info: the version.
    """

    id: int
    inode: int
    handle: int | None
    info: ObjectInfo


class Read(NamedTuple):
    """Answer the READ ``unique`` from a source that the reader process already has.

    Attributes:
        source: its id.
        size: in bytes, as the request says.
    """

    source: int
    unique: int
    offset: int
    size: int


_new_read: Callable[[tuple[Any, ...]], Read] = functools.partial(tuple.__new__, Read)
"""Read._make in half the time: most messages are of this kind."""


class OpenAndRead(NamedTuple):
    """As :class:`Read`, from a source that the reader process does not have yet."""

    source: Source
    read: Read


class Close(NamedTuple):
    """These sources will not be read any more."""

    sources: list[int]


pack_read: Callable[[int, int, int, int], bytes] = functools.partial(_READ_MESSAGE.pack, _READ)
"""The message :class:`Read`, from its fields."""


def pack_open_and_read(source: Source, unique: int, offset: int, size: int) -> bytes:
    """The message :class:`OpenAndRead`."""
    head = _READ_MESSAGE.pack(_OPEN_AND_READ, source.id, unique, offset, size)
    return head + marshal.dumps((source.inode, source.handle, source.info.bare))


def pack_direct_read(read: DirectRead) -> bytes:
    """The message :class:`.direct_read.DirectRead`."""
    unique, inode, handle, info, offset, size, _ = read
    head = _DIRECT_READ_MESSAGE.pack(
        _DIRECT_READ, handle is not None, unique, inode, handle or 0, offset, size
    )
    return head + marshal.dumps(info.bare)


def pack_close(sources: list[int]) -> bytes:
    """The message :class:`Close`."""
    return bytes((_CLOSE,)) + marshal.dumps(sources)


def unpack_request(message: bytes) -> Read | OpenAndRead | DirectRead | Close:
    """The worker's message to a reader process. The time of a direct read begins now."""
    kind = message[0]
    if kind == _READ:
        return _new_read(_READ_FIELDS.unpack(message))
    if kind == _DIRECT_READ:
        _, has_handle, unique, inode, number, offset, size = _DIRECT_READ_MESSAGE.unpack_from(
            message
        )
        handle = number if has_handle else None
        info = ObjectInfo(*_marshalled(message, _DIRECT_READ_MESSAGE.size))
        return DirectRead(unique, inode, handle, info, offset, size, time.perf_counter())
    if kind == _CLOSE:
        return Close(_marshalled(message, 1))
    read = _new_read(_READ_FIELDS.unpack_from(message))
    inode, handle, bare = _marshalled(message, _READ_FIELDS.size)
    return OpenAndRead(Source(read.source, inode, handle, ObjectInfo(*bare)), read)


def pack_outcome(outcome: Outcome) -> bytes:
    """The message :class:`Outcome`: how a reader process's call to the store ended."""
    return bytes((_OUTCOME,)) + marshal.dumps(tuple(outcome))


def pack_stale_read(read: StaleRead) -> bytes:
    """The message :class:`.direct_read.StaleRead`."""
    return bytes((_STALE_READ,)) + marshal.dumps(tuple(read))


def unpack_report(message: bytes) -> Outcome | StaleRead:
    """The reader process's message to the worker."""
    fields = _marshalled(message, 1)
    return Outcome(*fields) if message[0] == _OUTCOME else StaleRead(*fields)


def _marshalled(message: bytes, start: int) -> Any:
    return marshal.loads(message[start:])  # noqa: S302 - from the other end of our socket pair
