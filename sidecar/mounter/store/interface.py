"""The Store protocol: what the file system may ask of an object store.

Keys are relative to the mount's root (the bucket, or the prefix behind it). They use ``/`` and
never begin with one. Every method blocks, may be called from any thread, retries outages within
the retry budget, and raises only errors of :mod:`sidecar.errors`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sidecar.errors import SidecarError
from sidecar.mounter.store.ranges import Range

Properties = Mapping[str, str]
"""An object's properties beside content and metadata: content headers, storage class, encryption,
number of tags. Names and values are the store's own, opaque to others, of JSON's types."""


@dataclass(frozen=True, slots=True)
class ProvisionalVersion:
    """The version of a new object that the store may still rename.

    ``str()`` is its form in :attr:`ObjectInfo.version`: versions are compared, sent to other
    processes and kept on disk as text, and most of them are the store's own.

    Attributes:
        etag: the store's name for it when the object was made.
        size_bytes: its length.
        digest: of the object's metadata, hexadecimal.
    """

    etag: str
    size_bytes: int
    digest: str

    def __str__(self) -> str:
        return f"?{self.size_bytes}:{self.digest}:{self.etag}"

    @classmethod
    def parse(cls, version: str) -> ProvisionalVersion | None:
        """The version from its text; None if the store itself named the version."""
        if not version.startswith("?"):
            return None
        found = _PROVISIONAL.fullmatch(version)
        return cls(found[3], int(found[1]), found[2]) if found else None


_PROVISIONAL = re.compile(r"\?([0-9]{1,20}):([0-9a-f]+):(.+)", re.DOTALL)


class ObjectInfo(NamedTuple):
    """One version of one object.

    Attributes:
        key: relative to the mount's root.
        size_bytes: length of the content.
        mtime_s: last modification, seconds since the epoch.
        version: pins the content: an ETag (S3, Azure) or a generation (GCS). Opaque.
        metadata: user metadata, or None if it was not asked for.
            Keys that all stores keep are ``[a-z][a-z0-9-]*``, values printable ASCII.
        properties: see :data:`Properties`; None if they were not asked for.
    """

    key: str
    size_bytes: int
    mtime_s: float
    version: str
    metadata: Mapping[str, str] | None = None
    properties: Properties | None = None

    @property
    def bare(self) -> tuple[str, int, float, str]:
        """Without metadata and properties: ``ObjectInfo(*bare)`` is the same version."""
        return self[:4]

    @property
    def is_complete(self) -> bool:
        """Whether metadata and properties are known."""
        return self.metadata is not None and self.properties is not None

    @property
    def has_final_version(self) -> bool:
        """Whether the store uses ``version`` in its responses, so that it is not provisional."""
        return ProvisionalVersion.parse(self.version) is None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, in the store's order.

    Attributes:
        objects: objects directly at this level.
        prefixes: common prefixes, each ending in ``/``, relative to the mount's root. A later
            page may repeat one.
        next_token: for the next page; None on the last one.
    """

    objects: list[ObjectInfo] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_token: str | None = None


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Content in a local file, sent without a copy in this process's memory.

    If the file has become shorter, zeros are sent for the missing bytes.

    Attributes:
        fd: open for reading until the content is sent; its position is not used.
        offset: first byte.
        size_bytes: how many.
    """

    fd: int
    offset: int
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes

    def part(self, start: int, size_bytes: int) -> FileSlice:
        """``size_bytes`` of it from its byte ``start`` on."""
        return FileSlice(self.fd, self.offset + start, size_bytes)


Arrived = Callable[[int], None]
"""Called with the number of bytes that have arrived."""
Content = memoryview | bytes | FileSlice

Fetch = Callable[[ObjectInfo, int, memoryview], None]
"""Fills memory from an offset of one version of an object. Raises as :meth:`Store.get_range`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store allows.

    Attributes:
        max_object_bytes: largest object.
        min_part_bytes: smallest part of a multipart upload; the last may be smaller.
        max_part_bytes: largest part.
        max_parts: most parts of one upload.
        max_metadata_bytes: names and values of an object's metadata together.
    """

    max_object_bytes: int
    min_part_bytes: int
    max_part_bytes: int
    max_parts: int
    max_metadata_bytes: int = 2048


@dataclass(frozen=True, slots=True)
class Condition:
    """When a write may happen. At most one of the two is set.

    Attributes:
        version: only if the object is still this version.
        absent: only if there is no such object.
    """

    version: str | None = None
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Revision:
    """The next version of an object, as changes to an older one.

    Attributes:
        size_bytes: its length.
        changed: ranges, in order, that differ from the old version. Everything after the old
            version's end differs, too.
        content: returns the bytes of a range. Fetches those that only the old version has, and
            raises as :meth:`Store.get_range`. Several threads may call it.
        part_bytes: the wanted size of parts that are sent.
        run: calls functions, several at once, and returns when none of them runs any more.
            Raises what one of them raised; functions that had not begun then are not called.
    """

    size_bytes: int
    changed: Sequence[Range]
    content: Callable[[int, int], Content]
    part_bytes: int
    run: Callable[[Sequence[Callable[[], object]]], None]


class StoreObserver(Protocol):
    """Counts what a store does (:mod:`sidecar.metrics` in production)."""

    def request(self, operation: str, seconds: float, code: str) -> None:
        """One request ended.

        ``operation``: list, head, get, put, part, complete, abort, copy, delete, login.
        ``code``: ``ok``, or the stable code of the error.
        """

    def retried(self, operation: str, reason: str) -> None:
        """A request is sent again.

        ``reason``: throttled, server_error, connection, stalled, truncated, credentials, hedged
        (it is slow, and the first answer counts).
        """

    def throttled(self, seconds: float) -> None:
        """A request is held back for so long, because the store said that there are too many."""

    def hidden(self, reason: str) -> None:
        """An object is left out of a listing. ``reason``: entry (the entry makes no sense)."""

    def failed(self, operation: str, error: SidecarError) -> None:
        """A call failed, after all its attempts. The caller gets the error, too."""


class Upload(Protocol):
    """One multipart upload. Parts may be sent by several threads at once.

    Attributes:
        ordered_parts: parts are sent in order, and none can be sent again.
        state: what :meth:`Store.resume_upload` needs, of JSON's types. It may allow writing
            to the upload, so it is kept like a secret.
    """

    @property
    def ordered_parts(self) -> bool: ...  # noqa: D102 - said above

    @property
    def state(self) -> Mapping[str, Any]: ...  # noqa: D102 - said above

    def put_part(self, number: int, content: Content) -> str:
        """Send part ``number`` (from 1), or replace it. Returns its receipt.

        Raises Unsupported for a part that was sent, if ``ordered_parts``.
        """

    def complete(
        self,
        condition: Condition | None = None,
        *,
        parts: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Make the object from all parts, or from the first ``parts``.

        Args:
            metadata: instead of what the upload was begun with. If the store cannot do that, the
                result's ``metadata`` is what the object has.

        Raises AlreadyExists or Stale if ``condition`` fails.
        """

    def abort(self) -> None:
        """Drop every part. Never raises for an upload that is already gone."""


