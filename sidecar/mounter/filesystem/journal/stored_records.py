"""The stored form of the journal's records, and checks of those that are read.

A record is a tag and its numbers. If it has more, these follow: the length of each text (in
characters, -1: None), the length of all texts (in bytes of UTF-8), the length of the bytes (-1:
None), then texts and bytes. Numbers are little-endian. A change of a tag or a layout needs another
version of the journal.

:mod:`struct` is as fast here as marshal, whose reader may crash on forged bytes; JSON takes three
times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sidecar.mounter.filesystem.journal.records import (
    DIRECTORY_HANDLE,
    FILE_HANDLE,
    LOOKUP,
    Answered,
    BareVersion,
    DirectoryClosed,
    DirectoryInode,
    DirectoryOpened,
    FileClosed,
    FileInode,
    FileOpened,
    Granted,
    GrantKind,
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
from sidecar.mounter.filesystem.names.names import TARGET_MAX_BYTES, is_spellable
from sidecar.mounter.filesystem.names.packed_names import check_keys
from sidecar.mounter.writing import stored_values as check

Numbers = Sequence[Any]
Texts = Sequence[str | None]
Parts = tuple[Numbers, Texts, bytes | None]
"""Numbers, texts, and bytes."""

_NONE: Final = -1
_LONE_SURROGATES = "surrogatepass"
_GRANT_KINDS: Final[tuple[GrantKind, ...]] = (LOOKUP, FILE_HANDLE, DIRECTORY_HANDLE)
_ATTRIBUTES: Final = ("mode", "uid", "gid", "mtime_ns")
_MOST_ATTRIBUTE: Final = {"mode": 0o7777, "uid": 0xFFFFFFFF, "gid": 0xFFFFFFFF}
_ATTRIBUTE = struct.Struct("<BqI")  # which; its value or seconds; 0 or nanoseconds
_NS = 10**9
_MOST_BACKING_ID = (1 << 31) - 1
_MOST_ERRNO = 511  # fs/fuse/dev.c, fuse_dev_do_write
_MOST_REPLY_BYTES = 64 * 1024


class _Unreadable(ValueError):
    """The record cannot be read, nor what follows it in the same payload."""


class _Layout:
    """The stored form of one type of record.

    Args:
        numbers: their format in :mod:`struct`.
        texts: how many.
        split: a record to its parts.
        build: the reverse, with checks. Raises ValueError. None: the record has only numbers that
            are not negative.
    """

    __slots__ = ("build", "head", "numbers", "split", "tag", "type")

    def __init__(
        self,
        tag: int,
        type_: Callable[..., Record],
        numbers: str,
        texts: int = 0,
        split: Callable[[Any], Parts] | None = None,
        build: Callable[[Numbers, Texts, bytes | None], Record] | None = None,
    ) -> None:
        self.tag = tag
        self.type = type_
        self.numbers = 1 + len(numbers)
        self.head = struct.Struct("<B" + numbers + ("i" * (texts + 2) if build else ""))
        self.split = split
        self.build = build

    def parts(self, payload: bytes, position: int) -> tuple[Parts, int]:
        """The parts of the record at ``position``, and its end. Raises ValueError, struct.error."""
        fields = self.head.unpack_from(payload, position)
        *lengths, text_bytes, other_bytes = fields[self.numbers :]
        start = position + self.head.size
        middle = start + text_bytes
        end = middle + max(0, other_bytes)
        if text_bytes < 0 or end > len(payload):
            raise struct.error("the record ends too early")
        try:
            text = payload[start:middle].decode("utf-8", _LONE_SURROGATES)
        except UnicodeDecodeError:
            raise _Unreadable("a text that is none") from None
        texts: list[str | None] = []
        first = 0
        for length in lengths:
            texts.append(text[first : first + length] if length >= 0 else None)
            first += max(0, length)
        if first != len(text):
            raise _Unreadable("lengths of texts that are others")
        return (
            fields[1 : self.numbers],
            texts,
            payload[middle:end] if other_bytes >= 0 else None,
        ), end


class Nonsense(NamedTuple):
    """A record that cannot be true, or cannot be read."""

    why: str


def encode(record: Record) -> bytes:
    """A record in its stored form."""
    if type(record) is FileInode:
        return _encode_file(record)
    layout = _LAYOUTS[type(record)]
    if layout.split is None:
        return layout.head.pack(layout.tag, *record)
    numbers, texts, other = layout.split(record)
    text = "".join(filter(None, texts)).encode("utf-8", _LONE_SURROGATES)
    lengths = [_NONE if one is None else len(one) for one in (*texts, text, other)]
    lengths[-2] = len(text)
    return layout.head.pack(layout.tag, *numbers, *lengths) + text + (other or b"")


def decode(payload: bytes) -> Iterator[Record | Nonsense]:
    """The records of a payload."""
    position = 0
    while position < len(payload):
        layout = _BY_TAG.get(payload[position])
        if layout is None:
            yield Nonsense(f"no record has the tag {payload[position]}")
            return  # the beginning of the next one is not known
        try:
            if layout.build is None:
                _, *numbers = layout.head.unpack_from(payload, position)
                position += layout.head.size
                yield layout.type(*map(check.number, numbers))
            else:
                parts, position = layout.parts(payload, position)
                yield layout.build(*parts)
        except struct.error:
            yield Nonsense("the record ends too early")
            return
        except ValueError as error:
            yield Nonsense(str(error))
            if isinstance(error, _Unreadable):
                return


# --- values -------------------------------------------------------------------------------------


def _optional(number: int) -> int | None:
    return None if number == _NONE else check.number(number)


def _or_none(number: int | None) -> int:
    return _NONE if number is None else number


def _text(stored: str | None) -> str:
    if stored is None:
        raise ValueError("a text is missing")
    return stored


def _name(stored: str | None, inode: int) -> str:
    name = _text(stored)
    if (name or inode != 1) and not is_spellable(name):
        raise ValueError(f"{ascii(name)[:80]} is no name")
    return name


def _key(stored: str | None) -> str | None:
    return None if stored is None else check.key(stored)


def _stored_attributes(attributes: Mapping[str, int]) -> bytes:
    return b"".join(
        _ATTRIBUTE.pack(3, *divmod(value, _NS))
        if name == "mtime_ns"
        else _ATTRIBUTE.pack(_ATTRIBUTES.index(name), value, 0)
        for name, value in attributes.items()
    )


def _attributes(stored: bytes | None) -> dict[str, int]:
    if stored is None or len(stored) % _ATTRIBUTE.size or len(stored) > 16 * _ATTRIBUTE.size:
        raise ValueError("attributes of a wrong length")
    found: dict[str, int] = {}
    for which, value, nanoseconds in _ATTRIBUTE.iter_unpack(stored):
        if which >= len(_ATTRIBUTES):
            raise ValueError(f"no attribute has the number {which}")
        name = _ATTRIBUTES[which]
        if name == "mtime_ns":
            found[name] = value * _NS + nanoseconds
        elif 0 <= value <= _MOST_ATTRIBUTE[name]:
            found[name] = value
        else:
            raise ValueError(f"{value} is no {name}")
    return found


def _names(joined: str | None) -> list[str]:
    names = joined.split("/") if joined else []
    for name in names:
        if not is_spellable(name):
            raise ValueError(f"{ascii(name)[:80]} is no name")
    return names


def _stored_numbers(numbers: Iterable[int]) -> bytes:
    return struct.pack(f"<{len(values)}q", *values) if (values := list(numbers)) else b""


def _numbers(stored: bytes | None) -> list[int]:
    if stored is None or len(stored) % 8:
        raise ValueError("numbers of a wrong length")
    return [check.number(number) for number in struct.unpack(f"<{len(stored) // 8}q", stored)]


def _grant_kind(number: int) -> GrantKind:
    if number >= len(_GRANT_KINDS):
        raise ValueError(f"no grant has the kind {number}")
    return _GRANT_KINDS[number]


def _remote(key: str, size_bytes: int, mtime_s: float, version: str | None) -> BareVersion:
    return key, check.number(size_bytes), check.seconds(mtime_s), _text(version)


# --- types --------------------------------------------------------------------------------------


def _encode_file(record: FileInode) -> bytes:
    """As :func:`encode` in half the time: it runs for each file that a program sees."""
    inode, parent, name, lookups, detached, remote, attributes, spool, is_dirty, key = record
    object_key, size_bytes, mtime_s, version = remote or ("", 0, 0.0, "")
    text = f"{name}{object_key}{version}{spool or ''}{key or ''}".encode("utf-8", _LONE_SURROGATES)
    stored = _stored_attributes(attributes) if attributes else b""
    return (
        _FILE.head.pack(
            _FILE.tag,
            inode,
            _NONE if parent is None else parent,
            lookups,
            detached,
            is_dirty,
            size_bytes,
            mtime_s,
            len(name),
            _NONE if remote is None else len(object_key),
            len(version),
            _NONE if spool is None else len(spool),
            _NONE if key is None else len(key),
            len(text),
            len(stored),
        )
        + text
        + stored
    )


def _build_file(numbers: Numbers, texts: Texts, attributes: bytes | None) -> FileInode:
    inode, parent, lookups, detached, is_dirty, size_bytes, mtime_s = numbers
    name, object_key, version, spool, key = texts
    return FileInode(
        check.number(inode),
        _optional(parent),
        _name(name, inode),
        check.number(lookups),
        detached,
        None if object_key is None else _remote(object_key, size_bytes, mtime_s, version),
        _attributes(attributes),
        None if spool is None else check.spool_name(spool),
        is_dirty,
        _key(key),
    )


def _split_link(record: LinkInode) -> Parts:
    inode, parent, name, lookups, detached, remote, attributes, target = record
    object_key, size_bytes, mtime_s, version = remote
    target_bytes = _NONE if target is None else len(target)
    return (
        (inode, _or_none(parent), lookups, detached, size_bytes, mtime_s, target_bytes),
        (name, object_key, version),
        (target or b"") + _stored_attributes(attributes),
    )


def _build_link(numbers: Numbers, texts: Texts, other: bytes | None) -> LinkInode:
    inode, parent, lookups, detached, size_bytes, mtime_s, target_bytes = numbers
    name, object_key, version = texts
    if other is None or not _NONE <= target_bytes <= min(len(other), TARGET_MAX_BYTES):
        raise ValueError(f"a link's target of {target_bytes} bytes")
    return LinkInode(
        check.number(inode),
        _optional(parent),
        _name(name, inode),
        check.number(lookups),
        detached,
        _remote(_text(object_key), size_bytes, mtime_s, version),
        _attributes(other[max(0, target_bytes) :]),
        None if target_bytes == _NONE else other[:target_bytes],
    )


def _split_directory(record: DirectoryInode) -> Parts:
    inode, parent, name, lookups, detached, kept, mtime_ns = record
    numbers = inode, _or_none(parent), lookups, detached, kept, *divmod(mtime_ns, _NS)
    return numbers, (name,), None


def _build_directory(numbers: Numbers, texts: Texts, _: bytes | None) -> DirectoryInode:
    inode, parent, lookups, detached, kept, seconds, nanoseconds = numbers
    return DirectoryInode(
        check.number(inode),
        _optional(parent),
        _name(texts[0], inode),
        check.number(lookups),
        detached,
        kept,
        seconds * _NS + nanoseconds,
    )


def _build_opened(numbers: Numbers, _: Texts, __: bytes | None) -> FileOpened:
    handle, inode, is_writable, backing_id = numbers
    if backing_id > _MOST_BACKING_ID:
        raise ValueError(f"no backing file has the id {backing_id}")
    return FileOpened(check.number(handle), check.number(inode), is_writable, _optional(backing_id))


def _build_directory_opened(numbers: Numbers, texts: Texts, _: bytes | None) -> DirectoryOpened:
    handle, inode = map(check.number, numbers)
    return DirectoryOpened(handle, inode, _names(texts[0]))


def _build_names_read(numbers: Numbers, texts: Texts, _: bytes | None) -> NamesRead:
    handle, start = map(check.number, numbers)
    return NamesRead(handle, start, _names(texts[0]))


def _build_listing_read(numbers: Numbers, _: Texts, keys: bytes | None) -> ListingRead:
    handle, listing, listed, place = map(check.number, numbers)
    if keys:
        check_keys(keys)
    return ListingRead(handle, listing, listed, place, keys or b"")


def _build_rename(numbers: Numbers, texts: Texts, _: bytes | None) -> RenameBegun:
    old, new = map(check.prefix, texts)
    if old.startswith(new) or new.startswith(old):
        raise ValueError(f"{ascii(old)[:80]} cannot be renamed to {ascii(new)[:80]}")
    return RenameBegun(check.number(numbers[0]), old, new)


def _build_granted(numbers: Numbers, _: Texts, granted: bytes | None) -> Granted:
    return Granted(check.number(numbers[0]), _grant_kind(numbers[1]), _numbers(granted))


def _build_revoked(numbers: Numbers, _: Texts, __: bytes | None) -> Revoked:
    return Revoked(check.number(numbers[0]), _grant_kind(numbers[1]), check.number(numbers[2]))


def _build_intended(numbers: Numbers, texts: Texts, _: bytes | None) -> Intended:
    operation, replaced_key = texts
    if replaced_key is not None:
        check.key(replaced_key.removesuffix("/"))
    return Intended(check.number(numbers[0]), _text(operation), _optional(numbers[1]), replaced_key)


def _build_replied(numbers: Numbers, _: Texts, reply: bytes | None) -> Replied:
    request, errno = numbers
    if not 0 <= errno <= _MOST_ERRNO or reply is None or len(reply) > _MOST_REPLY_BYTES:
        raise ValueError(f"no answer has the errno {errno}, or such a length")
    return Replied(check.number(request), errno, reply)


def _split_opened(record: FileOpened) -> Parts:
    return (*record[:3], _or_none(record.backing_id)), (), None


def _split_names(record: DirectoryOpened | NamesRead) -> Parts:
    return record[:2], ("/".join(record.names),), None


def _split_granted(record: Granted) -> Parts:
    numbers = record.request, _GRANT_KINDS.index(record.kind)
    return numbers, (), _stored_numbers(record.numbers)


def _split_revoked(record: Revoked) -> Parts:
    return (record.request, _GRANT_KINDS.index(record.kind), record.number), (), None


def _split_intended(record: Intended) -> Parts:
    numbers = record.request, _or_none(record.inode)
    return numbers, (record.operation, record.replaced_key), None


_FILE: Final = _Layout(4, FileInode, "qqq??qd", 5, build=_build_file)
_ALL: Final = (
    _FILE,
    _Layout(1, LastNumbers, "qqq"),
    _Layout(2, DirectoryInode, "qqq??qI", 1, _split_directory, _build_directory),
    _Layout(3, LinkInode, "qqq?qdi", 3, _split_link, _build_link),
    _Layout(5, Lookups, "qq"),
    _Layout(6, InodeDropped, "q"),
    _Layout(7, FileOpened, "qq?q", 0, _split_opened, _build_opened),
    _Layout(8, FileClosed, "q"),
    _Layout(9, DirectoryOpened, "qq", 1, _split_names, _build_directory_opened),
    _Layout(10, NamesRead, "qq", 1, _split_names, _build_names_read),
    _Layout(11, DirectoryClosed, "q"),
    _Layout(12, RenameBegun, "q", 2, lambda r: (r[:1], r[1:], None), _build_rename),
    _Layout(13, RenameEnded, "q"),
    _Layout(14, Granted, "qB", 0, _split_granted, _build_granted),
    _Layout(15, Revoked, "qBq", 0, _split_revoked, _build_revoked),
    _Layout(16, Intended, "qq", 2, _split_intended, _build_intended),
    _Layout(17, Replied, "qi", 0, lambda r: (r[:2], (), r.reply), _build_replied),
    _Layout(18, Resent, "qqq"),
    _Layout(
        19,
        Answered,
        "",
        0,
        lambda r: ((), (), _stored_numbers(r.requests)),
        lambda _, __, requests: Answered(_numbers(requests)),
    ),
    _Layout(
        20,
        ListingRead,
        "qqqq",
        0,
        lambda r: (r[:4], (), r.keys),
        _build_listing_read,
    ),
)
_BY_TAG: Final = {layout.tag: layout for layout in _ALL}
_LAYOUTS: Final[dict[Any, _Layout]] = {layout.type: layout for layout in _ALL}
