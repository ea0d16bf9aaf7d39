"""S3: bulk deletion through s3fs; everything else without it.

Conditions of a write are sent, and because many servers ignore them (MinIO's gateway in JuiceFS
and rclone do) a HEAD checks them before: on such a server another writer may come between.

User metadata: keys of ``[a-z0-9-]``, ASCII values, kept as ``x-amz-meta-`` headers.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote

from sidecar.errors import NotFound, SidecarError, Stale, Unsupported
from sidecar.mounter.store.http.client import Body, Reply
from sidecar.mounter.store.http.connection import Headers
from sidecar.mounter.store.http.pool import (
    MAX_CONNECTIONS,
    authorities_file,
)
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http.xml_body import FORBIDDEN, http_time_s, parse_xml
from sidecar.mounter.store.http_store import TRANSFER_TIMEOUT_S, HttpStore
from sidecar.mounter.store.interface import (
    PROVISIONAL,
    Condition,
    Content,
    Limits,
    ObjectInfo,
    Properties,
    Revision,
    StoreObserver,
)
from sidecar.mounter.store.login import CredentialSource, Login
from sidecar.mounter.store.patch_plan import Piece, plan, split
from sidecar.mounter.store.s3.properties import S3Properties, properties_in
from sidecar.mounter.store.s3.requests import (
    DEFAULT_REGION,
    S3Requests,
    condition_headers,
    etag_of,
    if_match,
    no_identity,
    version_of,
)
from sidecar.mounter.store.s3.upload import OwnUploads, S3Upload
from sidecar.mounter.store.secrets import S3Credentials
from sidecar.mounter.store.store_errors import Answer, Place, Request, parse_retry_after
from sidecar.units import GIB, MIB

if TYPE_CHECKING:
    from sidecar.spec import StoreSource

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_COPY_BYTES = 5 * GIB
"""Largest object that CopyObject takes; above it the parts are copied."""
COPY_PART_BYTES = GIB
DELETE_BATCH = 1000

_METADATA = "x-amz-meta-"
_SOURCE = "x-amz-copy-source"
_SOURCE_IF_MATCH = "x-amz-copy-source-if-match"
_ACCEPTED = frozenset({200, 201, 204})
_DIGEST_CHARACTERS = 16
_CLOCKS_DIFFER_S = 60.0
"""How far the store's clock may be behind ours, when uploads without a name are looked for."""
_PARTS = "-"
"""In the ETag of what was made of parts; before their number."""


class Result(NamedTuple):
    """An answer in XML.

    Attributes:
        fields: text of the elements below the root, by their names.
        date_s: the store's clock, seconds since the epoch.
        attempts: how many it took.
    """

    fields: Mapping[str, str]
    date_s: float
    attempts: int


