"""Services on a node that give a pod its identity, and stores that log in with it."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar.contract.spec import StoreName, StoreSource
from sidecar.mounter.store import open_store
from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.credentials import Credentials
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.interface import Store
from sidecar.mounter.store.s3.credentials import S3Credentials
from tests.store.raw import FixedCredentials
from tests.support.clouds import CountingObserver
from tests.support.servers import HttpResponder, answer

NOWHERE = "http://127.0.0.1:9"
NODES: dict[str, tuple[StoreName, str, str]] = {
    "container": ("s3", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "/credentials"),
    "instance": ("s3", "AWS_EC2_METADATA_SERVICE_ENDPOINT", ""),
    "gcs": ("gcs", "GCE_METADATA_HOST", ""),
    "azure": ("azure", "AZURE_POD_IDENTITY_AUTHORITY_HOST", ""),
}
"""By name: the store, and the variable that says where the service is."""
Respond = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def identified(
    node: str,
    respond: Respond,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str = NOWHERE,
) -> Iterator[Store]:
    """The store at an endpoint, with the login that a node's service gives."""
    kind, variable, path = NODES[node]
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    with HttpResponder(respond) as server:
        address = server.endpoint.removeprefix("http://")
        monkeypatch.setenv(variable, address if kind == "gcs" else f"{server.endpoint}{path}")
        monkeypatch.setenv("GCE_METADATA_IP", address)
        # Read when it was imported.
        monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", address)
        logins: dict[str, Credentials] = {
            "s3": S3Credentials(ambient=True, endpoint_url=endpoint),
            "gcs": GcsCredentials(endpoint_url=endpoint),
            "azure": AzureCredentials("a", blob_endpoint=f"{endpoint}/a", ambient=True),
        }
        found = open_store(
            StoreSource(store=kind, url=f"{kind}://bucket", bucket="bucket"),
            FixedCredentials(logins[kind]),
            retry_budget_s=0,
            observer=CountingObserver(),
        )
        yield found
        found.close()


def give_tokens(expires_s: float | None = None) -> Respond:
    """What each of these services answers: ``token-1``, and another one each time.

    Args:
        expires_s: seconds since the epoch; a day from now by default.
    """
    numbers = itertools.count(1)

    def respond(handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        if handler.command == "PUT" or path == "/latest/meta-data/iam/security-credentials/":
            return answer(handler, 200, b"word")
        if path.endswith("/default/"):
            found: dict[str, object] = {"email": "a@example", "scopes": [], "aliases": []}
        elif path.endswith(("/token", "/credentials", "/word")):
            token = f"token-{next(numbers)}"
            until_s = int(time.time() + 86400 if expires_s is None else expires_s)
            found = {
                "access_token": token,
                "expires_in": 86400,
                "expires_on": str(until_s),
                "resource": "https://storage.azure.com",
                "token_type": "Bearer",
                "Code": "Success",
                "AccessKeyId": "key",
                "SecretAccessKey": "secret",
                "Token": token,
                "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until_s)),
            }
        else:
            found = {}
        fields = {"Metadata-Flavor": "Google", "Content-Type": "application/json"}
        return answer(handler, 200, json.dumps(found).encode(), fields)

    return respond
