"""What s3fs and botocore do for S3: bulk deletion, and the pod's own identity.

The only module of this folder that imports an SDK. No exception of one leaves it: they hold
headers and tokens.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from sidecar.errors import LoginRejected, SidecarError
from sidecar.mounter.store.http.connection import TRANSPORT_ERRORS
from sidecar.mounter.store.http.exchange import exchange
from sidecar.mounter.store.http.fields import BrokenResponse
from sidecar.mounter.store.http.retry import Retryable, parse_retry_after
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.mounter.store.sdk_client import SdkClient
from sidecar.mounter.store.store_errors import Call, ErrorResponse, StoreErrors
from sidecar.units import MIB

_DELETE_TIMEOUT_S = 10.0
_NODE_SILENCE_S = 2.0
_MOST_ANSWER_BYTES = 4 * MIB
"""Enough for a thousand of the longest keys, escaped."""
_MOST_ELEMENTS = 32_000
"""The most tags in an answer: an error for each key has a dozen."""


class S3Sdk:
    """Bulk deletion through s3fs, in one bucket. Safe to use from any thread.

    Args:
        region: the bucket's, if it is known.
    """

    def __init__(
        self, login: Login[S3Credentials], errors: StoreErrors, region: Callable[[], str]
    ) -> None:
        self._login = login
        self._errors = errors
        self._region = region
        self._client = SdkClient(login, self._connect, _forget)

    def delete(self, call: Call, keys: Sequence[str]) -> list[str]:
        """One attempt to delete whole keys, a thousand at most: those that may still be there.

        A key is deleted only if the answer names it as deleted: another answer, such as a captive
        portal's, has no errors in it either.

        Raises SidecarError, Retryable.
        """
        from botocore.exceptions import BotoCoreError
        from botocore.parsers import ResponseParserError

        try:
            reply: dict[str, Any] = self._client.current().call_s3(
                "delete_objects",
                Bucket=self._errors.bucket,
                Delete={"Objects": [{"Key": key} for key in keys]},
                timeout=_DELETE_TIMEOUT_S,
            )
        except (*TRANSPORT_ERRORS, BotoCoreError) as error:  # OSError: s3fs's, too
            translated = self._translate(error, call)
        except ResponseParserError:  # its message quotes the answer
            translated = self._errors.protocol("its answer to a bulk deletion cannot be read")
        else:
            deleted = {item.get("Key") for item in reply.get("Deleted", [])}
            return [key for key in keys if key not in deleted]
        raise translated

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _connect(self) -> Any:
        from s3fs import S3FileSystem

        login = self._login.credentials
        config: dict[str, Any] = {
            "retries": {"max_attempts": 0},  # ours are the only ones
        }
        if login.endpoint_url:
            # Many servers that speak S3 support neither the new checksums nor host names
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
            client_kwargs={"region_name": self._region()},
            config_kwargs=config,
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        sdk.retries = 1
        sdk.connect()  # makes the client; asks nothing of the store
        sdk.s3.meta.events.register("before-sign.s3.DeleteObjects", _add_content_md5)
        send = functools.partial(_send_deletion, login.verify_tls)
        sdk.s3.meta.events.register("before-send.s3", send)
        return sdk

    def _translate(self, error: BaseException, call: Call) -> SidecarError | Retryable:
        from botocore.exceptions import ClientError, NoCredentialsError, ParamValidationError

        cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
        if isinstance(cause, ClientError):
            details = cause.response.get("ResponseMetadata", {})
            headers = details.get("HTTPHeaders", {})
            code = str(cause.response.get("Error", {}).get("Code", ""))
            response = ErrorResponse(
                status=int(details.get("HTTPStatusCode", 0)),
                code="" if code.isdigit() else code,
                retry_after_s=parse_retry_after(headers.get("retry-after")),
            )
            return self._errors.from_response(response, call)
        if isinstance(cause, NoCredentialsError):
            return no_identity(self._errors)
        if isinstance(cause, ParamValidationError):
            return self._errors.protocol(f"{call.operation} of `{call.key}` is not valid S3")
        return self._errors.from_transport(cause)


class AwsIdentity:
    """The login that botocore's chain finds: IRSA, EKS Pod Identity, an instance profile."""

    def __init__(self) -> None:
        self._chain: Any = None
        self._epoch = 0

    def keys(self, errors: StoreErrors, epoch: int) -> tuple[str, str, str | None]:
        """Access key, secret key and session token; botocore renews what expires.

        Args:
            epoch: of the login; what an earlier epoch got is forgotten.

        Raises SidecarError, Retryable.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        failure: SidecarError | Retryable
        service = StoreErrors("AWS login", errors.bucket, "of the pod")
        try:
            if self._chain is None or epoch != self._epoch:
                from botocore.session import Session

                session = Session()
                session.register("before-send", _send_login)
                _bound_fetchers(session)
                self._chain, self._epoch = session.get_credentials(), epoch
            if self._chain is not None:
                frozen = self._chain.get_frozen_credentials()
                return frozen.access_key, frozen.secret_key, frozen.token
            failure = no_identity(errors)
        except ClientError as error:
            failure = _exchange_refused(error, errors)
        except (*TRANSPORT_ERRORS, BotoCoreError) as error:
            failure = service.from_transport(error)
        except (SidecarError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - its parser may raise anything
            if type(error) is RuntimeError:
                what = f"{errors}: a new login of the pod has expired by the node's clock"
                failure = LoginRejected(what, "set the node's clock")
            else:
                failure = Retryable(service.protocol("its answer holds no login"), "connection")
        raise failure


def no_identity(errors: StoreErrors) -> LoginRejected:
    """The error that there is nothing to log in with."""
    return LoginRejected(
        f"{errors}: the pod has no ambient identity",
        "name a `secret`, or give the pod's service account a role",
    )


def _exchange_refused(error: Any, errors: StoreErrors) -> SidecarError | Retryable:
    """The error of the service that exchanges the pod's identity (STS)."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if status == 429 or status >= 500:
        return errors.from_response(ErrorResponse(status, code), Call("login"))
    return errors.login_rejected(code)