class S3Store(HttpStore[S3Credentials]):
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
        self._s3 = requests = S3Requests(source, login)
        self._keeps_etags = False
        self._copies_parts = True
        self._quotes_etags = True
        self.own_uploads = OwnUploads()
        self._properties = S3Properties(self)
        super().__init__(
            source,
            place=Place("S3", source.bucket, str(requests.endpoint)),
            login=login,
            endpoint=requests.endpoint,
            requests=requests,
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

    def _translate(self, error: BaseException, request: Request) -> SidecarError | Retryable:
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
        request = Request("head", key)
        fields = self.retry.run(
            request.operation,
            lambda: self._client.head(request, lambda: self._s3.head(key), timeout=self._quick),
        )
        try:
            size_bytes = int(fields["content-length"])
            mtime_s = http_time_s(fields["last-modified"])
        except (ValueError, LookupError):
            raise self.odd_answer("head", f"its answer to head of `{key}` lacks fields") from None
        metadata = {
            name.removeprefix(_METADATA): value
            for name, value in fields.items()
            if name.startswith(_METADATA)
        }
        version = version_of(fields.get("etag"), mtime_s, size_bytes)
        return ObjectInfo(key, size_bytes, mtime_s, version, metadata, properties_in(fields))

    def get_range(self, key: str, version: str, offset: int, buffer: memoryview) -> int:
        """As :meth:`Store.get_range`."""
        if version.startswith(PROVISIONAL):
            version = self._found(key, version).version
        return super().get_range(key, version, offset, buffer)

    # --- writing ---------------------------------------------------------------------

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
        self.check_condition(key, condition)
        properties = self.properties_of(like)
        repeated = self._properties.repeated(like, properties)
        request = Request("put", key, condition)

        def write(conditions: Mapping[str, str]) -> Reply:
            own = {**_metadata_headers(metadata), **conditions}
            return self.property_keeper.write(
                repeated,
                lambda headers: self.request(
                    request, "PUT", key, {}, {**headers, **own}, body=(content,)
                ),
            )

        reply = self.conditionally(key, condition, write)
        version = etag_of(reply.headers.get("etag"))
        if not version:
            return self.head(key)
        made_s = _date_s(reply.headers)
        return ObjectInfo(key, len(content), made_s, version, metadata or {}, properties)

    def check_condition(self, key: str, condition: Condition | None) -> None:
        """As in the base class, for servers that may not know conditions: AWS does."""
        if self._login.credentials.endpoint_url:
            super().check_condition(key, condition)

    def conditionally(
        self, key: str, condition: Condition | None, write: Callable[[Mapping[str, str]], T]
    ) -> T:
        """What ``write`` makes of the headers that say a condition; raises what it raises.

        Ceph's gateway compares ``If-Match`` of a write with the ETag without its quotes. So where
        the condition fails although the object is that version, it is said the other way, and so
        from then on if that is understood. The store checks it in both.
        """
        quoted = self._quotes_etags
        try:
            return write(condition_headers(condition, quoted=quoted))
        except Stale:
            if condition is None or not self._is_still(key, condition.version):
                raise
        made = write(condition_headers(condition, quoted=not quoted))
        self._quotes_etags = not quoted
        return made

    def _is_still(self, key: str, version: str | None) -> bool:
        try:
            return self._is_version(self._head(key), version)
        except NotFound:
            return False

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> S3Upload:
        """As :meth:`Store.start_upload`."""
        properties = self.properties_of(like)
        repeated = self._properties.repeated(like, properties)
        since_s = time.time()
        own = _metadata_headers(metadata)
        with self.own_uploads.changing(key):
            answer = self.property_keeper.write(
                repeated,
                lambda headers: self.result(
                    Request("put", key), "POST", key, {"uploads": ""}, {**headers, **own}
                ),
            )
            upload_id = answer.fields.get("UploadId", "")
            if not upload_id:
                raise self.odd_answer("put", f"an upload of `{key}` has no number")
            self.own_uploads.add(upload_id)
        if answer.attempts > 1:  # the others may have worked, too
            try:
                self._abort_nameless(key, since_s)
            except SidecarError as error:
                log.warning("an upload may be left in the store: %s", error.message)
        return S3Upload(self, key, upload_id, metadata or {}, {}, properties)

    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> S3Upload:
        """As :meth:`Store.resume_upload`."""
        known = {number: (receipt, size) for number, (size, receipt) in parts.items()}
        self.own_uploads.add(state["upload"])
        return S3Upload(self, key, state["upload"], state["metadata"], known)

    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        """As :meth:`Store.abandon`."""
        if "upload" in state:
            self.resume_upload(key, state, {}).abort()
        else:
            self._abort_nameless(key, state["since_s"])

    def _abort_nameless(self, key: str, since_s: float) -> None:
        """Abort uploads of a key that were begun since then, and have no part; ours are kept.

        They might be another client's that is about to send its first part, which then begins
        anew; one that has sent a part is left alone.
        """
        with self.own_uploads.changing(key):  # none of ours may be without a number yet
            self._abort_others(key, since_s)

    def _abort_others(self, key: str, since_s: float) -> None:
        request = Request("list")
        reply = self.transfer(request, lambda: self._s3.uploads(key), (), _ACCEPTED)
        try:
            uploads = self._s3.parse_uploads(reply.content)
        except (ValueError, LookupError):
            raise self.odd_answer("list", f"uploads of `{key}` cannot be listed") from None
        for found, upload_id, begun_s in uploads:
            if found != key or upload_id in self.own_uploads:
                continue
            if begun_s < since_s - _CLOCKS_DIFFER_S:
                continue
            query = {"uploadId": upload_id, "max-parts": "1"}
            try:
                parts = self.result(Request("list", key), "GET", key, query).fields
            except NotFound:
                continue
            if "Part" not in parts:
                S3Upload(self, key, upload_id, {}, {}).abort()

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
        """As :meth:`Store.patch`: what is kept is copied as parts."""
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
        if not base.is_settled:
            base = self._found(base.key, base.version)
        unchanged = if_match(_SOURCE_IF_MATCH, base.version)
        if not unchanged:
            return None
        source = {_SOURCE: self._s3.source(base.key), **unchanged}
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
            raise self.place.stale(base.key) from None
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
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.copy`. In place it makes a new version."""
        found = self.head(source)
        if not self._is_version(found, version):
            raise self.place.stale(source)
        kept = found.metadata if metadata is None else metadata
        own = {
            _SOURCE: self._s3.source(source),
            **if_match(_SOURCE_IF_MATCH, found.version),
        }
        if found.size_bytes > MAX_COPY_BYTES:
            return self._copy_parts(found, target, kept or {}, own)
        own["x-amz-metadata-directive"] = "COPY" if metadata is None else "REPLACE"
        own.update(_metadata_headers(metadata))
        fields = self.property_keeper.write(
            self._properties.repeated_by_copy(found, replace=metadata is not None),
            lambda headers: self.result(
                Request("copy", source), "PUT", target, {}, {**headers, **own}
            ),
        ).fields
        try:
            mtime_s = datetime.fromisoformat(fields["LastModified"]).timestamp()
        except (ValueError, LookupError):
            what = f"its answer to copy of `{source}` lacks fields"
            raise self.odd_answer("copy", what) from None
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
            raise Unsupported(f"{self.place} copies no ranges of `{found.key}`")
        upload = self.start_upload(target, metadata, like=found)
        try:
            ranges = split(0, found.size_bytes, COPY_PART_BYTES, self.limits)
            for number, (start, end) in enumerate(ranges, 1):
                upload.copy_part(number, source, start, end - 1)
            self._check_source(found)
            return self.settle(upload.complete())
        except SidecarError:
            upload.abort()
            raise

    def _copies_ranges_of(self, key: str) -> bool:
        """Whether parts are made of an object's ranges, as far as it is known.

        Ceph's gateway decodes the name of the source twice, and so takes another object's bytes
        where the name looks as if it were escaped.
        """
        name = self.full(key)
        unescaped = not self._login.credentials.endpoint_url or unquote(name) == name
        return self._copies_parts and unescaped

    def _check_source(self, source: ObjectInfo) -> None:
        """Raises Stale, or NotFound, where ranges may have been copied from another version.

        AWS checks the condition of each copy; Ceph's gateway takes it and does not.
        """
        endpoint = self._login.credentials.endpoint_url
        if endpoint and not self._is_version(self._head(source.key), source.version):
            raise self.place.stale(source.key)

    def delete(self, key: str) -> None:
        """As :meth:`Store.delete`."""
        try:
            self.request(Request("delete", key), "DELETE", key, {})
        except NotFound:
            return  # S3 itself never says so, other servers do

    # --- versions of what was made of parts --------------------------------------------

    def made_of_parts(
        self,
        key: str,
        etag: str,
        size_bytes: int,
        made_s: float,
        metadata: Mapping[str, str],
        properties: Properties | None,
    ) -> ObjectInfo:
        """What an upload that was completed has become.

        Some servers (rclone) say one ETag when an upload is completed, and another one from
        then on; AWS does not. Behind an endpoint of its own a server is asked once, later.
        """
        if not etag:
            return self.head(key)
        version = etag
        if self._login.credentials.endpoint_url and not self._keeps_etags:
            version = _provisional(etag, size_bytes, metadata)
        return ObjectInfo(key, size_bytes, made_s, version, metadata, properties)

    def settle(self, made: ObjectInfo) -> ObjectInfo:
        """As :meth:`Store.settle`."""
        if made.is_settled:
            return made
        etag = _etag_in(made.version)
        try:
            found = self._found(made.key, made.version)
        except (NotFound, Stale):
            return made._replace(version=etag)
        self._keeps_etags = found.version == etag
        return found

    def _found(self, key: str, provisional: str) -> ObjectInfo:
        """The object as it is read. Raises NotFound, and Stale where it is another one."""
        found = self.head(key)
        if not self._is_version(found, provisional):
            raise self.place.stale(key)
        return found

    def _is_version(self, found: ObjectInfo, version: str | None) -> bool:
        if version is None or not version.startswith(PROVISIONAL):
            return super()._is_version(found, version)
        etag = _etag_in(version)
        if found.version == etag or _PARTS in found.version:
            return found.version == etag  # a server that goes on naming an upload's ETag
        return version == _provisional(etag, found.size_bytes, found.metadata or {})

    # --- requests --------------------------------------------------------------------

    def ask_ownership(self) -> Reply:
        """GetBucketOwnershipControls; a 404 is an answer."""
        return self.transfer(Request("head"), self._s3.ownership, (), {200, 404})

    def request(
        self,
        request: Request,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        *,
        body: Body = (),
    ) -> Reply:
        """One request about an object, with retries."""
        return self.transfer(
            request,
            lambda: self._s3.request(method, key, query, headers or {}),
            body,
            _ACCEPTED,
        )

    def result(
        self,
        request: Request,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        *,
        body: Body = (),
        doubt: Callable[[], object] = lambda: None,
    ) -> Result:
        """One request that the store may work on for long, with retries; what its answer says.

        S3 may say 200 before it knows, so as to keep the connection, and then send an error.

        Args:
            doubt: called before what the store failed at is tried again; may raise why not.
        """
        attempts = 0

        def attempt() -> Result:
            nonlocal attempts
            attempts += 1
            try:
                return self._result_once(request, method, key, query, headers or {}, body, attempts)
            except Retryable as again:
                if again.reason == "server_error":
                    doubt()
                raise

        return self.retry.run(request.operation, attempt)

    def _result_once(
        self,
        request: Request,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Body,
        attempts: int,
    ) -> Result:
        reply = self.transfer_once(
            request,
            lambda: self._s3.request(method, key, query, headers),
            body,
            _ACCEPTED,
            self._copying,
        )
        try:
            fields = _fields(reply.content)
        except ValueError:  # it may have been cut short
            error = self.place.protocol(f"its answer to {request.operation} of `{key}` is no XML")
            raise Retryable(error, "truncated") from None
        if fields is None:
            said = self._s3.refusal(500, Headers(reply.headers), reply.content)
            raise self.place.from_answer(said, request)
        return Result(fields, _date_s(reply.headers), attempts)

    def delete_many(self, keys: list[str]) -> None:
        """As :meth:`Store.delete_many`: a thousand in a request.

        Names that no XML can hold go one by one, for their names are in the path then.
        """
        for key in keys:
            if FORBIDDEN.search(self.full(key)):
                self.delete(key)
        keys = [key for key in keys if not FORBIDDEN.search(self.full(key))]
        for start in range(0, len(keys), DELETE_BATCH):
            batch = [{"Key": self.full(key)} for key in keys[start : start + DELETE_BATCH]]
            answer = self._send(
                "delete_objects",
                Request("delete", keys[start]),
                {"Delete": {"Objects": batch, "Quiet": True}},
            )
            for failure in answer.get("Errors", []):
                # One that failed is asked for alone, so that it is retried and explained.
                self.delete(self._relative(failure["Key"]))

    def _send(
        self,
        method: str,
        request: Request,
        arguments: Mapping[str, Any],
    ) -> Any:
        """One call of the SDK with retries; ``arguments`` in its own words."""
        return self._call(
            request, lambda sdk: sdk._call_s3(method, Bucket=self._bucket, **arguments)
        )


def _add_content_md5(request: Any, **_: Any) -> None:
    """S3 itself takes any checksum for a bulk delete, older MinIO only this one."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _metadata_headers(metadata: Mapping[str, str] | None) -> dict[str, str]:
    return {f"{_METADATA}{name}": value for name, value in (metadata or {}).items()}


def _fields(body: bytes) -> dict[str, str] | None:
    """Text of the elements below an answer's root; None for an error. ValueError: no XML."""
    if not body:
        return {}
    root, namespace = parse_xml(body)
    if root.tag == f"{namespace}Error":
        return None
    return {field.tag.removeprefix(namespace): field.text or "" for field in root}


def _provisional(etag: str, size_bytes: int, metadata: Mapping[str, str]) -> str:
    """A version that what we made is recognised by: its metadata have our time of it in ns."""
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(metadata.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{PROVISIONAL}{size_bytes}:{digest}:{etag}"


def _etag_in(provisional: str) -> str:
    return provisional.rpartition(":")[2]


def _date_s(headers: Mapping[str, str]) -> float:
    """Seconds since the epoch, from the answer's ``Date``: what the object's time will be."""
    try:
        return http_time_s(headers["date"])
    except (ValueError, LookupError):
        return time.time()
