"""What an error response, or the lack of a response, means: one table for all three stores.

A store extracts the status and its own code from a response or from its SDK's exception. This
module decides the error class and the message. A message names bucket, endpoint and what to do,
and never a URL's query or a header: signatures and SAS tokens are secrets.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

from sidecar.errors import (
    AccessDenied,
    AlreadyExists,
    BucketNotFound,
    EndpointUnreachable,
    LoginRejected,
    NameTooLong,
    NotFound,
    ObjectArchived,
    ProxyDenied,
    QuotaExceeded,
    RegionMismatch,
    SidecarError,
    Stale,
    StoreError,
    StoreProtocolError,
    TlsUntrusted,
    TooLarge,
    Unavailable,
    Unsupported,
)
from sidecar.mounter.store.http.connection import TruncatedResponse, UnsendableRequest
from sidecar.mounter.store.http.fields import BrokenResponse
from sidecar.mounter.store.http.proxies import ProxyFailed
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.interface import Condition

_BUCKET_CODES = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"}
_UPLOAD_CODE = "NoSuchUpload"
_LOGIN_CODES = {
    # S3, https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "InvalidTokenId",  # what MinIO calls it
    "ExpiredToken",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
    "AuthorizationHeaderMalformed",
    # Azure, https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
}
CLOCK_CODES = {"RequestTimeTooSkewed", "AuthenticationFailed", ""}
"""Codes for a wrong time, among other reasons. S3's answer to a HEAD has no code."""
_THROTTLED_CODES = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "ServerBusy",
    "rateLimitExceeded",
    "userRateLimitExceeded",
}
_RETRYABLE_CODES = {
    "RequestTimeout",
    "InternalError",
    "OperationTimedOut",
    # Two conditional writes at once on S3: the documentation says to send it again.
    "ConditionalRequestConflict",
    "OperationAborted",
}
_DENIED_CODES = {
    "PublicAccessNotPermitted",
    "AllAccessDisabled",
    "AccountProblem",
    "BlobImmutableDueToPolicy",  # Azure's retention rules, with status 409
}
_CONDITION_CODES = {
    "BlobAlreadyExists",
    "ConditionNotMet",
    "PreconditionFailed",
    "TargetConditionNotMet",
}
_QUOTA_CODES = {"QuotaExceeded", "XMinioStorageFull", "AccountQuotaExceeded"}
_TOO_LARGE_CODES = {"EntityTooLarge", "RequestBodyTooLarge", "BlockCountExceedsLimit"}
_TOO_LONG_CODES = {"KeyTooLongError", "KeyTooLong"}

_ARCHIVED_CODES = {"InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"}
_ELSEWHERE_STATUS = {301, 307}
# Also without a code: the response to a HEAD has headers only.
_REGION_CODES = {"", "AuthorizationHeaderMalformed", "SignatureDoesNotMatch"}

_SAFE_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,255}")


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A response that is not a success. The last three attributes are S3's.

    Attributes:
        status: HTTP status.
        code: the store's own code, or an empty string.
        retry_after_s: from ``Retry-After``.
        storage_class: the object's, or an empty string.
        region: the bucket's region, or an empty string.
        asked_region: the region that the request was signed for.
        endpoint: the bucket's endpoint, or an empty string.
    """

    status: int
    code: str = ""
    retry_after_s: float | None = None
    storage_class: str = ""
    region: str = ""
    asked_region: str = ""
    endpoint: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether the bucket is in another place than was asked."""
        if not self.asked_region or self.status in _ELSEWHERE_STATUS:
            return bool(self.asked_region)
        is_other = self.region not in {"", self.asked_region}
        return is_other and self.status in {400, 403} and self.code in _REGION_CODES