def _add_content_md5(request: Any, **_: Any) -> None:
    """Add the checksum that older MinIO needs for a bulk delete; S3 itself takes any."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


async def _send_deletion(verify_tls: bool, request: Any, **_: Any) -> Any:
    """Answer botocore's ``before-send``, so that our HTTP sends the request.

    Raises OSError, BrokenResponse, UnsendableRequest.
    """
    import asyncio

    from aiobotocore.awsrequest import AioAWSResponse

    answer = await asyncio.to_thread(
        exchange,
        request.method,
        request.url,
        _texts(request.headers),
        request.body,
        most_bytes=_MOST_ANSWER_BYTES,
        verify_tls=verify_tls,
    )
    if answer.content.count(b"<") > _MOST_ELEMENTS or b"<!" in answer.content:
        raise BrokenResponse("another document")
    return AioAWSResponse(request.url, answer.status, answer.headers, _Content(answer.content))


def _send_login(request: Any, *, most_silence_s: float | None = None, **_: Any) -> Any:
    """As :func:`_send_deletion`, for the services that exchange a pod's identity."""
    from botocore.awsrequest import AWSResponse

    answer = exchange(
        request.method,
        request.url,
        _texts(request.headers),
        request.body,
        most_silence_s=most_silence_s,
    )
    return AWSResponse(request.url, answer.status, answer.headers, _Content(answer.content))


def _bound_fetchers(session: Any) -> None:
    """Send requests to the node itself, which cause no event, through an object with ``send``."""
    chain = session.get_component("credential_provider")
    fetchers = (
        chain.get_provider("container-role")._fetcher,
        chain.get_provider("iam-role")._role_fetcher,
    )
    for fetcher in fetchers:
        fetcher._session = SimpleNamespace(send=_send_to_node)


def _send_to_node(request: Any) -> Any:
    """As :func:`_send_login`, for metadata services, which most machines do not have."""
    from botocore.exceptions import EndpointConnectionError

    try:
        return _send_login(request, most_silence_s=_NODE_SILENCE_S)
    except TRANSPORT_ERRORS:
        raise EndpointConnectionError(endpoint_url=request.url) from None


def _texts(headers: Mapping[str, str | bytes]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else value.decode("latin-1")
        for name, value in headers.items()
    }


class _Content:
    """A body in the form that botocore and aiobotocore read."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self) -> list[bytes]:
        return [self._content]

    async def read(self) -> bytes:
        return self._content


def _forget(_sdk: Any) -> None:
    """Do nothing: s3fs closes its connections when nothing refers to it any more."""
