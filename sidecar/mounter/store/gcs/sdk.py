"""What gcsfs and google-auth do for Google Cloud Storage: bulk deletion, and tokens.

The only module of this folder that imports an SDK. No exception of one leaves it: they hold
URLs, keys and tokens.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from sidecar.errors import LoginRejected, SecretInvalid, SidecarError, Unavailable
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.http.connection import TRANSPORT_ERRORS
from sidecar.mounter.store.http.exchange import exchange
from sidecar.mounter.store.http.pool import Endpoint, authorities_file
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.sdk_client import SdkClient, within_bounds
from sidecar.mounter.store.store_errors import StoreErrors
from sidecar.units import MIB

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"

_DELETE_TIMEOUT_S = 10.0
_MOST_ANSWER_BYTES = MIB
"""Enough for an error of each of a hundred deletions."""
_PATTERN = re.compile(r"[*?\[]")
"""gcsfs takes a path with one of these as a pattern."""
_OAUTH_ERROR = re.compile(r"[a-z_]{1,40}")


class GcsSdk:
    """Bulk deletion through gcsfs, in one bucket. Safe to use from any thread.

    Args:
        base_url: the store's URL.
        identity: gives google-auth's credentials with a fresh token; None for anonymous.
    """

    def __init__(
        self,
        login: Login[GcsCredentials],
        base_url: str,
        identity: Callable[[], Any],
        errors: StoreErrors,
    ) -> None:
        self._base_url = base_url
        self._identity = identity
        self._errors = errors
        self._client = SdkClient(login, self._connect, _close)

    def delete(self, keys: Sequence[str]) -> None:
        """One attempt to delete whole keys: a hundred in a request to Google, else one in each.

        Raises SidecarError or Retryable if some may be left.
        """
        self._identity()  # otherwise gcsfs would renew the token, and block its event loop
        sdk = self._client.current()
        from aiohttp import ClientError
        from gcsfs.retry import HttpError
        from google.auth.exceptions import GoogleAuthError
        from requests.exceptions import RequestException

        paths = [f"{self._errors.bucket}/{key}" for key in keys]
        try:
            deleted = sdk.rm(paths, timeout=_DELETE_TIMEOUT_S)
        except (TimeoutError, ClientError, RequestException) as error:
            failure = self._errors.from_transport(error)
        except (OSError, ValueError, HttpError, GoogleAuthError):
            failure = self._errors.protocol("a bulk deletion failed")
        else:
            if len(deleted) == len(paths):
                return
            # If a batch has no answer for a key, gcsfs takes the key as deleted.
            failure = self._errors.protocol("a bulk deletion says nothing about some keys")
        raise failure

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _connect(self) -> Any:
        # gcsfs's new default asks a gRPC endpoint about each bucket, and waits a minute if there is
        # none. The variable is read when the package is imported.
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        import fsspec.asyn
        from aiohttp import TCPConnector
        from gcsfs.core import GCSFileSystem

        # It logs a traceback for a failed deletion. Such a key is deleted again without gcsfs.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        return GCSFileSystem(
            project="-",  # only needed to list or make buckets
            token=self._identity() or "anon",
            endpoint_url=self._base_url,
            skip_instance_cache=True,
            use_listings_cache=False,
            session_kwargs={
                "connector": TCPConnector(
                    ssl=ssl.create_default_context(cafile=authorities_file()),
                    loop=fsspec.asyn.get_loop(),
                ),
                "headers": {"Accept-Encoding": "identity"},
                "middlewares": [within_bounds(_DELETE_TIMEOUT_S, _MOST_ANSWER_BYTES)],
                "trust_env": True,
            },
        )


def is_plain(key: str) -> bool:
    """Whether gcsfs takes a key as it is."""
    return not _PATTERN.search(key)


def _close(sdk: Any) -> None:
    sdk.close_session(sdk.loop, sdk.session)


def import_login() -> None:
    """Import what a token needs, so that processes forked later share it."""
    import google.oauth2.service_account  # noqa: F401


def service_account(info: Mapping[str, str], errors: StoreErrors) -> Any:
    """google-auth's credentials of a service account's key. Raises SecretInvalid."""
    from google.auth.exceptions import MalformedError
    from google.oauth2.service_account import Credentials

    try:
        return Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            dict(info), scopes=[SCOPE]
        )
    except (ValueError, MalformedError):
        pass  # raised outside, so that the error does not carry the parser's exception
    raise SecretInvalid(
        f"{errors}: the `private_key` of the service account cannot be read",
        "download the key file again and make the secret from it",
    )


def pod_identity(errors: StoreErrors) -> Any:
    """google-auth's credentials of the pod. Raises LoginRejected."""
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        identity, _project = google.auth.default([SCOPE], _request)  # type: ignore[arg-type]
    except DefaultCredentialsError:
        pass
    else:
        return identity
    raise LoginRejected(
        f"{errors}: there is no ambient identity",
        "in a pod name a `secret`, or give the service account workload identity; "
        "for `sidecar try` log in with `gcloud auth application-default login`, or add --anonymous",
    )


def fetch_token(identity: Any, token_url: str, errors: StoreErrors) -> None:
    """One attempt to get a new token for google-auth's credentials.

    Args:
        token_url: the source of tokens; empty: the metadata server.

    Raises SidecarError, Retryable.
    """
    try:
        identity.refresh(_request)
    except (SidecarError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - its parser may raise anything
        failure = _translate(error, token_url, errors)
    else:
        return
    raise failure


def _request(
    url: str,
    method: str = "GET",
    body: str | bytes | None = None,
    headers: Mapping[str, str] | None = None,
    **_: Any,
) -> Any:
    """google-auth's transport (:class:`google.auth.transport.Request`)."""
    from google.auth.exceptions import TransportError

    unanswered: tuple[type[Exception], ...] = (*TRANSPORT_ERRORS, ValueError)
    try:
        answer = exchange(method, url, headers or {}, body)
    except unanswered as error:
        raise TransportError("no answer") from error  # type: ignore[no-untyped-call]
    return SimpleNamespace(status=answer.status, headers=answer.headers, data=answer.content)


def _translate(error: Exception, token_url: str, errors: StoreErrors) -> SidecarError | Retryable:
    from google.auth.exceptions import GoogleAuthError, TransportError

    where = str(Endpoint.parse(token_url)) if token_url else "the metadata server"
    service = StoreErrors("GCS login", errors.bucket, where)
    if isinstance(error, TransportError | OSError):
        return service.from_transport(error.__cause__ or error)
    if not isinstance(error, GoogleAuthError):
        return Retryable(service.protocol("its answer holds no token"), "connection")
    details = error.args[1] if len(error.args) > 1 else {}
    code = str(details.get("error", "")) if isinstance(details, dict) else ""
    rejected = errors.login_rejected(code if _OAUTH_ERROR.fullmatch(code) else "")
    if getattr(error, "retryable", False):
        return Retryable(Unavailable(rejected.what, "try again later"), "server_error")
    return rejected
