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
from http import HTTPStatus
from typing import Any

from sidecar.errors import LoginRejected, SecretInvalid, SidecarError, Unavailable
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.http.pool import Endpoint, authorities_file
from sidecar.mounter.store.http.proxies import PROXY_LOGIN, ProxyFailed, proxy_for
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.sdk_client import SdkClient
from sidecar.mounter.store.store_errors import StoreErrors

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
FETCH_TIMEOUT_S = 10.0

_DELETE_TIMEOUT_S = 10.0
_PATTERN = re.compile(r"[*?\[]")
"""gcsfs takes a path with one of these for a pattern."""
_TUNNEL_REFUSED = re.compile(r"Tunnel connection failed: (\d{3})")
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
        self._identity()  # else gcsfs would renew the token, blocking its event loop
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
            # It takes a batch without an answer for a key as if that were gone.
            failure = self._errors.protocol("a bulk deletion says nothing about some keys")
        raise failure

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _connect(self) -> Any:
        # gcsfs's new default asks a gRPC endpoint about each bucket and waits a minute where
        # there is none. Read when the package is imported.
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        from gcsfs.core import GCSFileSystem

        # It logs a traceback of what fails. That is deleted again without it, and told then.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        return GCSFileSystem(
            project="-",  # only needed to list or make buckets
            token=self._identity() or "anon",
            endpoint_url=self._base_url,
            skip_instance_cache=True,
            use_listings_cache=False,
            session_kwargs=_strict_session(),
        )


def _strict_session() -> dict[str, Any]:
    """Arguments for gcsfs's session, in which only 200 to 299 is a success, without redirects.

    It trusts the authorities that all other requests trust, also those that came after aiohttp
    was imported: that one reads the system's once.
    """
    import fsspec.asyn
    from aiohttp import TCPConnector, TraceConfig

    async def check(response: Any) -> None:
        if HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
            raise ValueError("neither a success nor an error")

    async def refuse(*_: object) -> None:
        raise ValueError("a redirect")

    tracing = TraceConfig()
    tracing.on_request_redirect.append(refuse)
    trusted = ssl.create_default_context(cafile=authorities_file())
    return {
        "connector": TCPConnector(ssl=trusted, loop=fsspec.asyn.get_loop()),
        "raise_for_status": check,
        "trace_configs": [tracing],
        "trust_env": True,
    }


def is_plain(key: str) -> bool:
    """Whether gcsfs takes a key as it is."""
    return not _PATTERN.search(key)


def _close(sdk: Any) -> None:
    sdk.close_session(sdk.loop, sdk.session)


def import_login() -> None:
    """Import what a token takes, so that processes which are forked later share it."""
    import google.auth.transport.urllib3
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
        pass  # raised outside, so that the parser's exception does not stay behind it
    raise SecretInvalid(
        f"{errors}: the `private_key` of the service account cannot be read",
        "download the key file again and make the secret from it",
    )


def pod_identity(errors: StoreErrors) -> Any:
    """google-auth's credentials of the pod. Raises LoginRejected."""
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        identity, _project = google.auth.default(scopes=[SCOPE])
    except DefaultCredentialsError:
        pass
    else:
        return identity
    raise LoginRejected(
        f"{errors}: the pod has no ambient identity",
        "name a `secret`, or give the pod's service account workload identity",
    )


def fetch_token(identity: Any, token_url: str, errors: StoreErrors) -> None:
    """One attempt to get a new token for google-auth's credentials.

    Args:
        token_url: where tokens come from; empty: the metadata server.

    Raises LoginRejected, Retryable.
    """
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.urllib3 import Request

    try:
        identity.refresh(Request(_TokenPools()))  # type: ignore[no-untyped-call]
    except GoogleAuthError as error:
        failure = _translate(error, token_url, errors)
    else:
        return
    raise failure


class _TokenPools:
    """What google-auth needs of urllib3, which knows no proxies of the environment."""

    def request(self, method: str, url: str, **options: Any) -> Any:
        """One request. Raises urllib3's errors."""
        import urllib3

        endpoint = Endpoint.parse(url)
        proxy = proxy_for(endpoint.host, endpoint.port, tls=endpoint.tls)
        settings: dict[str, Any] = {
            "retries": False,
            "timeout": FETCH_TIMEOUT_S,
            "ca_certs": authorities_file(),
        }
        pools = (
            urllib3.PoolManager(**settings)
            if proxy is None
            else urllib3.ProxyManager(
                f"http://{proxy.host}:{proxy.port}", proxy_headers=proxy.fields, **settings
            )
        )
        try:
            with pools:
                answer = pools.request(method, url, **options)
        except urllib3.exceptions.ProxyError as error:
            refused = _TUNNEL_REFUSED.search(str(error))
            status = int(refused[1]) if refused else None
        else:
            if proxy is None or answer.status != PROXY_LOGIN:
                return answer
            status = answer.status
        assert proxy is not None
        # Outside, so that what holds the proxy's login does not stay behind it.
        raise urllib3.exceptions.HTTPError from ProxyFailed(proxy, status)


def _translate(error: Exception, token_url: str, errors: StoreErrors) -> SidecarError | Retryable:
    from google.auth.exceptions import TransportError

    if isinstance(error, TransportError):
        where = str(Endpoint.parse(token_url)) if token_url else "the metadata server"
        return StoreErrors("GCS login", errors.bucket, where).from_transport(error)
    details = error.args[1] if len(error.args) > 1 else {}
    code = str(details.get("error", "")) if isinstance(details, dict) else ""
    rejected = errors.login_rejected(code if _OAUTH_ERROR.fullmatch(code) else "")
    if getattr(error, "retryable", False):
        return Retryable(Unavailable(rejected.what, "try again later"), "server_error")
    return rejected
