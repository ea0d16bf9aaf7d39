"""Names of a listing, and what is known of them, as a few byte strings. Pure functions and values.

As Python objects, a million names would take 450 bytes each, and leave holes behind when they go.
Here a name takes its own length and some 32 bytes, and is found without unpacking all.
"""

from __future__ import annotations

import functools
import marshal
import math
import operator
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from sidecar.mounter.filesystem.names.names import LINK_SUFFIX, is_spellable
from sidecar.mounter.filesystem.names.remotes import Listed, from_relative_key, to_relative_key
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import MIB

_FAST: Final = 1  # of zlib
_SMALL_BYTES: Final = 1024
_MOST_JOINED_BYTES: Final = 32 * MIB
_HEX_DIGITS: Final = 32
_UNKNOWN: Final = math.nan
_LINK_SUFFIX: Final = LINK_SUFFIX.encode()
_make_info = functools.partial(tuple.__new__, ObjectInfo)  # half the time of its constructor


class PackedDetails(NamedTuple):
    """What is known of objects beside their keys, a row for each name.

    Attributes:
        sizes: integers, of 32 bits if they suffice.
        times: whole seconds of 32 bits if they suffice, else floats; not a number if nothing is
            known, or there is no object.
        versions: 16 bytes for each if all are 32 hexadecimal digits, else UTF-8.
        ends: where each version ends; None for hexadecimal ones.
        metadata, properties: marshalled; None if none were asked for.
    """

    sizes: array[int]
    times: array[int] | array[float]
    versions: bytes
    ends: array[int] | None
    metadata: tuple[bytes, ...] | None
    properties: tuple[bytes, ...] | None

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        columns = [self.sizes, self.times, self.ends] if self.ends else [self.sizes, self.times]
        row_bytes = sum(column.itemsize for column in columns)
        row_bytes += 8 * sum(column is not None for column in (self.metadata, self.properties))
        return len(self.sizes) * row_bytes + len(self.versions)


def join_keys(keys: Iterable[str]) -> bytes:
    """Relative keys, each between two NUL characters, which no key contains."""
    joined = "\0".join(keys)
    return f"\0{joined}\0".encode("utf-8", "surrogatepass")


def split_keys(joined: bytes) -> list[str]:
    """The reverse of :func:`join_keys`; a list of at least one."""
    return joined.decode("utf-8", "surrogatepass")[1:-1].split("\0")


def pack_keys(keys: Iterable[str]) -> bytes:
    """Relative keys, at least one, in as little space as possible."""
    return compress(join_keys(keys))


def unpack_keys(packed: bytes) -> list[str]:
    """The reverse of :func:`pack_keys`. Raises zlib.error or ValueError for anything else."""
    return split_keys(decompress(packed))


def compress(joined: bytes) -> bytes:
    """Joined keys in less space, if that is worth the time."""
    return zlib.compress(joined, _FAST) if len(joined) >= _SMALL_BYTES else joined


def decompress(keys: bytes) -> bytes:
    """Joined keys, whether compressed or not. Raises zlib.error for anything else."""
    return keys if keys.startswith(b"\0") else zlib.decompress(keys)  # no zlib stream begins so


def check_keys(packed: bytes) -> None:
    """Raise ValueError unless :func:`unpack_keys` can take the bytes."""
    joined = packed
    if not packed.startswith(b"\0"):
        stream = zlib.decompressobj()
        try:
            joined = stream.decompress(packed, _MOST_JOINED_BYTES)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if not stream.eof or stream.unused_data:
            raise ValueError("packed names that are too long, or torn")
    if len(joined) < 2 or not joined.endswith(b"\0"):
        raise ValueError("packed names without an end")
    for key in split_keys(joined):
        name, _ = from_relative_key(key)
        if not is_spellable(name):
            raise ValueError(f"{ascii(name)[:80]} is no name")


def keys_of(listed: Mapping[str, Listed | None], skip: int) -> list[str]:
    """The relative keys of names. ``skip``: length of their directory's key."""
    return [
        known.key[skip:] if type(known) is ObjectInfo else to_relative_key(name, known, skip)
        for name, known in listed.items()  # type(), since this runs for every name
    ]


def pack_details(listed: Mapping[str, Listed | None]) -> PackedDetails | None:
    """What is known of the objects; None if nothing is, or it does not fit."""
    infos = [known if type(known) is ObjectInfo else None for known in listed.values()]
    known = [info for info in infos if info is not None]
    if not known:
        return None
    if len(known) < len(infos):
        nothing = ObjectInfo("", 0, _UNKNOWN, "0" * _HEX_DIGITS)
        known = [nothing if info is None else info for info in infos]
    _, sizes, times, versions, metadata, properties = zip(*known, strict=True)
    try:
        size_column = _integers(sizes)
    except OverflowError:  # a store's nonsense value; it is asked for again if needed
        return None
    ends: array[int] | None = None
    joined = "".join(versions)
    raw = _from_hex(versions, joined)
    if raw is None:
        encoded = [version.encode("utf-8", "surrogatepass") for version in versions]
        raw = b"".join(encoded)
        ends = array("I", accumulate(map(len, encoded)))
    seconds = _whole_seconds(times)
    time_column = array("d", times) if seconds is None else seconds
    return PackedDetails(size_column, time_column, raw, ends, _pack(metadata), _pack(properties))


