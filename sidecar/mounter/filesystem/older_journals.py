"""Journals of versions 2 and 3, which earlier releases wrote: read at an upgrade, never written.

Their records are marshalled. :func:`marshal.loads` may crash the interpreter, or take any amount
of memory, on bytes that somebody made up (docs.python.org/3/library/marshal.html). So the few
types that those journals have are read here, and every record passes the checks of this version.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

from sidecar.errors import StateUnusable
from sidecar.mounter.filesystem import records
from sidecar.mounter.filesystem.records import Record
from sidecar.mounter.filesystem.stored_records import Nonsense, decode, encode
from sidecar.mounter.writing.frames import Damage

_MOST_BYTES = 256 * 1024 * 1024
_DEEPEST = 8
_LENGTH = struct.Struct("<I")
_USED = struct.Struct("<Q")
_INT = struct.Struct("<i")
_FLOAT = struct.Struct("<d")
_DIGIT_BITS = 15
_MOST_DIGITS = 16
_IS_REFERENCED: Final = 0x80
_MISSING: Final = object()

_TYPES: Final[dict[str, Callable[..., Record]]] = {
    "last": records.LastNumbers,
    "directory": records.DirectoryInode,
    "link": records.LinkInode,
    "file": records.FileInode,
    "held": records.Lookups,
    "dropped": records.InodeDropped,
    "open": records.FileOpened,
    "closed": records.FileClosed,
    "moving": records.RenameBegun,
    "moved": records.RenameEnded,
    "gave": records.Granted,
    "took": records.Revoked,
    "intent": records.Intended,
    "done": records.Replied,
    "again": records.Resent,
    "answered": records.Answered,
}
_OF_DIRECTORY_HANDLES: Final = ("opendir", "lines", "closeddir")


def read_older(
    file: BinaryIO, path: Path, version: bytes, size_bytes: int
) -> Iterator[Record | Damage]:
    """The records of a journal, from behind magic and version on.

    Args:
        path: of the file, for messages.
        version: ``02`` or ``03``.
        size_bytes: of the file.

    Raises:
        StateUnusable: it is damaged. Nothing behind the damage can be found.
    """
    content = file.read(_USED.size)
    used = _USED.unpack(content)[0] if len(content) == _USED.size else 0
    position = file.tell()
    if not position <= used <= min(size_bytes, _MOST_BYTES):
        raise StateUnusable(f"`{path}` is damaged: {size_bytes} bytes, of which {used} are in use")
    while position < used:
        head = file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else used
        end = position + _LENGTH.size + length
        if end > used:
            raise StateUnusable(f"`{path}` is damaged at byte {position}: no such length")
        try:
            batch = _Marshalled(file.read(length)).records()
        except (ValueError, struct.error, IndexError, RecursionError) as error:
            raise StateUnusable(f"`{path}` is damaged at byte {position}: {error}") from None
        for stored in batch:
            try:
                if stored[0] in _OF_DIRECTORY_HANDLES:
                    continue  # no handle outlives an upgrade
                found = _converted(stored, version)
            except (ValueError, TypeError, LookupError, AttributeError, struct.error) as error:
                found = Nonsense(f"a record that makes no sense ({error})")
            yield Damage(position, 0, found.why) if isinstance(found, Nonsense) else found
        position = end


def _converted(stored: Any, version: bytes) -> Record | Nonsense:
    tag, *fields = stored
    if version == b"02":
        if tag == "node":  # any kind of inode: how many fields there are tells which
            tag = {7: "directory", 8: "link", 10: "file"}[len(fields)]
        elif tag == "intent":
            request, intent = fields
            fields = [request, *intent]
    if tag in ("directory", "link", "file"):
        fields[1] = fields[1] or None  # the parent
    if tag == "file" and fields[7] is not None:
        fields[7] = PurePosixPath(fields[7]).name  # of a path, of which no more is believed
    elif tag == "open":
        fields[3] = fields[3] or None
    (record,) = decode(encode(_TYPES[tag](*fields)))
    return record


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    raise ValueError("a key that is no text")


class _Marshalled:
    """Reads what :func:`marshal.dumps` makes of the values in a record (CPython's marshal.c)."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0
        self._referenced: list[Any] = []
        self._depth = 0

    def records(self) -> list[Any]:
        """A list of anything. Raises ValueError, IndexError, struct.error, RecursionError."""
        found = self._value()
        if type(found) is list:
            return found
        raise ValueError("no list of records")

    def _value(self) -> Any:
        found = self._next()
        if found is _MISSING:
            raise ValueError("a value is missing")
        return found

    def _next(self) -> Any:
        code = self._content[self._position]
        self._position += 1
        kind = chr(code & ~_IS_REFERENCED)
        index = len(self._referenced)
        if code & _IS_REFERENCED:
            self._referenced.append(_MISSING)  # for containers: none of ours is in there twice
        if kind in "([){":
            return self._container(kind)
        found = self._scalar(kind)
        if code & _IS_REFERENCED:
            self._referenced[index] = found
        return found

    def _scalar(self, kind: str) -> Any:
        match kind:
            case "N":
                return None
            case "T" | "F":
                return kind == "T"
            case "0":
                return _MISSING
            case "i":
                return self._unpack(_INT)
            case "l":
                return self._long()
            case "g":
                return self._unpack(_FLOAT)
            case "s":
                return self._take(self._unpack(_INT))
            case "z" | "Z":
                return self._take(self._take(1)[0]).decode("ascii")
            case "a" | "A":
                return self._take(self._unpack(_INT)).decode("ascii")
            case "u" | "t":
                return self._take(self._unpack(_INT)).decode("utf-8", "surrogatepass")
            case "r":
                return self._reference(self._unpack(_INT))
        raise ValueError(f"no value of a record begins with {kind!r}")

    def _container(self, kind: str) -> Any:
        if self._depth == _DEEPEST:
            raise ValueError("nested too deeply")
        self._depth += 1
        found: Any
        if kind == "{":
            found = {}
            while (key := self._next()) is not _MISSING:
                found[_text(key)] = self._value()
        else:
            count = self._take(1)[0] if kind == ")" else self._unpack(_INT)
            if not 0 <= count <= len(self._content) - self._position:
                raise ValueError(f"{count} values where there is no room for them")
            found = [self._value() for _ in range(count)]
            if kind != "[":
                found = tuple(found)
        self._depth -= 1
        return found

    def _reference(self, index: int) -> Any:
        if not 0 <= index < len(self._referenced) or self._referenced[index] is _MISSING:
            raise ValueError("a reference to nothing")
        return self._referenced[index]

    def _long(self) -> int:
        count = self._unpack(_INT)
        if abs(count) > _MOST_DIGITS:
            raise ValueError("a number that is too large")
        digits = struct.unpack(f"<{abs(count)}H", self._take(2 * abs(count)))
        total: int = sum(digit << (_DIGIT_BITS * place) for place, digit in enumerate(digits))
        return -total if count < 0 else total

    def _unpack(self, form: struct.Struct) -> Any:
        return form.unpack(self._take(form.size))[0]

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if size < 0 or end > len(self._content):
            raise ValueError("it ends too early")
        taken = self._content[self._position : end]
        self._position = end
        return taken
