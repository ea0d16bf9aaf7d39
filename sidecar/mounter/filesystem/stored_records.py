"""How records of the journal are stored, and which of those that are read can be true.

A record is a tag, its numbers, the lengths of its texts (-1 for none), and the texts. Integers
are little-endian, texts are UTF-8. Whoever changes a tag or a layout gives the journal another
version. :mod:`struct` is as fast here as marshal, whose reader may crash on bytes that somebody
made up; JSON takes twice as long.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sidecar.mounter.filesystem.names import TARGET_MAX_BYTES, is_spellable
from sidecar.mounter.filesystem.records import (
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
    LocalName,
    Lookups,
    NamesRead,
    Record,
    RenameBegun,
    RenameEnded,
    Replied,
    Resent,
    ReturnedName,
    Revoked,
)
from sidecar.mounter.writing import stored_values as check

Numbers = Sequence[Any]
Texts = Sequence[bytes | None]

_NONE: Final = -1
_GRANT_KINDS: Final[tuple[GrantKind, ...]] = (LOOKUP, FILE_HANDLE, DIRECTORY_HANDLE)
_ATTRIBUTES: Final = ("mode", "uid", "gid", "mtime_ns")
_MOST_ATTRIBUTE: Final = {"mode": 0o7777, "uid": 0xFFFFFFFF, "gid": 0xFFFFFFFF}
_ATTRIBUTE = struct.Struct("<BqI")  # which; its value, or seconds; 0, or nanoseconds
_NS = 10**9
_MOST_BACKING_ID = (1 << 31) - 1
_MOST_ERRNO = 511  # fs/fuse/dev.c, fuse_dev_do_write
_MOST_REPLY_BYTES = 64 * 1024


class _Layout:
    """How one type of record is stored.

    Args:
        numbers: their format, as of :mod:`struct`.
        texts: how many.
        split: a record to its numbers and texts. None: it has nothing but numbers, in order.
        build: the reverse, with checks. Raises ValueError.
    """

    __slots__ = ("build", "head", "numbers", "split", "tag", "type")

    def __init__(
        self,
        tag: int,
        type_: Callable[..., Record],
        numbers: str,
        texts: int = 0,
        split: Callable[[Any], tuple[Numbers, Texts]] | None = None,
        build: Callable[[Numbers, Texts], Record] | None = None,
    ) -> None:
        self.tag = tag
        self.type = type_
        self.numbers = 1 + len(numbers)
        self.head = struct.Struct("<B" + numbers + "i" * texts)
        self.split = split
        self.build = build


class Nonsense(NamedTuple):
    """A record that cannot be true, or cannot be read."""

    why: str


def encode(record: Record) -> bytes:
    """A record as it is stored."""
    layout = _LAYOUTS[type(record)]
    if layout.split is None:
        return layout.head.pack(layout.tag, *record)
    numbers, texts = layout.split(record)
    lengths = [_NONE if text is None else len(text) for text in texts]
    return layout.head.pack(layout.tag, *numbers, *lengths) + b"".join(filter(None, texts))


def decode(payload: bytes) -> Iterator[Record | Nonsense]:
    """The records that stand one behind the other in a payload."""
    position = 0
    while position < len(payload):
        layout = _BY_TAG.get(payload[position])
        if layout is None:
            yield Nonsense(f"no record has the tag {payload[position]}")
            return  # nobody knows where the next one begins
        try:
            _, *fields = layout.head.unpack_from(payload, position)
            position += layout.head.size
            if layout.build is None:
                yield layout.type(*map(check.number, fields))
                continue
            texts: list[bytes | None] = []
            for length in fields[layout.numbers - 1 :]:
                end = position + max(0, length)
                if length < _NONE or end > len(payload):
                    yield Nonsense(f"a text of {length} bytes is longer than its record")
                    return
                texts.append(None if length == _NONE else payload[position:end])
                position = end
            yield layout.build(fields, texts)
        except struct.error:
            yield Nonsense("the record ends too early")
            return
        except ValueError as error:
            yield Nonsense(str(error))


# --- values -------------------------------------------------------------------------------------


def _optional(number: int) -> int | None:
    return None if number == _NONE else check.number(number)


def _or_none(number: int | None) -> int:
    return _NONE if number is None else number


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _text(stored: bytes | None) -> str:
    if stored is None:
        raise ValueError("a text is missing")
    return stored.decode("utf-8", "surrogatepass")


def _name(stored: bytes | None, inode: int) -> str:
    name = _text(stored)
    if (name or inode != 1) and not is_spellable(name):
        raise ValueError(f"{ascii(name)[:80]} is no name")
    return name


def _key(stored: bytes | None) -> str | None:
    return None if stored is None else check.key(_text(stored))


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


def _stored_names(names: Sequence[ReturnedName]) -> tuple[bytes, bytes]:
    """Those that the store has, and then the local ones: in this order they are read."""
    local = [name.name for name in names if isinstance(name, LocalName)]
    listed = names[: len(names) - len(local)]
    return (
        "/".join(listed).encode("utf-8", "surrogatepass"),  # type: ignore[arg-type]
        "/".join(local).encode("utf-8", "surrogatepass"),
    )


def _names(listed: bytes | None, local: bytes | None) -> list[ReturnedName]:
    names = _text(listed).split("/") if listed else []
    others = _text(local).split("/") if local else []
    for name in (*names, *others):
        if not is_spellable(name):
            raise ValueError(f"{ascii(name)[:80]} is no name")
    return [*names, *map(LocalName, others)]


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


def _remote(size_bytes: int, mtime_s: float, key: bytes, version: bytes | None) -> BareVersion:
    return _text(key), check.number(size_bytes), check.seconds(mtime_s), _text(version)


# --- types --------------------------------------------------------------------------------------


def _split_file(record: FileInode) -> tuple[Numbers, Texts]:
    inode, parent, name, lookups, detached, remote, attributes, spool, is_dirty, key = record
    object_key, size_bytes, mtime_s, version = remote or (None, 0, 0.0, None)
    return (
        (inode, _or_none(parent), lookups, detached, is_dirty, size_bytes, mtime_s),
        (
            _bytes(name),
            _bytes(object_key),
            _bytes(version),
            _stored_attributes(attributes),
            _bytes(spool),
            _bytes(key),
        ),
    )


def _build_file(numbers: Numbers, texts: Texts) -> FileInode:
    inode, parent, lookups, detached, is_dirty, size_bytes, mtime_s, *_ = numbers
    name, object_key, version, attributes, spool, key = texts
    return FileInode(
        check.number(inode),
        _optional(parent),
        _name(name, inode),
        check.number(lookups),
        detached,
        None if object_key is None else _remote(size_bytes, mtime_s, object_key, version),
        _attributes(attributes),
        None if spool is None else check.spool_name(_text(spool)),
        is_dirty,
        _key(key),
    )


def _split_link(record: LinkInode) -> tuple[Numbers, Texts]:
    inode, parent, name, lookups, detached, remote, attributes, target = record
    object_key, size_bytes, mtime_s, version = remote
    return (
        (inode, _or_none(parent), lookups, detached, size_bytes, mtime_s),
        (
            _bytes(name),
            _bytes(object_key),
            _bytes(version),
            _stored_attributes(attributes),
            target,
        ),
    )


def _build_link(numbers: Numbers, texts: Texts) -> LinkInode:
    inode, parent, lookups, detached, size_bytes, mtime_s, *_ = numbers
    name, object_key, version, attributes, target = texts
    if object_key is None:
        raise ValueError("a link without an object")
    if target is not None and len(target) > TARGET_MAX_BYTES:
        raise ValueError(f"a link's target of {len(target)} bytes")
    return LinkInode(
        check.number(inode),
        _optional(parent),
        _name(name, inode),
        check.number(lookups),
        detached,
        _remote(size_bytes, mtime_s, object_key, version),
        _attributes(attributes),
        target,
    )


def _split_directory(record: DirectoryInode) -> tuple[Numbers, Texts]:
    inode, parent, name, lookups, detached, kept, mtime_ns = record
    return (
        (inode, _or_none(parent), lookups, detached, kept, *divmod(mtime_ns, _NS)),
        (_bytes(name),),
    )


def _build_directory(numbers: Numbers, texts: Texts) -> DirectoryInode:
    inode, parent, lookups, detached, kept, seconds, nanoseconds, *_ = numbers
    return DirectoryInode(
        check.number(inode),
        _optional(parent),
        _name(texts[0], inode),
        check.number(lookups),
        detached,
        kept,
        seconds * _NS + nanoseconds,
    )


def _build_opened(numbers: Numbers, _texts: Texts) -> FileOpened:
    handle, inode, is_writable, backing_id, *_ = numbers
    if backing_id > _MOST_BACKING_ID:
        raise ValueError(f"no backing file has the id {backing_id}")
    return FileOpened(check.number(handle), check.number(inode), is_writable, _optional(backing_id))


def _build_directory_opened(numbers: Numbers, texts: Texts) -> DirectoryOpened:
    return DirectoryOpened(check.number(numbers[0]), check.number(numbers[1]), _names(*texts))


def _build_names_read(numbers: Numbers, texts: Texts) -> NamesRead:
    return NamesRead(check.number(numbers[0]), check.number(numbers[1]), _names(*texts))


def _build_rename(numbers: Numbers, texts: Texts) -> RenameBegun:
    old, new = check.prefix(_text(texts[0])), check.prefix(_text(texts[1]))
    if old.startswith(new) or new.startswith(old):
        raise ValueError(f"{ascii(old)[:80]} cannot be renamed to {ascii(new)[:80]}")
    return RenameBegun(check.number(numbers[0]), old, new)


def _build_granted(numbers: Numbers, texts: Texts) -> Granted:
    return Granted(check.number(numbers[0]), _grant_kind(numbers[1]), _numbers(texts[0]))


def _build_revoked(numbers: Numbers, _texts: Texts) -> Revoked:
    return Revoked(check.number(numbers[0]), _grant_kind(numbers[1]), check.number(numbers[2]))


def _build_intended(numbers: Numbers, texts: Texts) -> Intended:
    replaced = None if texts[1] is None else _text(texts[1])
    if replaced is not None:
        check.key(replaced.removesuffix("/"))
    return Intended(check.number(numbers[0]), _text(texts[0]), _optional(numbers[1]), replaced)


def _build_replied(numbers: Numbers, texts: Texts) -> Replied:
    request, errno, *_ = numbers
    (reply,) = texts
    if not 0 <= errno <= _MOST_ERRNO or reply is None or len(reply) > _MOST_REPLY_BYTES:
        raise ValueError(f"no answer has the errno {errno}, or such a length")
    return Replied(check.number(request), errno, reply)


_ALL: Final = (
    _Layout(1, LastNumbers, "qqq"),
    _Layout(2, DirectoryInode, "qqq??qI", 1, _split_directory, _build_directory),
    _Layout(3, LinkInode, "qqq?qd", 5, _split_link, _build_link),
    _Layout(4, FileInode, "qqq??qd", 6, _split_file, _build_file),
    _Layout(5, Lookups, "qq"),
    _Layout(6, InodeDropped, "q"),
    _Layout(7, FileOpened, "qq?q", 0, lambda r: ((*r[:3], _or_none(r[3])), ()), _build_opened),
    _Layout(8, FileClosed, "q"),
    _Layout(
        9,
        DirectoryOpened,
        "qq",
        2,
        lambda r: (r[:2], _stored_names(r.names)),
        _build_directory_opened,
    ),
    _Layout(10, NamesRead, "qq", 2, lambda r: (r[:2], _stored_names(r.names)), _build_names_read),
    _Layout(11, DirectoryClosed, "q"),
    _Layout(
        12, RenameBegun, "q", 2, lambda r: (r[:1], (_bytes(r[1]), _bytes(r[2]))), _build_rename
    ),
    _Layout(13, RenameEnded, "q"),
    _Layout(
        14,
        Granted,
        "qB",
        1,
        lambda r: ((r.request, _GRANT_KINDS.index(r.kind)), (_stored_numbers(r.numbers),)),
        _build_granted,
    ),
    _Layout(
        15,
        Revoked,
        "qBq",
        0,
        lambda r: ((r.request, _GRANT_KINDS.index(r.kind), r.number), ()),
        _build_revoked,
    ),
    _Layout(
        16,
        Intended,
        "qq",
        2,
        lambda r: (
            (r.request, _or_none(r.inode)),
            (_bytes(r.operation), _bytes(r.replaced_key)),
        ),
        _build_intended,
    ),
    _Layout(17, Replied, "qi", 1, lambda r: (r[:2], (r.reply,)), _build_replied),
    _Layout(18, Resent, "qqq"),
    _Layout(
        19,
        Answered,
        "",
        1,
        lambda r: ((), (_stored_numbers(r.requests),)),
        lambda _, texts: Answered(_numbers(texts[0])),
    ),
)
_BY_TAG: Final = {layout.tag: layout for layout in _ALL}
_LAYOUTS: Final[dict[Any, _Layout]] = {layout.type: layout for layout in _ALL}