def _integers(values: Sequence[int]) -> array[int]:
    return array("I" if min(values) >= 0 and max(values) < 1 << 32 else "q", values)


def _whole_seconds(times: Sequence[float]) -> array[int] | None:
    if not all(float(time_s).is_integer() for time_s in times):
        return None
    if min(times) < 0 or max(times) >= 1 << 32:
        return None
    return array("I", map(int, times))


def _from_hex(versions: Sequence[str], joined: str) -> bytes | None:
    if set(map(len, versions)) != {_HEX_DIGITS}:
        return None
    try:
        raw = bytes.fromhex(joined)
    except ValueError:
        return None
    return raw if raw.hex() == joined else None


def _pack(mappings: Sequence[Mapping[str, str] | None]) -> tuple[bytes, ...] | None:
    if all(mapping is None for mapping in mappings):
        return None
    known: dict[bytes, bytes] = {}
    rows = (marshal.dumps(None if m is None else sorted(m.items())) for m in mappings)
    return tuple(known.setdefault(row, row) for row in rows)


def _unpack(row: bytes) -> dict[str, str] | None:
    items = marshal.loads(row)  # noqa: S302 - made by this process
    return None if items is None else dict(items)


def _versions(details: PackedDetails) -> list[str]:
    if details.ends is None:
        text = details.versions.hex()
        return [text[at : at + _HEX_DIGITS] for at in range(0, len(text), _HEX_DIGITS)]
    starts = (0, *details.ends[:-1])
    return [
        details.versions[start:end].decode("utf-8", "surrogatepass")
        for start, end in zip(starts, details.ends, strict=True)
    ]


def unpack(joined: bytes, details: PackedDetails | None, prefix: str) -> dict[str, Listed | None]:
    """Names, in their order, and what is known of each.

    Args:
        joined: their relative keys, from :func:`join_keys`.
        prefix: the directory's key.
    """
    keys = split_keys(joined)
    if details is None:
        return dict(map(from_relative_key, keys))
    times = details.times
    nothing = (None,) * len(keys)
    columns = zip(
        [prefix + key for key in keys],
        details.sizes,
        map(float, times),
        _versions(details),
        nothing if details.metadata is None else map(_unpack, details.metadata),
        nothing if details.properties is None else map(_unpack, details.properties),
        strict=True,
    )
    infos: Iterable[ObjectInfo] = map(_make_info, columns)
    are_files = b"/" not in joined and _LINK_SUFFIX not in joined
    if are_files and not math.isnan(sum(times)):  # the usual directory
        return dict(zip(keys, infos, strict=True))
    listed = dict(map(from_relative_key, keys))
    known = zip(listed, infos, strict=True)
    listed |= {name: info for name, info in known if not math.isnan(info.mtime_s)}
    return listed


def index(joined: bytes) -> array[int] | None:
    """Where each of some joined keys ends, for :func:`find`.

    None if they are not in their order.
    """
    keys = joined[1:-1].split(b"\0")
    if any(map(operator.ge, keys, keys[1:])):
        return None
    type_ = "H" if len(joined) < 1 << 16 else "I"
    return array(type_, accumulate(len(key) + 1 for key in keys))


def find(
    joined: bytes, ends: array[int], details: PackedDetails | None, prefix: str, name: str
) -> tuple[Listed | None] | None:
    """What is known of one name, in a tuple; None if it is none of these names.

    Args:
        joined: the relative keys, from :func:`join_keys`.
        ends: their :func:`index`.
        prefix: the directory's key.
    """

    def key_at(place: int) -> bytes:
        return joined[ends[place - 1] + 1 if place else 1 : ends[place]]

    encoded = name.encode("utf-8", "surrogatepass")
    for suffix in (b"", b"/", _LINK_SUFFIX):
        place = bisect_left(range(len(ends)), encoded + suffix, key=key_at)
        if place == len(ends):
            continue
        found = key_at(place)
        if found == encoded + suffix or (suffix == b"/" and found == encoded + b"//"):
            key = found.decode("utf-8", "surrogatepass")
            info = None
            if details is not None and not key.endswith("/"):
                info = _row(details, place, prefix + key)
            return (from_relative_key(key)[1] if info is None else info,)
    return None


def _row(details: PackedDetails, place: int, key: str) -> ObjectInfo | None:
    time_s = float(details.times[place])
    if math.isnan(time_s):
        return None
    if details.ends is None:
        half = _HEX_DIGITS // 2
        version = details.versions[place * half : (place + 1) * half].hex()
    else:
        start = details.ends[place - 1] if place else 0
        version = details.versions[start : details.ends[place]].decode("utf-8", "surrogatepass")
    metadata, properties = details.metadata, details.properties
    return ObjectInfo(
        key,
        details.sizes[place],
        time_s,
        version,
        None if metadata is None else _unpack(metadata[place]),
        None if properties is None else _unpack(properties[place]),
    )
