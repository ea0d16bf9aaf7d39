"""Requests to one bucket of S3: conditions, versions, and answers that come late."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from sidecar.errors import NotFound, Stale
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http.signed_request import Body, BufferedResponse
from sidecar.mounter.store.http_store import HttpStore
from sidecar.mounter.store.interface import (
    Condition,
    ObjectInfo,
    Properties,
    ProvisionalVersion,
    StoreObserver,
)
from sidecar.mounter.store.login import CredentialSource, Login
from sidecar.mounter.store.multipart_xml import parse_fields
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.mounter.store.s3.requests import ACCEPTED, S3Requests, SlowResponse, date_s
from sidecar.mounter.store.s3.sdk import S3Sdk
from sidecar.mounter.store.s3.versions import condition_headers, provisional_version
from sidecar.mounter.store.store_errors import Call, StoreErrors

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

T = TypeVar("T")

_PARTS = "-"
"""Part of the ETag of an object made of parts, before their number."""


class S3Client(HttpStore[S3Credentials]):
    """What :class:`.store.S3Store` and its uploads need of the bucket."""

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
        self._quotes_etags = True
        errors = StoreErrors("S3", source.bucket, str(requests.endpoint))
        self._sdk = S3Sdk(login, errors, lambda: requests.region)
        super().__init__(
            source,
            errors=errors,
            login=login,
            endpoint=requests.endpoint,
            requests=requests,
            retry_budget_s=retry_budget_s,
            observer=observer,
        )

    def close(self) -> None:
        """As :meth:`Store.close`."""
        super().close()
        self._sdk.close()

    def _head(self, key: str) -> ObjectInfo:
        sign = functools.partial(self._s3.request, "HEAD", key, {}, {})
        return self.read_head(Call("head", key), sign, functools.partial(self._s3.parse_head, key))

    def check_condition(self, key: str, condition: Condition | None) -> None:
        """As in the base class, for servers that may ignore conditions. AWS does not."""
        if self._login.credentials.endpoint_url:
            super().check_condition(key, condition)

    def conditionally(
        self, key: str, condition: Condition | None, write: Callable[[Mapping[str, str]], T]
    ) -> T:
        """The result of ``write``, called with the headers that state a condition.

        Ceph's gateway compares ``If-Match`` of a write with the ETag without its quotes. So if
        the condition fails although the object is that version, it is sent in the other form, and
        if that works, always from then on. The store checks it both times.
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

    def made_of_parts(
        self,
        key: str,
        etag: str,
        size_bytes: int,
        made_s: float,
        metadata: Mapping[str, str],
        properties: Properties | None,
    ) -> ObjectInfo:
        """The object that a completed upload has become.

        Some servers (rclone) return one ETag when an upload is completed and another one from then
        on. AWS does not. So behind an endpoint of its own the version is provisional until the
        server was asked once (:meth:`resolve_version`).
        """
        if not etag:
            return self.head(key)
        version = etag
        if self._login.credentials.endpoint_url and not self._keeps_etags:
            version = str(provisional_version(etag, size_bytes, metadata))
        return ObjectInfo(key, size_bytes, made_s, version, metadata, properties)

    def resolve_version(self, made: ObjectInfo) -> ObjectInfo:
        """As :meth:`Store.resolve_version`."""
        provisional = ProvisionalVersion.parse(made.version)
        if provisional is None:
            return made
        try:
            found = self._found(made.key, made.version)
        except (NotFound, Stale):
            return made._replace(version=provisional.etag)
        self._keeps_etags = found.version == provisional.etag
        return found

    def _found(self, key: str, provisional: str) -> ObjectInfo:
        """The object with the store's version. Raises NotFound; Stale if it is another object."""
        found = self.head(key)
        if not self._is_version(found, provisional):
            raise self.errors.stale(key)
        return found

    def _is_version(self, found: ObjectInfo, version: str | None) -> bool:
        provisional = ProvisionalVersion.parse(version) if version is not None else None
        if provisional is None:
            return super()._is_version(found, version)
        etag = provisional.etag
        if found.version == etag or _PARTS in found.version:
            return found.version == etag  # the server keeps the upload's ETag
        return provisional == provisional_version(etag, found.size_bytes, found.metadata or {})

    def request(
        self,
        call: Call,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        *,
        body: Body = (),
    ) -> BufferedResponse:
        """One request about an object, with retries."""
        return self.transfer(
            call,
            lambda: self._s3.request(method, key, query, headers or {}),
            body,
            ACCEPTED,
        )

    def request_slow(
        self,
        call: Call,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        *,
        body: Body = (),
        doubt: Callable[[], object] = lambda: None,
    ) -> SlowResponse:
        """One request that the store may work on for long, with retries.

        S3 may send status 200 at once to keep the connection, and an error in the body later.

        Args:
            doubt: called before a request that failed in the store is sent again; may raise.
        """
        attempts = 0

        def attempt() -> SlowResponse:
            nonlocal attempts
            attempts += 1
            try:
                response = self.transfer_once(
                    call,
                    lambda: self._s3.request(method, key, query, headers or {}),
                    body,
                    ACCEPTED,
                )
                return SlowResponse(self._fields(call, response), date_s(response), attempts)
            except Retryable as again:
                if again.reason == "server_error":
                    doubt()
                raise

        return self.retry.run(call.operation, attempt)

    def _fields(self, call: Call, response: BufferedResponse) -> Mapping[str, str]:
        """The fields of an XML body. Raises an error if the body is one."""
        try:
            fields = parse_fields(response.content)
        except ValueError:  # it may have been cut short
            what = f"its answer to {call.operation} of `{call.key}` is no XML"
            raise Retryable(self.errors.protocol(what), "truncated") from None
        if fields is None:
            header = Headers(response.headers)
            error = self._s3.parse_error(500, header, response.content)
            raise self.errors.from_response(error, call)
        return fields