@dataclass(frozen=True, slots=True)
class Call:
    """What the store was asked, for metrics and messages.

    Attributes:
        operation: one of the words of :meth:`StoreObserver.request`.
        key: the object, relative to the mount's root; empty for a listing.
        condition: of a write.
    """

    operation: str
    key: str = ""
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class StoreErrors:
    """Makes the errors of one bucket.

    Attributes:
        service: ``S3``, ``GCS`` or ``Azure``.
        bucket: the bucket or container.
        endpoint: host and port.
    """

    service: str
    bucket: str
    endpoint: str

    @property
    def noun(self) -> str:
        """The service's word for a bucket."""
        return "container" if self.service == "Azure" else "bucket"

    def from_response(self, response: ErrorResponse, call: Call) -> SidecarError | Retryable:
        """The error that a response means."""
        status, code = response.status, response.code
        if code in _BUCKET_CODES:
            return self.bucket_not_found()
        if code == _UPLOAD_CODE:
            return self.not_found(call.key)  # the code says nothing about the object
        if status == 404:
            return self._nothing_there(call)
        if response.is_elsewhere:
            return self.region_mismatch(response)
        if code in _THROTTLED_CODES or status == 429:
            return self._retryable(response, call, "throttled")
        if code in _LOGIN_CODES or status == 401:
            return self.login_rejected(code or str(status))
        error = self._about_object(response, call)
        if error is not None:
            return error
        if status == 501:
            return Unsupported(f"{self} does not implement this {call.operation}")
        if code in _RETRYABLE_CODES or status in {408, 500, 502, 503, 504}:
            reason = "throttled" if status == 503 else "server_error"
            return self._retryable(response, call, reason)
        if status in {304, 412} or code in _CONDITION_CODES:
            return self.condition_failed(call)
        if status == 403 or code in _DENIED_CODES:
            return self.access_denied(call)
        return StoreProtocolError(
            f"{self} answered {call.operation} of `{call.key}` with status {status}{_named(code)}"
        )

    def _about_object(self, response: ErrorResponse, call: Call) -> SidecarError | None:
        """The error, if the code is about this one object."""
        status, code = response.status, response.code
        if code in _ARCHIVED_CODES:
            return self.archived(response, call)
        if code in _QUOTA_CODES or status == 507:
            return QuotaExceeded(f"{self} is full: it refuses to {call.operation}")
        if code in _TOO_LARGE_CODES or status == 413:
            return TooLarge(f"{self} refuses `{call.key}` as too large")
        if code in _TOO_LONG_CODES:
            return NameTooLong(f"{self} refuses the key of `{call.key}` as too long")
        return None

    def _nothing_there(self, call: Call) -> StoreError:
        """The error for a 404 whose code does not say what is missing."""
        if call.condition is not None and call.condition.version:
            return self.stale(call.key)  # S3's answer to If-Match if there is no object
        if not call.key or call.operation == "put":
            return self.bucket_not_found()  # nothing else can be missing
        return self.not_found(call.key)

    def from_transport(self, error: BaseException) -> StoreError | Retryable:
        """The error for a request without a whole response."""
        if isinstance(error, UnsendableRequest):
            return self.protocol(f"what it gave cannot be sent back to it: {error}")
        if isinstance(error, BrokenResponse):
            reason = "truncated" if isinstance(error, TruncatedResponse) else "connection"
            return Retryable(self.protocol(f"its answer cannot be read: {error}"), reason)
        causes = list(_causes(error))
        proxy = next((cause for cause in causes if isinstance(cause, ProxyFailed)), None)
        if proxy is not None and proxy.status is not None:
            return self._proxy_answered(proxy.proxy, proxy.status)
        if (status := _sdk_proxy_status(causes)) is not None:
            return self._proxy_answered("", status)
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            # Not all libraries that subclass the error set this.
            reasons = [str(getattr(cause, "verify_message", "")) for cause in causes]
            return TlsUntrusted(
                f"the certificate of {self.service} endpoint {self.endpoint} is not trusted: "
                f"{next(filter(None, reasons), 'unknown authority')}",
                "give the authority's certificate in SSL_CERT_FILE, or correct the endpoint",
            )
        stalled = False
        why = "the connection broke"
        for cause in causes:
            if isinstance(cause, socket.gaierror):
                why = "the name cannot be resolved"
            elif isinstance(cause, ConnectionRefusedError):
                why = "connection refused"
            elif isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
                why = "no answer in time"
                stalled = True
            elif isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
                why = "it does not speak TLS"
            else:
                continue
            break
        unreachable = EndpointUnreachable(
            f"{self.service} endpoint {self.endpoint} cannot be reached"
            f"{f' through the proxy {proxy.proxy}' if proxy else ''}: {why}",
            "check the proxy's address (HTTPS_PROXY), or name the endpoint in NO_PROXY"
            if proxy
            else "check the endpoint's address and that the pod's network lets it through",
        )
        return Retryable(unreachable, "stalled" if stalled else "connection")

    def _proxy_answered(self, proxy: str, status: int) -> StoreError | Retryable:
        """The error for a proxy that does not lead to the store. ``proxy`` may be empty."""
        name = f"the proxy {proxy}" if proxy else "the proxy"
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return ProxyDenied(
                f"{name} on the way to {self.service} endpoint {self.endpoint} refuses the login",
                "put user and password into the URL of the proxy: HTTPS_PROXY in the secret",
            )
        if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return ProxyDenied(
                f"{name} refuses to connect to {self.service} endpoint {self.endpoint}: "
                f"status {status}",
                "allow it there, or name the endpoint in NO_PROXY",
            )
        unreachable = EndpointUnreachable(
            f"{self.service} endpoint {self.endpoint} cannot be reached through {name}: "
            f"status {status}",
            "see the proxy's log",
        )
        return Retryable(unreachable, "connection")

    def bucket_not_found(self) -> BucketNotFound:
        """The bucket is not there."""
        return BucketNotFound(
            f"{self.service} {self.noun} `{self.bucket}` does not exist at {self.endpoint}",
            "create it, or correct `bucket` in the catalogue",
        )

    def region_mismatch(self, response: ErrorResponse) -> RegionMismatch:
        """The bucket is not where requests go, or not in the region that they are signed for."""
        region, endpoint = _safe(response.region), _safe(response.endpoint)
        at = f" at {endpoint}" if endpoint else ""
        if region not in {"", response.asked_region}:
            return RegionMismatch(
                f"{self} is in the region `{region}`{at}, and was asked for in "
                f"`{response.asked_region}`",
                f"set AWS_REGION to `{region}` in the volume's secret",
            )
        return RegionMismatch(
            f"{self} is elsewhere{at}: status {response.status}{_named(response.code)}",
            "set AWS_ENDPOINT_URL in the volume's secret to where the bucket is",
        )

    def archived(self, response: ErrorResponse, call: Call) -> ObjectArchived:
        """The object has to be restored before it can be read."""
        where = _safe(response.storage_class)
        return ObjectArchived(
            f"`{call.key}` in {self} is archived{f' (storage class {where})' if where else ''}",
            "restore it first: that takes minutes to days and is the store's own command",
        )

    def login_rejected(self, code: str) -> LoginRejected:
        """The store does not accept the login. ``code``: the store's word for it."""
        hint = "check the keys in the volume's secret"
        if code == "RequestTimeTooSkewed":
            hint = "set the node's clock"
        elif code == "invalid_grant":  # Google's, for tokens
            hint += ", and the node's clock"
        return LoginRejected(f"{self} rejects the login{_named(code)}", hint)

    def access_denied(self, call: Call) -> AccessDenied:
        """The login is known and may not do this."""
        what = f"{call.operation} of `{call.key}`" if call.key else call.operation
        return AccessDenied(f"{self} denies {what}", "grant it to the volume's credentials")

    def not_found(self, key: str) -> NotFound:
        """The object is not there."""
        return NotFound(f"`{key}` is not in {self}")

    def stale(self, key: str) -> Stale:
        """The object is there in another version."""
        return Stale(f"`{key}` in {self} is no longer the version that was opened")

    def upload_lost(self, key: str) -> StoreProtocolError:
        """The store no longer has an upload. To a writer this is not a missing file."""
        return self.protocol(f"the upload of `{key}` is gone")

    def condition_failed(self, call: Call) -> StoreError:
        """A condition of a read or write does not hold."""
        if call.condition is not None and call.condition.absent:
            return AlreadyExists(f"`{call.key}` in {self} exists already")
        return self.stale(call.key)

    def protocol(self, what: str) -> StoreProtocolError:
        """The response makes no sense."""
        return StoreProtocolError(f"{self}: {what}")

    def _retryable(self, response: ErrorResponse, call: Call, reason: str) -> Retryable:
        error = Unavailable(
            f"{self} cannot {call.operation} now: status {response.status}{_named(response.code)}",
            "try again later",
        )
        return Retryable(error, reason, response.retry_after_s)

    def __str__(self) -> str:
        return f"{self.service} {self.noun} `{self.bucket}` at {self.endpoint}"


def _named(code: str) -> str:
    return f" ({code})" if _safe(code) else ""


def _safe(word: str) -> str:
    """A word of a response if it may be shown, else an empty string."""
    return word if _SAFE_WORD.fullmatch(word) else ""


def _sdk_proxy_status(causes: list[BaseException]) -> int | None:
    """The status with which a proxy refused a tunnel of an SDK (aiohttp's error), or None."""
    for cause in causes:
        if type(cause).__name__ == "ClientHttpProxyError":
            return int(getattr(cause, "status", 0))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and everything that it was raised from, by each library's attributes."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        item = pending.pop(0)
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        pending += [item.__cause__, item.__context__, *item.args]
        # aiohttp, azure-core, urllib3
        pending += [getattr(item, name, None) for name in ("os_error", "inner_exception", "reason")]
        details = getattr(item, "kwargs", None)  # botocore
        if isinstance(details, dict):
            pending.append(details.get("error"))
