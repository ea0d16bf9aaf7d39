"""What s3fs and botocore do for S3: bulk deletion, and the pod's own identity.

The only module of this folder that imports an SDK. No exception of one leaves it: they hold
headers and tokens.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from sidecar.errors import LoginRejected, SidecarError
from sidecar.mounter.store.http.pool import MAX_CONNECTIONS, authorities_file
from sidecar.mounter.store.http.retry import Retryable, parse_retry_after
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.mounter.store.sdk_client import SdkClient
from sidecar.mounter.store.store_errors import Call, ErrorResponse, StoreErrors

_READ_TIMEOUT_S = 120.0
_DELETE_TIMEOUT_S = 10.0


class S3Sdk:
    """Bulk deletion through s3fs, in one bucket. Safe to use from any thread."""

    def __init__(
        self, login: Login[S3Credentials], errors: StoreErrors, default_region: str
    ) -> None:
        self._login = login
        self._errors = errors
        self._default_region = default_region
        self._client = SdkClient(login, self._connect, _forget)

    def delete(self, call: Call, keys: Sequence[str]) -> list[str]:
        """One attempt to delete whole keys, a thousand at most: those that may still be there.

        That is what the answer does not name as deleted: an answer to something else, such as
        that of a captive portal, says nothing of errors.

        Raises SidecarError, Retryable.
        """
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError
        from botocore.parsers import ResponseParserError

        try:
            reply: dict[str, Any] = self._client.current().call_s3(
                "delete_objects",
                Bucket=self._errors.bucket,
                Delete={"Objects": [{"Key": key} for key in keys]},
                timeout=_DELETE_TIMEOUT_S,
            )
        except (OSError, BotoCoreError, ClientError) as error:  # OSError: s3fs's, and sockets'
            translated = self._translate(error, call)
        except ResponseParserError:  # quotes the answer
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
            "connect_timeout": 5,
            "read_timeout": _READ_TIMEOUT_S,
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
                "region_name": login.region or self._default_region,
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


class PodIdentity:
    """The login that botocore's chain finds: IRSA, EKS Pod Identity, an instance profile."""

    def __init__(self) -> None:
        self._chain: Any = None

    def keys(self, errors: StoreErrors) -> tuple[str, str, str | None]:
        """Access key, secret key and session token; botocore renews what expires.

        Raises LoginRejected, Retryable.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        failure: SidecarError | Retryable
        try:
            if self._chain is None:
                from botocore.session import Session

                self._chain = Session().get_credentials()
            if self._chain is not None:
                frozen = self._chain.get_frozen_credentials()
                return frozen.access_key, frozen.secret_key, frozen.token
            failure = no_identity(errors)
        except ClientError as error:
            failure = _exchange_refused(error, errors)
        except BotoCoreError as error:
            service = StoreErrors("AWS login", errors.bucket, "of the pod")
            failure = service.from_transport(error)
        raise failure


def no_identity(errors: StoreErrors) -> LoginRejected:
    """There is nothing to log in with."""
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
    """S3 itself takes any checksum for a bulk delete, older MinIO only this one."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _forget(_sdk: Any) -> None:
    """s3fs closes its connections when nothing refers to it any more."""
