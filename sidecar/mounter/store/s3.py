"""S3: logs in and writes through s3fs; lists and reads without it (:mod:`.s3_dialect`).

Conditions of a write are sent, and because many servers ignore them (MinIO's gateway in JuiceFS
and rclone do) a HEAD checks them before: on such a server another writer may come between.

User metadata: keys of ``[a-z0-9-]``, ASCII values, kept as ``x-amz-meta-`` headers.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from sidecar.errors import NotFound, SidecarError
from sidecar.mounter.credentials import S3Credentials
from sidecar.mounter.store.answers import Answer, Place, Request, parse_retry_after
from sidecar.mounter.store.base import Condition, Limits, ObjectInfo, StoreObserver
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
        dialect = S3Dialect(source, login)
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
        data: memoryview | bytes,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.put`. ``mtime_s`` is the store's clock when it answered."""
        self.check_condition(key, condition)
        answer = self.send(
            "put_object",
            Request("put", key, condition),
            {
                "Key": self.full(key),
                "Metadata": dict(metadata or {}),
                **_conditional(condition),
            },
            body=data,
            timeout_s=TRANSFER_TIMEOUT_S,
        )
        version = etag_of(answer.get("ETag"))
        if not version:
            return self.head(key)
        return ObjectInfo(key, len(data), _date(answer), version, metadata or {})

    def start_upload(self, key: str, metadata: Mapping[str, str] | None = None) -> _S3Upload:
        """As :meth:`Store.start_upload`."""
        answer = self.send(
            "create_multipart_upload",
            Request("put", key),
            {"Key": self.full(key), "Metadata": dict(metadata or {})},
        )
        return _S3Upload(self, key, answer["UploadId"], metadata or {})

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
                    _S3Upload(self, key, item["UploadId"], {}).abort()
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
        body: memoryview | bytes | None = None,
        timeout_s: float = QUICK_TIMEOUT_S,
    ) -> Any:
        """One call of the SDK with retries; ``arguments`` in its own words."""

        def call(sdk: Any) -> Any:
            # A stream is consumed by an attempt: each gets its own.
            stream = {} if body is None else {"Body": io.BytesIO(body)}
            return sdk._call_s3(method, Bucket=self._bucket, **arguments, **stream)

        return self._call(request, call, timeout_s)


class _S3Upload:
    """A multipart upload."""

    def __init__(
        self, store: S3Store, key: str, upload_id: str, metadata: Mapping[str, str]
    ) -> None:
        self._store = store
        self._key = key
        self._upload = {"Key": store.full(key), "UploadId": upload_id}
        self._metadata = metadata
        self._parts: dict[int, tuple[str, int]] = {}

    def put_part(self, number: int, data: memoryview | bytes) -> None:
        """As :meth:`Upload.put_part`."""
        try:
            answer = self._store.send(
                "upload_part",
                Request("part", self._key),
                {"PartNumber": number, **self._upload},
                body=data,
                timeout_s=TRANSFER_TIMEOUT_S,
            )
        except NotFound:
            raise self._store.place.upload_lost(self._key) from None
        self._parts[number] = (answer["ETag"], len(data))

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

    def complete(self, condition: Condition | None = None) -> ObjectInfo:
        """As :meth:`Upload.complete`."""
        self._store.check_condition(self._key, condition)
        parts = sorted(self._parts.items())
        listed = [{"PartNumber": number, "ETag": etag} for number, (etag, _) in parts]
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
            return self._completed_before([etag for _, (etag, _) in parts])
        size_bytes = sum(size for _, (_, size) in parts)
        version = answer["ETag"].strip('"')
        return ObjectInfo(self._key, size_bytes, _date(answer), version, self._metadata)

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


def _date(answer: Mapping[str, Any]) -> float:
    """Seconds since the epoch, from the answer's ``Date``: what the object's time will be."""
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