class Store(Protocol):
    """An object store below one root.

    Attributes:
        conditions: which conditions the store checks (:meth:`try_conditions`), as this process or
            another found. For others, one more request checks before each write.

    A method that writes an object takes ``like``, the object whose properties the new one gets.
    They are asked for if ``like`` lacks them. Properties that the login may not set are left out,
    which is logged once; so is a storage class from which nothing can be read.
    """

    conditions: set[str]

    @property
    def url(self) -> str:
        """The root as the admin wrote it, such as ``s3://bucket/prefix``."""

    def origin(self) -> str:
        """A text that is equal for stores that serve the same bytes, vouched for by the same party.

        It names what is kept where others read it: bytes that came by a way which somebody chose
        are not what another reader asked for. The URL is not enough, since it only names the
        bucket.
        """

    @property
    def limits(self) -> Limits:
        """What this store allows."""

    def probe(self) -> None:
        """Check that the bucket can be listed. Raises errors that a user must be told.

        One attempt, no retries: the caller owns the deadline.
        BucketNotFound, AccessDenied, LoginRejected, EndpointUnreachable, TlsUntrusted.
        """

    def list_page(
        self,
        prefix: str,
        token: str | None = None,
        *,
        delimiter: str = "/",
        limit: int = 1000,
    ) -> Page:
        """One page of the names that begin with ``prefix``. ``delimiter=""`` lists all keys below.

        Args:
            limit: the most entries. With 1, whether there is any, and it may be an object from
                further below.
        """

    def head(self, key: str) -> ObjectInfo:
        """One object with its metadata and properties. Raises NotFound."""

    def get_range(
        self,
        key: str,
        version: str | None,
        offset: int,
        buffer: memoryview,
        arrived: Arrived | None = None,
    ) -> int:
        """Fill ``buffer`` with the bytes from ``offset`` of exactly ``version``; None: of any.

        Args:
            arrived: called by this thread, as often as the store sees fit, with the number of bytes
                from the start of ``buffer`` that have arrived. They stay valid if the rest fails.

        Returns the number of bytes read: fewer than ``len(buffer)`` only at the object's end.
        Raises Stale when the object has another version, NotFound when it is gone.
        """

    def put(
        self,
        key: str,
        content: Content,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo:
        """Write a whole object. Raises AlreadyExists or Stale if ``condition`` fails."""

    def try_conditions(self, key: str) -> None:
        """Find out which conditions the store checks, if that is not known (``conditions``).

        Args:
            key: of an object that nobody else uses, and that may be replaced.
        """

    def resolve_version(self, made: ObjectInfo) -> ObjectInfo:
        """A written object with the version that the store names in listings and reads.

        That is ``made`` itself if its version is final. The other methods take both versions.
        If the object is gone or replaced, the version is one that no reader finds.
        """

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> Upload:
        """Begin a multipart upload."""

    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> Upload:
        """Continue an upload of a process that ended, without asking the store.

        Args:
            state: the upload's.
            parts: the parts that were sent: number to (bytes, receipt).
        """

    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        """Remove what an upload or a patch of a process that ended has left.

        Args:
            state: the upload's, or the one that ``begun`` got. ``{"since_s": time}`` stands for
                uploads of ``key`` whose state never arrived, requested since that time in
                seconds since the epoch; only those without a part are removed.

        Never raises for what is gone already.
        """

    def patch(
        self,
        base: ObjectInfo,
        key: str,
        revision: Revision,
        metadata: Mapping[str, str],
        begun: Callable[[Mapping[str, Any]], None],
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo | None:
        """Make ``key`` of ranges of ``base``, copied inside the store, and of new content.

        Args:
            base: the object whose ranges are copied, on condition that it is unchanged.
            revision: what the object shall become.
            begun: called with the state (see :meth:`abandon`) of everything that must be removed
                if this process ends before the call does.

        Returns:
            None, with nothing changed, if all of it would have to be sent to this store.

        Raises Stale if ``base`` is no longer the object's version.
        """

    def copy(
        self,
        source: str,
        target: str,
        *,
        known: ObjectInfo | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Copy on the server's side. The copy has the source's properties.

        ``source == target`` changes the metadata in place.

        Args:
            known: the version that the source must have; None for any. Metadata and properties that
                it lacks are asked for.
            metadata: the target's; None for the source's.

        Raises NotFound, and Stale if the source is not that version.
        """

    def delete(self, key: str) -> None:
        """Delete an object. Deleting what does not exist is not an error."""

    def delete_many(self, keys: list[str]) -> None:
        """Delete objects, in bulk if the store can."""

    def check_key(self, key: str) -> None:
        """Raise NameTooLong for a key that is longer than this store takes, without asking it."""

    def close(self) -> None:
        """Close connections. The store is not used afterwards."""
