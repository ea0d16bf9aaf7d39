"""The Store protocol: what the file system may ask of an object store.

Keys are relative to the mount's root (the bucket, or the prefix behind it), use ``/``,
never begin with one, and are ``str``. Every method blocks, may be called from any
thread, retries outages within the retry budget, and raises only errors of
:mod:`sidecar.errors`: SDK exceptions are translated inside the implementation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sidecar.errors import SidecarError
from sidecar.mounter.store.ranges import Range

Properties = Mapping[str, str]
"""What an object has besides content and metadata: content headers, storage class, encryption,
whether there are tags. In its store's own words, opaque to everybody else, and of JSON's types."""


@dataclass(frozen=True, slots=True)
class ProvisionalVersion:
    """A version of what was made just now, which the store may name otherwise from now on.

    ``str()`` is its form in :attr:`ObjectInfo.version`: versions are compared, sent to other
    processes and kept on disk as text, and most of them are the store's own.

    Attributes:
        etag: the name that the store gave when the object was made.
        size_bytes: its length.
        digest: of its metadata, hexadecimal.
    """

    etag: str
    size_bytes: int
    digest: str

    def __str__(self) -> str:
        return f"?{self.size_bytes}:{self.digest}:{self.etag}"

    @classmethod
    def parse(cls, version: str) -> ProvisionalVersion | None:
        """From the text of a version; None for one that the store names."""
        if not version.startswith("?"):
            return None
        found = _PROVISIONAL.fullmatch(version)
        return cls(found[3], int(found[1]), found[2]) if found else None


_PROVISIONAL = re.compile(r"\?(\d+):([0-9a-f]+):(.+)", re.DOTALL)


class ObjectInfo(NamedTuple):
    """One version of one object.

    Attributes:
        key: relative to the mount's root.
        size_bytes: length of the content.
        mtime_s: last modification, seconds since the epoch.
        version: what pins the content: an ETag (S3, Azure) or a generation (GCS). Opaque.
        metadata: user metadata, or None where it was not asked for (a listing never has it).
            Keys that all stores keep are ``[a-z][a-z0-9-]*``, values printable ASCII.
        properties: what else it has, or None where that was not asked for.
    """

    key: str
    size_bytes: int
    mtime_s: float
    version: str
    metadata: Mapping[str, str] | None = None
    properties: Properties | None = None

    @property
    def bare(self) -> tuple[str, int, float, str]:
        """Plain values, without metadata and properties: ``ObjectInfo(*bare)`` is this version."""
        return self[:4]

    @property
    def has_final_version(self) -> bool:
        """Whether the store names ``version`` in its responses: it is not provisional."""
        return ProvisionalVersion.parse(self.version) is None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, in the store's order.

    Attributes:
        objects: objects directly at this level.
        prefixes: common prefixes, each ending in ``/``, relative to the mount's root. One may
            come again on a later page.
        next_token: pass it on for the next page; None on the last one.
    """

    objects: list[ObjectInfo] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_token: str | None = None


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Content that lies in a local file, sent without passing through this process's memory.

    Where the file has become shorter meanwhile, zeros are sent in place of what is gone.

    Attributes:
        fd: open for reading until it is sent; its position is not used.
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


Content = memoryview | bytes | FileSlice

Fetch = Callable[[ObjectInfo, int, memoryview], None]
"""Fills memory from an offset of exactly one version of an object. Raises as ``get_range`` does."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store allows.

    Attributes:
        max_object_bytes: largest object.
        min_part_bytes: smallest part of a multipart upload but the last.
        max_part_bytes: largest part.
        max_parts: most parts of one upload.
        max_metadata_bytes: names and values of an object's metadata together.
        ordered_parts: parts go one behind the other, and none can be sent again.
    """

    max_object_bytes: int
    min_part_bytes: int
    max_part_bytes: int
    max_parts: int
    ordered_parts: bool = False
    max_metadata_bytes: int = 2048


@dataclass(frozen=True, slots=True)
class Condition:
    """When a write may happen: at most one of the two is set.

    Attributes:
        version: only if the object is still this version.
        absent: only if there is no such object.
    """

    version: str | None = None
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Revision:
    """What an object shall become that began as another version.

    Attributes:
        size_bytes: its length.
        changed: ranges, in order, that the old version does not have as they shall be. So is
            everything behind the old version's end.
        content: the bytes of a range, to be sent; what only the old version has is fetched, and
            raises as :meth:`Store.get_range`. Several threads may call it.
        part_bytes: how large the parts shall be that are sent.
        run: calls functions, several at once, and returns once none of them runs any more.
            Raises what one of them raised; those that had not begun then are not called.
    """

    size_bytes: int
    changed: Sequence[Range]
    content: Callable[[int, int], Content]
    part_bytes: int
    run: Callable[[Sequence[Callable[[], object]]], None]


