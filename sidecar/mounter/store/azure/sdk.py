"""What adlfs and azure-identity do for Azure: bulk deletion; the pod's identity.

The only module of this folder that imports an SDK. No exception of one leaves it: they hold
URLs, headers and connection strings.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from sidecar.errors import LoginRejected, SecretInvalid
from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.http.connection import TRANSPORT_ERRORS
from sidecar.mounter.store.http.exchange import exchange
from sidecar.mounter.store.http.pool import authorities_file
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.sdk_client import SdkClient, within_bounds
from sidecar.mounter.store.store_errors import StoreErrors
from sidecar.units import KIB

STORAGE_SCOPE = "https://storage.azure.com/.default"
_DELETE_TIMEOUT_S = 30.0
"""For all deletions of a call together."""
_LOGIN_TIMEOUT_S = 30.0
"""For all attempts at one source of an identity."""
_MOST_ANSWER_BYTES = 8 * KIB
"""Enough for an error."""


class AzureSdk:
    """Bulk deletion in one container, through adlfs. Safe to use from any thread.

    Args:
        base_url: the account's blob endpoint.
    """

    def __init__(self, login: Login[AzureCredentials], base_url: str, errors: StoreErrors) -> None:
        self._login = login
        self._base_url = base_url
        self._errors = errors
        self._client = SdkClient(login, self._connect, _close)

    def delete(self, names: Sequence[str]) -> list[str]:
        """One attempt to delete blobs, all at once; the names of those that may be left.

        Raises SidecarError, Retryable.
        """
        import asyncio

        import fsspec.asyn
        from azure.core.exceptions import ResourceNotFoundError

        sdk = self._client.current()

        guard = within_bounds(_DELETE_TIMEOUT_S, _MOST_ANSWER_BYTES)

        async def send() -> list[Any]:
            container = sdk.service_client.get_container_client(self._errors.bucket)
            deletions = [
                container.delete_blob(
                    name,
                    delete_snapshots="include",
                    retry_total=0,
                    connection_verify=authorities_file(),
                    middlewares=[guard],
                )
                for name in names
            ]
            return list(await asyncio.gather(*deletions, return_exceptions=True))

        try:
            results = fsspec.asyn.sync(sdk.loop, send, timeout=_DELETE_TIMEOUT_S)
        except OSError as error:
            failure = self._errors.from_transport(error)
        else:
            return [
                name
                for name, result in zip(names, results, strict=True)
                if result is not None and not isinstance(result, ResourceNotFoundError)
            ]
        raise failure

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _connect(self) -> Any:
        from adlfs import AzureBlobFileSystem

        login = self._login.credentials
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if login.ambient:
            host = self._base_url.removeprefix("https://")
            return AzureBlobFileSystem(
                account_name=login.account_name, account_host=host, anon=False, **options
            )
        # adlfs takes an endpoint only in a connection string.
        fields = [f"BlobEndpoint={self._base_url}"]
        if login.account_key:
            fields += [f"AccountName={login.account_name}", f"AccountKey={login.account_key}"]
        elif login.sas_token:
            fields.append(f"SharedAccessSignature={login.sas_token}")
        try:
            return AzureBlobFileSystem(connection_string=";".join(fields), anon=True, **options)
        except ValueError:
            pass  # the exception's message may hold the string
        raise SecretInvalid(f"{self._errors}: no connection string can be made of the secret")


class AzureIdentity:
    """The login that azure-identity's chain finds: workload identity, a managed identity."""

    def __init__(self) -> None:
        self._chain: Any = None
        self._epoch = 0

    def token(self, errors: StoreErrors, epoch: int) -> str:
        """A bearer token; the SDK keeps it until it is about to expire. Raises LoginRejected.

        Args:
            epoch: of the login; what an earlier epoch got is forgotten.
        """
        from azure.core.exceptions import ClientAuthenticationError
        from azure.core.pipeline.transport import RequestsTransport
        from azure.identity import DefaultAzureCredential

        if self._chain is None or epoch != self._epoch:
            self._epoch = epoch
            transport = RequestsTransport(session=_session(), session_owner=False)
            self._chain = DefaultAzureCredential(transport=transport, timeout=_LOGIN_TIMEOUT_S)
        with contextlib.suppress(ClientAuthenticationError):  # its message quotes credentials
            token: str = self._chain.get_token(STORAGE_SCOPE).token
            return token
        raise no_identity(errors)


def _session() -> Any:
    """A session for requests that sends through our own HTTP."""
    from requests import ConnectionError as NoConnection
    from requests import Session
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPResponse

    class Adapter(HTTPAdapter):
        def send(self, request: Any, *_: Any, **__: Any) -> Any:
            try:
                answer = exchange(request.method, request.url, request.headers, request.body)
            except TRANSPORT_ERRORS:
                raise NoConnection("no answer") from None
            content = io.BytesIO(answer.content)
            raw = HTTPResponse(content, answer.headers, answer.status, preload_content=False)
            return self.build_response(request, raw)

    session = Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session


def no_identity(errors: StoreErrors) -> LoginRejected:
    """The error that there is nothing to log in with."""
    return LoginRejected(
        f"{errors}: the pod has no ambient identity that Azure accepts",
        "name a `secret`, or give the pod's service account workload identity",
    )


def _close(sdk: Any) -> None:
    import fsspec.asyn

    fsspec.asyn.sync(sdk.loop, sdk.service_client.close)
