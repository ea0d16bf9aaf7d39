"""S3, and servers that speak its API. Imports no SDK.

Conditions of a write or a copy are sent. Many servers ignore them (MinIO's gateway in JuiceFS and
rclone do). So behind an endpoint of its own a HEAD checks them first, unless the server was tried
(:meth:`S3Store.try_conditions`). Behind a server that ignores them, another writer may come
between.

User metadata: keys of ``[a-z0-9-]``, ASCII values, kept as ``x-amz-meta-`` headers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from sidecar.errors import NotFound, SidecarError, Unsupported
from sidecar.mounter.store.http.signed_request import BufferedResponse
from sidecar.mounter.store.http.values import iso_time_s
from sidecar.mounter.store.http.xml_body import FORBIDDEN
from sidecar.mounter.store.interface import (
    Condition,
    Content,
    Limits,
    ObjectInfo,
    ProvisionalVersion,
    Revision,
    StoreObserver,
)
from sidecar.mounter.store.login import CredentialSource
from sidecar.mounter.store.patch_plan import Piece, plan, split
from sidecar.mounter.store.s3.client import S3Client
from sidecar.mounter.store.s3.repeated_properties import S3Properties
from sidecar.mounter.store.s3.requests import (
    ACCEPTED,
    date_s,
    metadata_headers,
)
from sidecar.mounter.store.s3.upload import S3Upload, S3Uploads
from sidecar.mounter.store.s3.versions import (
    IF_MATCH,
    IF_NONE_MATCH,
    SOURCE,
    SOURCE_IF_MATCH,
    etag_of,
    if_match,
    unmet_conditions,
)
from sidecar.mounter.store.signing import clock
from sidecar.mounter.store.store_errors import Call
from sidecar.units import GIB, MIB

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

T = TypeVar("T")

MAX_COPY_BYTES = 5 * GIB
"""The largest object that CopyObject takes; larger ones are copied in parts."""
COPY_PART_BYTES = GIB
_LARGEST_UNCOPIED_BYTES = 5 * MIB
"""Ranges are copied only of larger objects (x-amz-copy-source-range of UploadPartCopy)."""
DELETE_BATCH = 1000

_REFUSED = frozenset({400, 403, 404, 405, 412, 501})
"""Statuses for a request that is not allowed, or whose condition fails or is not supported."""


class S3Store(S3Client):
    """A bucket of S3, or of a server that speaks it."""

    type_property = "content-type"
    limits = Limits(
        max_object_bytes=10_000 * 5 * GIB,
        min_part_bytes=5 * MIB,
        max_part_bytes=5 * GIB,
        max_parts=10_000,
    )
    _copies_parts = True  # until the store refuses

    def __init__(
        self,
        source: StoreSource,
        credentials: CredentialSource,
        *,
        retry_budget_s: float,
        observer: StoreObserver,
    ) -> None:
        super().__init__(source, credentials, retry_budget_s=retry_budget_s, observer=observer)
        self._uploads = S3Uploads(self, self._s3)
        self._properties = S3Properties(self, self._s3)

    def version_to_read(self, key: str, version: str) -> str:
        """As :meth:`.HttpStore.version_to_read`."""
        return self._found(key, version).version if ProvisionalVersion.parse(version) else version

    def put(
        self,
        key: str,
        content: Content,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.put`. ``mtime_s`` is the store's clock when it answered."""
        if condition is not None and not self._checks(
            IF_NONE_MATCH if condition.absent else IF_MATCH
        ):
            self.check_condition(key, condition)
        properties = self.properties_of_new(key, like)
        repeated = self._properties.repeated(like, properties)
        call = Call("put", key, condition)

        def write(conditions: Mapping[str, str]) -> BufferedResponse:
            own = {**metadata_headers(metadata), **conditions}
            return self.property_keeper.write(
                repeated,
                lambda headers: self.request(
                    call, "PUT", key, {}, {**headers, **own}, body=(content,)
                ),
            )

        reply = self.conditionally(key, condition, write)
        version = etag_of(reply.headers.get("etag"))
        if not version:
            return self.head(key)
        made_s = date_s(reply)
        return ObjectInfo(key, len(content), made_s, version, metadata or {}, properties)

    def try_conditions(self, key: str) -> None:
        """As :meth:`Store.try_conditions`: writes and copies that must be refused."""
        if not self._login.credentials.endpoint_url:
            return
        for name, headers in unmet_conditions(self._s3.source(key)).items():
            sign = functools.partial(self._s3.request, "PUT", key, {}, headers)
            reply = self.transfer(Call("put", key), sign, (), {*ACCEPTED, *_REFUSED})
            if reply.status == HTTPStatus.PRECONDITION_FAILED:
                self.conditions.add(name)

    def _checks(self, name: str) -> bool:
        return name in self.conditions or not self._login.credentials.endpoint_url

    def source_of_copy(self, key: str, known: ObjectInfo | None) -> ObjectInfo:
        """As in the base class. A provisional version, or one without ETag, is no condition."""
        if known is not None and not (
            self._checks(SOURCE_IF_MATCH) and if_match("", known.version)
        ):
            known = ObjectInfo(*known.bare)  # so that they are asked for
        return super().source_of_copy(key, known)

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> S3Upload:
        """As :meth:`Store.start_upload`."""
        properties = self.properties_of_new(key, like)
        repeated = self._properties.repeated(like, properties)
        return self._uploads.start(
            key, metadata or {}, properties, repeated, like.version if like else ""
        )

    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> S3Upload:
        """As :meth:`Store.resume_upload`."""
        known = {number: (receipt, size) for number, (size, receipt) in parts.items()}
        return self._uploads.resume(key, state, known)

    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        """As :meth:`Store.abandon`."""
        if "upload" in state:
            self.resume_upload(key, state, {}).abort()
        else:
            self._uploads.abort_nameless(key, state["since_s"])

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
        """As :meth:`Store.patch`: unchanged ranges are copied as parts."""
        if base.size_bytes <= _LARGEST_UNCOPIED_BYTES:
            return None
        pieces = plan(
            base.size_bytes,
            revision.size_bytes,
            revision.changed,
            self.limits,
            sent_part_bytes=revision.part_bytes,
            copied_part_bytes=COPY_PART_BYTES,
        )
        if pieces is None or not self._copies_ranges_of(base.key):
            return None
        if not base.has_final_version:
            base = self._found(base.key, base.version)
        unchanged = if_match(SOURCE_IF_MATCH, base.version)
        if not unchanged:
            return None
        source = {SOURCE: self._s3.source(base.key), **unchanged}
        begun({"since_s": time.time()})
        upload = self.start_upload(key, metadata, like=like)
        begun(upload.state)

        def make(number: int, piece: Piece) -> None:
            if piece.copied:
                upload.copy_part(number, source, piece.start, piece.end - 1)
            else:
                content = revision.content(piece.start, piece.end - piece.start)
                upload.put_part(number, content)

        try:
            revision.run(
                [functools.partial(make, number, piece) for number, piece in enumerate(pieces, 1)]
            )
            self._check_source(base)
            return upload.complete()
        except NotFound:
            upload.abort()
            raise self.errors.stale(base.key) from None
        except Unsupported:
            self._copies_parts = False
            upload.abort()
            return None
        except SidecarError:
            upload.abort()
            raise

    def copy(
        self,
        source: str,
        target: str,
        *,
        known: ObjectInfo | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.copy`. In place it makes a new version."""
        found = self.source_of_copy(source, known)
        kept = found.metadata if metadata is None else metadata
        own = {
            SOURCE: self._s3.source(source),
            **if_match(SOURCE_IF_MATCH, found.version),
        }
        if found.size_bytes > MAX_COPY_BYTES:
            return self._copy_parts(found, target, kept or {}, own)
        own["x-amz-metadata-directive"] = "COPY" if metadata is None else "REPLACE"
        own.update(metadata_headers(metadata))
        fields = self.property_keeper.write(
            self._properties.repeated_by_copy(found, replace=metadata is not None),
            lambda headers: self.request_slow(
                Call("copy", source), "PUT", target, {}, {**headers, **own}
            ),
        ).fields
        try:
            mtime_s = iso_time_s(fields["LastModified"])
        except (ValueError, LookupError):
            what = f"its answer to copy of `{source}` lacks fields"
            raise self.malformed("copy", what) from None
        return found._replace(
            key=target, mtime_s=mtime_s, version=etag_of(fields.get("ETag")), metadata=kept
        )

    def _copy_parts(
        self,
        found: ObjectInfo,
        target: str,
        metadata: Mapping[str, str],
        source: Mapping[str, str],
    ) -> ObjectInfo:
        if not self._copies_ranges_of(found.key):
            raise Unsupported(f"{self.errors} copies no ranges of `{found.key}`")
        upload = self.start_upload(target, metadata, like=found)
        try:
            ranges = split(0, found.size_bytes, COPY_PART_BYTES, self.limits)
            for number, (start, end) in enumerate(ranges, 1):
                upload.copy_part(number, source, start, end - 1)
            self._check_source(found)
            return self.resolve_version(upload.complete())
        except SidecarError:
            upload.abort()
            raise

    def _copies_ranges_of(self, key: str) -> bool:
        """Whether an object's ranges can be copied as parts, as far as it is known.

        Ceph's gateway decodes the source's name twice, so it takes another object's bytes if the
        name looks escaped.
        """
        name = self.full(key)
        unescaped = not self._login.credentials.endpoint_url or unquote(name) == name
        return self._copies_parts and unescaped

    def _check_source(self, source: ObjectInfo) -> None:
        """Raise Stale or NotFound if ranges may have been copied from another version.

        AWS checks the condition of each copy; Ceph's gateway takes it and does not.
        """
        endpoint = self._login.credentials.endpoint_url
        if endpoint and not self._is_version(self._head(source.key), source.version):
            raise self.errors.stale(source.key)

    def delete(self, key: str) -> None:
        """As :meth:`Store.delete`."""
        try:
            self.request(Call("delete", key), "DELETE", key, {})
        except NotFound:
            return  # S3 itself never answers this; other servers do

    def delete_many(self, keys: list[str]) -> None:
        """As :meth:`Store.delete_many`, a thousand in a request, through s3fs.

        A key that XML cannot hold is deleted alone, with its name in the path. So is a key that
        the store refuses, so that it is retried and explained, and every key if the node's clock,
        which s3fs signs by, is wrong.
        """
        alone: list[str] = []
        bulk: list[str] = []
        for key in keys:
            name = self.full(key)
            if clock.ahead_s or FORBIDDEN.search(name):
                alone.append(key)
            else:
                bulk.append(name)
        for start in range(0, len(bulk), DELETE_BATCH):
            batch = bulk[start : start + DELETE_BATCH]
            call = Call("delete", self._relative(batch[0]))
            refused = self.retry.run("delete", functools.partial(self._sdk.delete, call, batch))
            alone += map(self._relative, refused)
        for key in alone:
            self.delete(key)
