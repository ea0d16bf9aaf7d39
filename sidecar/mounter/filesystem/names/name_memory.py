"""The names of all listings of one mount, within a budget of memory.

A listing is a row of chunks, of about a thousand names each. An open chunk is made of Python
objects. When too many are open, those that were not used lately are packed, to a seventh of the
memory. If the budget is still exceeded, packed chunks forget what they know of objects except their
names. Names are never forgotten: a reader of a directory gets each of them once.

Listings of one directory that agree on a stretch of names share the packed chunk. So a chunk ends
at a name that ends a chunk in every listing (:meth:`NameMemory.is_last`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final

from sidecar.mounter.filesystem.names import packed_names
from sidecar.mounter.filesystem.names.packed_names import PackedDetails
from sidecar.mounter.filesystem.names.remotes import ForgottenObject, Listed, to_relative_key
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import MIB

BUDGET_BYTES: Final = 64 * MIB
OPEN_NAME_BYTES: Final = 450
"""The memory of a name in an open chunk: itself, its key, its version, and their containers."""
_OPEN_SHARE: Final = 6
_SHORTEST: Final = 256
_MEAN: Final = 1024
_LONGEST: Final = 4096
_OPENING_LOOKUPS: Final = 128
"""Finding this many names in a packed chunk takes longer than opening it."""


class OpenNames:
    """The names of an open chunk.

    Attributes:
        names: in the order of their places.
        listed: what has each of them; None for a name that is gone, and keeps its place.
    """

    __slots__ = ("_places", "listed", "names")

    def __init__(self, listed: dict[str, Listed | None]) -> None:
        self.names = list(listed)
        self.listed = listed
        self._places: dict[str, int] | None = None

    def place(self, name: str) -> int:
        """The place of a name in the chunk. Raises KeyError."""
        places = self._places
        if places is None or len(places) < len(self.names):
            places = self._places = {known: place for place, known in enumerate(self.names)}
        return places[name]


class _PackedNames:
    """A packed chunk, which other listings may share.

    Attributes:
        keys: joined; compressed if the details are forgotten.
        index: where each key is; None if the keys are not in order, or compressed.
        details: None if they are forgotten, or there are none.
        chunks: how many chunks have this content.
        lookups: how many names were looked up since it was packed.
    """

    __slots__ = ("chunks", "details", "digest", "index", "keys", "lookups")

    def __init__(self, digest: bytes, keys: bytes, details: PackedDetails | None) -> None:
        self.digest = digest
        self.keys = keys
        self.index = packed_names.index(keys)
        self.details = details
        self.chunks = 0
        self.lookups = 0

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        details_bytes = self.details.size_bytes if self.details is not None else 0
        index_bytes = len(self.index) * self.index.itemsize if self.index is not None else 0
        return len(self.keys) + index_bytes + details_bytes

    def forget_details(self) -> None:
        """Keep the names only, in less space."""
        self.index = self.details = None
        self.keys = packed_names.compress(self.keys)


class Chunk:
    """A stretch of names of one listing, used through its :class:`NameMemory`.

    Attributes:
        count: the number of its names. Names are only added at the end.
        prefix: the directory's key.
        opened: set while it is open.
        packed: set while it is packed, or has not changed since.
        is_used: whether it was used since it was last considered for packing.
    """

    __slots__ = ("count", "is_used", "opened", "packed", "prefix")

    def __init__(self, prefix: str) -> None:
        self.count = 0
        self.prefix = prefix
        self.opened: OpenNames | None = OpenNames({})
        self.packed: _PackedNames | None = None
        self.is_used = True


class NameMemory:
    """The chunks of one mount's listings. Safe to use from any thread.

    Its lock is held for no call out of this module, so it may be taken under any other lock.

    Args:
        budget_bytes: memory for names and what is known of them.
    """

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._most_open_names = budget_bytes // (_OPEN_SHARE * OPEN_NAME_BYTES)
        self._lock = threading.Lock()
        self._open: OrderedDict[Chunk, None] = OrderedDict()
        self._open_names = 0
        self._packed: dict[bytes, _PackedNames] = {}
        self._detailed: OrderedDict[bytes, _PackedNames] = OrderedDict()  # the oldest first
        self._packed_bytes = 0
        self._released: deque[list[Chunk]] = deque()

    @property
    def used_bytes(self) -> int:
        """About how much memory the names take."""
        return self._packed_bytes + self._open_names * OPEN_NAME_BYTES

    # --- chunks -----------------------------------------------------------------------------

    def new(self, prefix: str) -> Chunk:
        """An empty chunk of a listing of the directory with this key."""
        chunk = Chunk(prefix)
        with self._lock:
            self._release()
            self._open[chunk] = None
        return chunk

    @staticmethod
    def is_last(count: int, name: str) -> bool:
        """Whether a chunk must end with ``name``, the last of its ``count`` names."""
        return count >= _SHORTEST and (not hash(name) % _MEAN or count >= _LONGEST)

    def names(self, chunk: Chunk) -> OpenNames:
        """The names of a chunk. They change with it while it stays open."""
        opened = chunk.opened
        if opened is None:
            with self._lock:
                opened = self._opened(chunk)
                self._make_room(chunk)
        chunk.is_used = True
        return opened

    def find(self, chunk: Chunk, name: str) -> tuple[Listed | None] | None:
        """What has a name, in a tuple; None if the chunk does not have the name.

        A few names of a packed chunk are found without opening it.
        """
        opened, packed = chunk.opened, chunk.packed
        if opened is None and packed is not None:
            packed.lookups += 1
            keys, index, details = packed.keys, packed.index, packed.details
            if index is not None and packed.lookups < _OPENING_LOOKUPS:
                return packed_names.find(keys, index, details, chunk.prefix, name)
        listed = self.names(chunk).listed
        return (listed[name],) if name in listed else None

    def add(self, chunk: Chunk, listed: Mapping[str, Listed | None]) -> None:
        """Add names that the chunk does not have."""
        with self._lock:
            opened = self._opened(chunk)
            self._unshare(chunk)
            self._open[chunk] = None
            opened.listed.update(listed)
            opened.names.extend(listed)
            chunk.count += len(listed)
            self._open_names += len(listed)
            self._make_room(chunk)

    def set(self, chunk: Chunk, name: str, listed: Listed | None) -> None:
        """Change what has a name of a chunk; None: nothing."""
        with self._lock:
            self._opened(chunk).listed[name] = listed
            self._unshare(chunk)
            self._make_room(chunk)

    def rename(
        self, chunk: Chunk, prefix: str, copied: Mapping[str, tuple[ObjectInfo, ObjectInfo]]
    ) -> int:
        """Note that the directory has the key ``prefix`` now, and its objects are copies.

        Returns how many names of the chunk are still taken.

        Args:
            copied: old key to (the version that was copied, the copy).
        """
        with self._lock:
            listed, skip = self._opened(chunk).listed, len(chunk.prefix)
            self._unshare(chunk)
            for name, known in listed.items():
                if isinstance(known, ObjectInfo | ForgottenObject):
                    old_key = chunk.prefix + to_relative_key(name, known, skip)
                    pair = copied.get(old_key)
                    listed[name] = pair[1] if pair is not None else None
            chunk.prefix = prefix
            shown = sum(known is not None for known in listed.values())
            self._make_room(chunk)
            return shown

    def packed_keys(self, chunk: Chunk) -> bytes:
        """The relative keys of all its names, for :func:`packed_names.unpack_keys`."""
        with self._lock:
            if chunk.packed is not None:
                keys = packed_names.decompress(chunk.packed.keys)
                return packed_names.compress(keys)
            assert chunk.opened is not None
            listed = chunk.opened.listed
            return packed_names.pack_keys(packed_names.keys_of(listed, len(chunk.prefix)))

    def release(self, chunks: list[Chunk]) -> None:
        """Note that nobody uses these chunks any more. Takes no lock: finalizers may call it."""
        self._released.append(chunks)

    # --- the budget -------------------------------------------------------------------------

    def tidy(self) -> None:
        """Free released chunks."""
        with self._lock:
            self._release()

    def shrink(self, target_bytes: int) -> None:
        """Take no more than ``target_bytes`` if that is possible without losing a name."""
        with self._lock:
            self._release()
            while self._open and self.used_bytes > target_bytes:
                self._pack(self._open.popitem(last=False)[0])
            self._forget_details(target_bytes)

    def _make_room(self, needed: Chunk) -> None:
        """Pack chunks that were not used lately. The caller holds the lock."""
        if self._open_names <= self._most_open_names:
            return
        self._release()
        looked_at = 0
        while self._open_names > self._most_open_names and len(self._open) > 1:
            chunk = next(iter(self._open))
            looked_at += 1
            if chunk is needed or (chunk.is_used and looked_at <= len(self._open)):
                chunk.is_used = False
                self._open.move_to_end(chunk)
            else:
                del self._open[chunk]
                self._pack(chunk)
        self._forget_details(self.budget_bytes)

    def _forget_details(self, target_bytes: int) -> None:
        while self._detailed and self.used_bytes > target_bytes:
            packed = self._detailed.popitem(last=False)[1]
            before = packed.size_bytes
            packed.forget_details()
            self._packed_bytes += packed.size_bytes - before

    def _release(self) -> None:
        while self._released:
            for chunk in self._released.popleft():
                if chunk.opened is not None:
                    self._open.pop(chunk, None)
                    self._open_names -= chunk.count
                    chunk.opened = None
                self._unshare(chunk)

    # --- open, packed, and back -------------------------------------------------------------

    def _opened(self, chunk: Chunk) -> OpenNames:
        opened = chunk.opened
        if opened is None:
            packed = chunk.packed
            assert packed is not None
            joined = packed_names.decompress(packed.keys)
            opened = OpenNames(packed_names.unpack(joined, packed.details, chunk.prefix))
            chunk.opened = opened
            packed.lookups = 0
            self._open[chunk] = None
            self._open_names += chunk.count
        return opened

    def _pack(self, chunk: Chunk) -> None:
        opened = chunk.opened
        assert opened is not None
        if chunk.packed is None and chunk.count:
            keys = packed_names.keys_of(opened.listed, len(chunk.prefix))
            chunk.packed = self._share(
                packed_names.join_keys(keys), packed_names.pack_details(opened.listed)
            )
        if chunk.packed is not None:
            chunk.opened = None
            self._open_names -= chunk.count

    def _share(self, keys: bytes, details: PackedDetails | None) -> _PackedNames:
        digest = hashlib.blake2b(keys, digest_size=16)
        if details is not None:
            digest.update(f"{details.sizes.typecode}{details.times.typecode}".encode())
        for column in details or ():
            digest.update(b"".join(column) if isinstance(column, tuple) else column or b"")
        packed = self._packed.get(digest.digest())
        if packed is None:
            packed = _PackedNames(digest.digest(), keys, details)
            self._packed[packed.digest] = self._detailed[packed.digest] = packed
            self._packed_bytes += packed.size_bytes
        packed.chunks += 1
        return packed

    def _unshare(self, chunk: Chunk) -> None:
        """Drop the packed form of a chunk, which is out of date."""
        packed, chunk.packed = chunk.packed, None
        if packed is not None:
            packed.chunks -= 1
            if not packed.chunks:
                del self._packed[packed.digest]
                self._detailed.pop(packed.digest, None)
                self._packed_bytes -= packed.size_bytes