class StoreObserver(Protocol):
    """Who counts what a store does (:mod:`sidecar.metrics` in production)."""

    def request(self, operation: str, seconds: float, code: str) -> None:
        """One request ended.

        ``operation``: list, head, get, put, part, complete, abort, copy, delete, login.
        ``code``: ``ok``, or the stable code of the error.
        """

    def retried(self, operation: str, reason: str) -> None:
        """A request is sent again.

        ``reason``: throttled, server_error, connection, stalled, truncated, credentials.
        """

    def failed(self, operation: str, error: SidecarError) -> None:
        """A call ended with an error, all its requests included; the caller is told, too."""


class Upload(Protocol):
    """One multipart upload. Parts may be sent by several threads at once.

    Attributes:
        state: what :meth:`Store.resume_upload` needs; of JSON's types. It may let whoever
            has it write to the upload, so it is kept like a secret.
    """

    @property
    def state(self) -> Mapping[str, Any]: ...  # noqa: D102 - said above

    def put_part(self, number: int, content: Content) -> str:
        """Send part ``number`` (from 1); its receipt. Sending a number again replaces it.

        Raises Unsupported for a part that is sent, where ``ordered_parts`` is true.
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
            metadata: in place of what the upload was begun with; where the store cannot, the
                answer's ``metadata`` says what the object has.

        Raises AlreadyExists or Stale where ``condition`` fails.
        """

    def abort(self) -> None:
        """Drop every part. Never raises for an upload that is already gone."""


class Store(Protocol):
    """An object store below one root.

    What writes an object may be told ``like`` which other one it is made: it gets the properties
    of that one (asked for where it does not have them), but for what the login may not give it,
    which is said in the log once; and those of an archive, where nobody could read it.
    """

    @property
    def url(self) -> str:
        """The root as the admin wrote it, such as ``s3://bucket/prefix``."""

    @property
    def limits(self) -> Limits:
        """What this store allows."""

    def probe(self) -> None:
        """Check that the bucket can be listed. Raises what a user must be told.

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
        """One page of what begins with ``prefix``. ``delimiter=""`` lists every key below it."""

    def head(self, key: str) -> ObjectInfo:
        """One object with its metadata and properties. Raises NotFound."""

    def get_range(self, key: str, version: str, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` with the bytes from ``offset`` of exactly ``version``.

        Returns the bytes read: fewer than ``len(buffer)`` only at the end of the object.
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
        """Write a whole object. Raises AlreadyExists or Stale where ``condition`` fails."""

    def resolve_version(self, made: ObjectInfo) -> ObjectInfo:
        """What was written, with the version that the store names in listings and reads.

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
        """Go on with an upload of a process that ended. Asks nothing of the store.

        Args:
            state: the upload's.
            parts: what was sent: number to (bytes, receipt).
        """

    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        """Remove what an upload or a patch of a process that ended left.

        Args:
            state: the upload's, or what ``begun`` was given; or ``{"since_s": time}``, for uploads
                of ``key`` that were asked for since that time, in seconds since the epoch, and
                whose state never arrived. Of those only what has no part is removed.

        Never raises for what is already gone.
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
        """Make ``key`` of ranges that ``base`` has and of new content, copying inside the store.

        Args:
            base: the object that ranges are copied from, on condition that it is unchanged.
            revision: what the object shall become.
            begun: called with each state (see :meth:`abandon`) of what must be removed if this
                process ends before the call does.

        Returns:
            None, and nothing is changed, where this store would have to be sent it all.

        Raises Stale where ``base`` is no longer there as it was.
        """

    def copy(
        self,
        source: str,
        target: str,
        *,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Copy on the server's side, ``metadata`` replacing the source's where given.

        The copy is made like the source.
        ``source == target`` with ``metadata`` changes the metadata in place. Raises
        NotFound, and Stale where ``version`` is given and is not the source's.
        """

    def delete(self, key: str) -> None:
        """Delete an object. Deleting what does not exist is not an error."""

    def delete_many(self, keys: list[str]) -> None:
        """Delete objects, in bulk requests where the store has them."""

    def check_key(self, key: str) -> None:
        """Raise NameTooLong for a key that is longer than this store takes. Asks nothing."""

    def close(self) -> None:
        """Close connections. The store is not used afterwards."""
