"""The stored form of the journal's records, and checks of those that are read.

A tag and a length are before each record, so that the others are read if one makes no sense. The
record itself is an array in MessagePack: its fields have the types that :mod:`.records` gives them.
A change of a tag or a type needs another version of the journal.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.mounter.filesystem.journal.records import (
    Answered,
    DirectoryClosed,
    DirectoryInode,
    DirectoryOpened,
    FileClosed,
    FileInode,
    FileOpened,
    Granted,
    InodeDropped,
    Intended,
    LastNumbers,
    LinkInode,
    ListingRead,
    Lookups,
    NamesRead,
    Record,
    RenameBegun,
    RenameEnded,
    Replied,
    Resent,
    Revoked,
)
from sidecar.mounter.filesystem.names.names import is_spellable
from sidecar.mounter.filesystem.names.packed_names import check_keys

_TYPES: Final = {
    1: LastNumbers,
    2: DirectoryInode,
    3: LinkInode,
    4: FileInode,
    5: Lookups,
    6: InodeDropped,
    7: FileOpened,
    8: FileClosed,
    9: DirectoryOpened,
    10: NamesRead,
    11: DirectoryClosed,
    12: RenameBegun,
    13: RenameEnded,
    14: Granted,
    15: Revoked,
    16: Intended,
    17: Replied,
    18: Resent,
    19: Answered,
    20: ListingRead,
}
_TAGS: Final[Mapping[type, int]] = {kind: tag for tag, kind in _TYPES.items()}
_HEAD: Final = struct.Struct("<BI")  # tag, length of the record
_ENCODER: Final = msgspec.msgpack.Encoder()
# Not strict: a number of more than 64 bits is a text.
_DECODERS: Final[dict[int, msgspec.msgpack.Decoder[Any]]] = {
    tag: msgspec.msgpack.Decoder(kind, strict=False) for tag, kind in _TYPES.items()
}
_MOST_ATTRIBUTE: Final = {"mode": 0o7777, "uid": 0xFFFFFFFF, "gid": 0xFFFFFFFF}
_INT63: Final = 1 << 63
_MOST_SHOWN: Final = 80
_ROOT: Final = 1


class Nonsense(NamedTuple):
    """A record that cannot be true, or cannot be read."""

    why: str


def encode(record: Record) -> bytes:
    """A record in its stored form."""
    try:
        content = _ENCODER.encode(record)
    except OverflowError:  # a time after the year 2262
        content = _ENCODER.encode(_large_as_text(record))
    return _HEAD.pack(_TAGS[type(record)], len(content)) + content


def decode(payload: bytes) -> Iterator[Record | Nonsense]:
    """The records of a payload."""
    end = 0
    while end < len(payload):
        if end + _HEAD.size > len(payload):
            yield Nonsense("the record ends too early")
            return
        tag, length = _HEAD.unpack_from(payload, end)
        start = end + _HEAD.size
        end = start + length
        if end > len(payload):
            yield Nonsense("the record ends too early")
        elif tag not in _DECODERS:
            yield Nonsense(f"no record has the tag {tag}")
        else:
            try:
                record: Record = _DECODERS[tag].decode(payload[start:end])
                _check(record)
                yield record
            except (ValueError, RecursionError) as error:
                yield Nonsense(ascii(str(error))[1:-1][:_MOST_SHOWN])


def _large_as_text(value: Any) -> Any:
    """A value with its large numbers as texts."""
    if isinstance(value, int) and not -_INT63 <= value < _INT63:
        return str(value)
    if isinstance(value, dict):
        return {name: _large_as_text(one) for name, one in value.items()}
    return tuple(map(_large_as_text, value)) if isinstance(value, tuple) else value


# --- what a type does not say ---------------------------------------------------------------------


def _check(record: Record) -> None:
    """Raises ValueError if this program would not have written the record."""
    match record:
        case FileInode() | LinkInode():
            _check_name(record.name)
            for name, value in record.attributes.items():
                if name == "mtime_ns":
                    _check_time(value)
                elif not 0 <= value <= _MOST_ATTRIBUTE.get(name, -1):
                    raise ValueError(f"{value} is no {name}")
        case DirectoryInode():
            if record.name or record.inode != _ROOT:
                _check_name(record.name)
            _check_time(record.mtime_ns)
        case DirectoryOpened() | NamesRead():
            for name in record.names:
                _check_name(name)
        case ListingRead() if record.keys:
            check_keys(record.keys)
        case RenameBegun(_, old, new) if old.startswith(new) or new.startswith(old):
            raise ValueError(f"`{old}` cannot be renamed to `{new}`")


def _check_name(name: str) -> None:
    if not is_spellable(name):
        raise ValueError(f"`{name}` is no name")


def _check_time(time_ns: int) -> None:
    if not -_INT63 <= time_ns // 10**9 < _INT63:
        raise ValueError("no time is so far away")
