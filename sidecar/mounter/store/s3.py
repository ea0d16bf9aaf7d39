"""S3: logs in and copies through s3fs; lists, reads and sends content without it.

Conditions of a write are sent, and because many servers ignore them (MinIO's gateway in JuiceFS
and rclone do) a HEAD checks them before: on such a server another writer may come between.

User metadata: keys of ``[a-z0-9-]``, ASCII values, kept as ``x-amz-meta-`` headers.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from sidecar.errors import NotFound, SidecarError
from sidecar.mounter.credentials import S3Credentials
from sidecar.mounter.store.answers import Answer, Place, Request, parse_retry_after
from sidecar.mounter.store.base import (
    Condition,
    Content,
    Limits,
    ObjectInfo,
    Piece,
    StoreObserver,
)
from sidecar.mounter.store.cloud import QUICK_TIMEOUT_S, TRANSFER_TIMEOUT_S, CloudStore
from sidecar.mounter.store.connections import (
    MAX_CONNECTIONS,
    authorities_file,
)
from sidecar.mounter.store.login import CredentialSource, Login
from sidecar.mounter.store.retry import Again
from sidecar.mounter.store.s3_dialect import (
    DEFAULT_REGION,
    S3Dialect,
    etag_of,
    if_match,
    no_identity,
    version_of,
)
from sidecar.units import GIB, MIB

if TYPE_CHECKING:
    from sidecar.spec import StoreSource

MAX_COPY_BYTES = 5 * GIB
"""Largest object that CopyObject takes; above it the parts are copied."""
COPY_PART_BYTES = GIB
DELETE_BATCH = 1000


class S3Store(CloudStore[S3Credentials]):
    """A bucket of S3, or of a server that speaks it."""

    limits = Limits(
        max_object_bytes=10_000 * 5 * GIB,
        min_part_bytes=5 * MIB,
        max_part_bytes=5 * GIB,
        max_parts=10_000,
    )

    def __init__(
        self,
        source: StoreSource,
        credentials: CredentialSource,
        *,
        retry_budget_s: float,
        observer: StoreObserver,
    ) -> None:
        login = Login(credentials, S3Credentials)
        self._s3 = dialect = S3Dialect(source, login)
        super().__init__(
            source,
            place=Place("S3", source.bucket, str(dialect.endpoint)),
            login=login,
            endpoint=dialect.endpoint,
            dialect=dialect,
            retry_budget_s=retry_budget_s,
            observer=observer,
        )

    # --- login -----------------------------------------------------------------------

    def _connect(self) -> Any:
        from s3fs import S3FileSystem

        login = self._login.credentials
        config: dict[str, Any] = {
            "connect_timeout": 5,
            "read_timeout": TRANSFER_TIMEOUT_S,
            "max_pool_connections": MAX_CONNECTIONS,
            "retries": {"max_attempts": 0},  # ours are the only ones
        }
        if login.endpoint_url:
            # Many servers that speak S3 know neither the new checksums nor host names
            # made of buckets.
            config["request_checksum_calculation"] = "when_required"
            config["response_checksum_validation"] = "when_required"
            config["s3"] = {"addressing_style": "path"}
        sdk = S3FileSystem(
            anon=login.anonymous,
            key=login.access_key_id,
            secret=login.secret_access_key,
            token=login.session_token,
            endpoint_url=login.endpoint_url,
            use_ssl=login.use_tls,
            client_kwargs={
                "region_name": login.region or DEFAULT_REGION,
                "verify": authorities_file() if login.verify_tls else False,
            },
            config_kwargs=config,
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        sdk.retries = 1
        sdk.connect()  # makes the client; asks nothing of the store
        sdk.s3.meta.events.register("before-sign.s3.DeleteObjects", _add_content_md5)
        return sdk

    def _disconnect(self, sdk: Any) -> None:
        if sdk._s3 is not None:
            sdk.close_session(sdk.loop, sdk._s3creator)

    def _sdk_errors(self) -> tuple[type[BaseException], ...]:
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError

        # OSError: how s3fs wraps what the store answered; also sockets and time-outs.
        return (OSError, BotoCoreError, ClientError)

    def _translate(self, error: BaseException, request: Request) -> SidecarError | Again:
        from botocore.exceptions import ClientError, NoCredentialsError, ParamValidationError

        cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
        if isinstance(cause, ClientError):
            details = cause.response.get("ResponseMetadata", {})
            headers = details.get("HTTPHeaders", {})
            code = str(cause.response.get("Error", {}).get("Code", ""))
            answer = Answer(
                status=int(details.get("HTTPStatusCode", 0)),
                code="" if code.isdigit() else code,
                retry_after_s=parse_retry_after(headers.get("retry-after")),
            )
            return self.place.from_answer(answer, request)
        if isinstance(cause, NoCredentialsError):
            return no_identity(self.place)
        if isinstance(cause, ParamValidationError):
            return self.place.protocol(f"{request.operation} of `{request.key}` is not valid S3")
        return self.place.from_transport(cause)

    # --- reading ---------------------------------------------------------------------

    def _head(self, key: str) -> ObjectInfo:
        answer = self.send("head_object", Request("head", key), {"Key": self.full(key)})
        return ObjectInfo(
            key=key,
            size_bytes=answer["ContentLength"],
            mtime_s=answer["LastModified"].timestamp(),
            version=version_of(
                answer.get("ETag"), answer["LastModified"].timestamp(), answer["ContentLength"]
            ),
            metadata=dict(answer["Metadata"]),
        )

    # --- writing ---------------------------------------------------------------------

    def put(
        self,
        key: str,
        content: Content,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.put`. ``mtime_s`` is the store's clock when it answered."""
        self.check_condition(key, condition)
        headers = {
            **{f"x-amz-meta-{name}": value for name, value in (metadata or {}).items()},
            **_condition_headers(condition),
        }
        reply = self.transfer(
            Request("put", key, condition), lambda: self._s3.put(key, {}, headers), (content,)
        )
        version = etag_of(reply.headers.get("etag"))
        if not version:
            return self.head(key)
        return ObjectInfo(key, len(content), _date(reply.headers), version, metadata or {})

    def check_condition(self, key: str, condition: Condition | None) -> None:
        """As in the base class, for servers that may not know conditions: AWS does."""
        if self._login.credentials.endpoint_url:
            super().check_condition(key, condition)

    def as_it_is_read(self, made: ObjectInfo) -> ObjectInfo:
        """An object made of parts, with the version that reads will name.

        Some servers (rclone) say one ETag when the upload is completed, and another one from
        then on; AWS does not.
        """
        if not self._login.credentials.endpoint_url:
            return made
        found = self.head(made.key)
        is_ours = (found.size_bytes, found.metadata) == (made.size_bytes, made.metadata)
        return found if is_ours else made

    def put_part(self, key: str, upload_id: str, number: int, content: Content) -> str:
        """One part of an upload; its ETag, quotes included."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        reply = self.transfer(
            Request("part", key), lambda: self._s3.put(key, query, {}), (content,)
        )
        return reply.headers.get("etag", "")

    def start_upload(self, key: str, metadata: Mapping[str, str] | None = None) -> _S3Upload:
        """As :meth:`Store.start_upload`."""
        answer = self.send(
            "create_multipart_upload",
            Request("put", key),
            {"Key": self.full(key), "Metadata": dict(metadata or {})},
        )
        return _S3Upload(self, key, answer["UploadId"], metadata or {}, {})

    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> _S3Upload:
        """As :meth:`Store.resume_upload`."""
        known = {number: (receipt, size) for number, (size, receipt) in parts.items()}
        return _S3Upload(self, key, state["upload"], state["metadata"], known)

    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        """As :meth:`Store.abandon`."""
        self.resume_upload(key, state, {}).abort()

    def patch(
        self,
        base: ObjectInfo,
        key: str,
        pieces: Sequence[Piece],
        metadata: Mapping[str, str],
        begun: Callable[[Mapping[str, Any]], None],
    ) -> ObjectInfo | None:
        """As :meth:`Store.patch`: what is kept is copied as parts."""
        unchanged = if_match("CopySourceIfMatch", base.version)
        if not unchanged or not any(piece.kept for piece in pieces):
            return None
        source = {
            "CopySource": {"Bucket": self._bucket, "Key": self.full(base.key)},
            **unchanged,
        }
        parts = [part for piece in pieces for part in _split_copy(piece)]
        if len(parts) > self.limits.max_parts:
            return None
        upload = self.start_upload(key, metadata)
        begun(upload.state)
        try:
            for number, part in enumerate(parts, 1):
                if not part.kept:
                    assert part.content is not None
                    upload.put_part(number, part.content)
                    continue
                last = part.offset + part.size_bytes - 1
                upload.copy_part(number, f"bytes={part.offset}-{last}", part.size_bytes, source)
            return upload.complete()
        except NotFound:
            upload.abort()
            raise self.place.stale(base.key) from None
        except SidecarError:
            upload.abort()
            raise

    def copy(
        self,
        source: str,
        target: str,
        *,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.copy`. In place it makes a new version."""
        found = self.head(source)
        if version is not None and found.version != version:
            raise self.place.stale(source)
        kept = found.metadata if metadata is None else metadata
        arguments = {
            "CopySource": {"Bucket": self._bucket, "Key": self.full(source)},
            **if_match("CopySourceIfMatch", found.version),
        }
        if found.size_bytes > MAX_COPY_BYTES:
            return self._copy_parts(found, target, kept or {}, arguments)
        answer = self.send(
            "copy_object",
            Request("copy", source),
            {
                "Key": self.full(target),
                "MetadataDirective": "COPY" if metadata is None else "REPLACE",
                "Metadata": dict(metadata or {}),
                **arguments,
            },
            timeout_s=TRANSFER_TIMEOUT_S,
        )
        result = answer["CopyObjectResult"]
        return ObjectInfo(
            target,
            found.size_bytes,
            result["LastModified"].timestamp(),
            result["ETag"].strip('"'),
            kept,
        )

    def _copy_parts(
        self,
        found: ObjectInfo,
        target: str,
        metadata: Mapping[str, str],
        arguments: Mapping[str, Any],
    ) -> ObjectInfo:
        upload = self.start_upload(target, metadata)
        try:
            for number, first in enumerate(range(0, found.size_bytes, COPY_PART_BYTES), 1):
                last = min(first + COPY_PART_BYTES, found.size_bytes) - 1
                upload.copy_part(number, f"bytes={first}-{last}", last - first + 1, arguments)
            return upload.complete()
        except SidecarError:
            upload.abort()
            raise

    def delete(self, key: str) -> None:
        """As :meth:`Store.delete`."""
        try:
            self.send("delete_object", Request("delete", key), {"Key": self.full(key)})
        except NotFound:
            return  # S3 itself never says so, other servers do

    def delete_many(self, keys: list[str]) -> None:
        """As :meth:`Store.delete_many`: a thousand in a request."""
        for start in range(0, len(keys), DELETE_BATCH):
            batch = [{"Key": self.full(key)} for key in keys[start : start + DELETE_BATCH]]
            answer = self.send(
                "delete_objects",
                Request("delete", keys[start]),
                {"Delete": {"Objects": batch, "Quiet": True}},
            )
            for failure in answer.get("Errors", []):
                # One that failed is asked for alone, so that it is retried and explained.
                self.delete(self._relative(failure["Key"]))

    def abort_uploads(self, prefix: str, older_than_s: float) -> int:
        """As :meth:`Store.abort_uploads`."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        marker: dict[str, Any] = {}
        count = 0
        while True:
            answer = self.send(
                "list_multipart_uploads", Request("list"), {"Prefix": self.full(prefix), **marker}
            )
            for item in answer.get("Uploads", []):
                if item["Initiated"] <= before:
                    key = self._relative(item["Key"])
                    _S3Upload(self, key, item["UploadId"], {}, {}).abort()
                    count += 1
            if not answer.get("IsTruncated"):
                return count
            marker = {
                "KeyMarker": answer["NextKeyMarker"],
                "UploadIdMarker": answer["NextUploadIdMarker"],
            }

    def send(
        self,
        method: str,
        request: Request,
        arguments: Mapping[str, Any],
        *,
        timeout_s: float = QUICK_TIMEOUT_S,
    ) -> Any:
        """One call of the SDK with retries; ``arguments`` in its own words."""
        return self._call(
            request,
            lambda sdk: sdk._call_s3(method, Bucket=self._bucket, **arguments),
            timeout_s,
        )


class _S3Upload:
    """A multipart upload."""

    def __init__(
        self,
        store: S3Store,
        key: str,
        upload_id: str,
        metadata: Mapping[str, str],
        parts: dict[int, tuple[str, int]],
    ) -> None:
        self._store = store
        self._key = key
        self._upload = {"Key": store.full(key), "UploadId": upload_id}
        self._metadata = metadata
        self._parts = parts

    @property
    def state(self) -> Mapping[str, Any]:
        """As :attr:`Upload.state`."""
        return {"upload": self._upload["UploadId"], "metadata": dict(self._metadata)}

    def put_part(self, number: int, content: Content) -> str:
        """As :meth:`Upload.put_part`."""
        try:
            etag = self._store.put_part(self._key, self._upload["UploadId"], number, content)
        except NotFound:
            raise self._store.place.upload_lost(self._key) from None
        if not etag:
            raise self._store.place.protocol(f"a part of `{self._key}` has no ETag")
        self._parts[number] = (etag, len(content))
        return etag

    def copy_part(
        self, number: int, byte_range: str, size_bytes: int, source: Mapping[str, Any]
    ) -> None:
        """Make a part from a range of another object."""
        answer = self._store.send(
            "upload_part_copy",
            Request("copy", self._key),
            {
                "PartNumber": number,
                "CopySourceRange": byte_range,
                **source,
                **self._upload,
            },
            timeout_s=TRANSFER_TIMEOUT_S,
        )
        self._parts[number] = (answer["CopyPartResult"]["ETag"], size_bytes)

    def complete(
        self,
        condition: Condition | None = None,
        *,
        parts: int | None = None,
        metadata: Mapping[str, str] | None = None,  # noqa: ARG002 - fixed when it was begun
    ) -> ObjectInfo:
        """As :meth:`Upload.complete`."""
        self._store.check_condition(self._key, condition)
        sent = sorted(self._parts.items())[:parts]
        listed = [{"PartNumber": number, "ETag": etag} for number, (etag, _) in sent]
        try:
            answer = self._store.send(
                "complete_multipart_upload",
                Request("complete", self._key, condition),
                {
                    "MultipartUpload": {"Parts": listed},
                    **self._upload,
                    **_conditional(condition),
                },
                timeout_s=TRANSFER_TIMEOUT_S,
            )
        except NotFound:
            return self._completed_before([etag for _, (etag, _) in sent])
        size_bytes = sum(size for _, (_, size) in sent)
        version = answer["ETag"].strip('"')
        date_s = _date(answer["ResponseMetadata"]["HTTPHeaders"])
        made = ObjectInfo(self._key, size_bytes, date_s, version, self._metadata)
        return self._store.as_it_is_read(made)

    def _completed_before(self, etags: list[str]) -> ObjectInfo:
        """The upload is gone: perhaps because an attempt worked whose answer was lost."""
        digest = hashlib.md5(usedforsecurity=False)
        for etag in etags:
            digest.update(bytes.fromhex(etag.strip('"')))
        try:
            found = self._store.head(self._key)
        except NotFound:
            raise self._store.place.upload_lost(self._key) from None
        if found.version != f"{digest.hexdigest()}-{len(etags)}":
            raise self._store.place.upload_lost(self._key)
        return found

    def abort(self) -> None:
        """As :meth:`Upload.abort`."""
        try:
            self._store.send("abort_multipart_upload", Request("abort", self._key), self._upload)
        except NotFound:
            return


def _add_content_md5(request: Any, **_: Any) -> None:
    """S3 itself takes any checksum for a bulk delete, older MinIO only this one."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _conditional(condition: Condition | None) -> dict[str, str]:
    if condition is None:
        return {}
    if condition.absent:
        return {"IfNoneMatch": "*"}
    return {} if condition.version is None else if_match("IfMatch", condition.version)


def _condition_headers(condition: Condition | None) -> dict[str, str]:
    if condition is None:
        return {}
    if condition.absent:
        return {"if-none-match": "*"}
    return {} if condition.version is None else if_match("if-match", condition.version)


def _split_copy(piece: Piece) -> Iterator[Piece]:
    """A kept piece in parts of one size, none of which is too large to copy, or too small."""
    count = -(-piece.size_bytes // COPY_PART_BYTES) if piece.kept else 1
    part_bytes = -(-piece.size_bytes // count)
    for start in range(0, piece.size_bytes, part_bytes):
        size_bytes = min(part_bytes, piece.size_bytes - start)
        yield replace(piece, offset=piece.offset + start, size_bytes=size_bytes)


def _date(headers: Mapping[str, str]) -> float:
    """Seconds since the epoch, from the answer's ``Date``: what the object's time will be."""
    return parsedate_to_datetime(headers["date"]).timestamp()
