"""Clusters with IPv6 only: literal addresses, AWS's names that have some, and listening."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from sidecar.contract.spec import StoreName, StoreSource
from sidecar.contract.spec_rules import proxy_problem
from sidecar.http import listening
from sidecar.mounter.store import open_store
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.mounter.store.s3.requests import S3Requests
from tests.store.raw import BODY, CLOUDS, FixedCredentials, content, fetch, open_at, response
from tests.support.clouds import CountingObserver
from tests.support.forward_proxy import TlsFront
from tests.support.proxy import Head
from tests.support.raw_server import Piece, RawServer
from tests.support.servers import TlsFiles

HOST = "::1"
S3 = StoreSource(store="s3", url="s3://bucket", bucket="bucket")


class Asked:
    """A server that gives the content, and what it was asked."""

    def __init__(self) -> None:
        self.heads: list[Head] = []

    def __call__(self, request: Head, _body: bytes) -> Iterator[Piece]:
        self.heads.append(request)
        yield content()

    @property
    def hosts(self) -> set[str]:
        return {head.fields["host"] for head in self.heads}


@pytest.mark.parametrize("kind", CLOUDS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_as_an_endpoint(
    kind: StoreName, scheme: str, tls_files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_files.certificate))
    asked = Asked()
    with (
        RawServer(asked, host=HOST) as server,
        RawServer(asked) as behind,
        TlsFront(behind.port, tls_files, HOST) as secured,
    ):
        port = server.port if scheme == "http" else secured.port
        store = open_at(kind, f"{scheme}://[{HOST}]:{port}", CountingObserver())
        assert fetch(store) == BODY[:100]
        store.close()
    assert asked.hosts == {f"[{HOST}]:{port}"}


def test_an_address_as_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    with RawServer(asked, host=HOST) as proxy:
        url = f"http://[{HOST}]:{proxy.port}"
        monkeypatch.setenv("HTTP_PROXY", url)
        store = open_at("s3", "http://store.example", CountingObserver())
        assert fetch(store) == BODY[:100]
        store.close()
    assert asked.hosts == {"store.example"}
    assert proxy_problem(url) is None
    assert proxy_problem("http://[::1]x:3128") is not None


def test_a_pods_identity_of_eks(monkeypatch: pytest.MonkeyPatch) -> None:
    """There its agent listens on ``[fd00:ec2::23]``."""
    login = {
        "AccessKeyId": "key",
        "SecretAccessKey": "secret",
        "Token": "token",
        "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86400)),
    }
    given = response(json.dumps(login).encode(), Content_Type="application/json")
    asked = Asked()
    with RawServer(lambda *_: iter([given]), host=HOST) as agent, RawServer(asked) as server:
        url = f"http://[{HOST}]:{agent.port}/v1/credentials"
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        login_of = FixedCredentials(S3Credentials(ambient=True, endpoint_url=server.endpoint))
        store = open_store(S3, login_of, retry_budget_s=0, observer=CountingObserver())
        fetch(store)
        store.close()
    assert asked.heads[0].fields["x-amz-security-token"] == "token"


# --- AWS's names that have addresses of both families -----------------------------------------

FAMILIES = """
import os
from sidecar.mounter.store import network
from sidecar.contract.spec import StoreSource
network.set_up(StoreSource(store="s3", url="s3://b", bucket="b"), "/nowhere")
print(os.environ.get("AWS_USE_DUALSTACK_ENDPOINT"))
print(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"))
"""


@pytest.mark.parametrize(
    ("ways", "found"),
    [
        ("ip -6 route add default dev lo", ["true", "ipv6"]),
        ("ip -6 route add default dev lo; ip -4 route add default dev lo", ["None", "None"]),
        ("ip -4 route add default dev lo", ["None", "None"]),
        ("true", ["None", "None"]),
    ],
    ids=["IPv6 only", "both", "IPv4 only", "no way out"],
)
def test_they_are_used_where_there_is_no_other(ways: str, found: list[str]) -> None:
    script = f'ip link set lo up; {ways}; exec "$0" -c "$1"'
    command = ["unshare", "--net", "sh", "-c", script, sys.executable, FAMILIES]
    assert subprocess.check_output(command, text=True).split() == found


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-1", "bucket.s3.dualstack.eu-west-1.amazonaws.com"),
        ("cn-north-1", "bucket.s3.dualstack.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_the_name_of_a_bucket(monkeypatch: pytest.MonkeyPatch, region: str, host: str) -> None:
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    monkeypatch.setenv("AWS_REGION", region)
    login = Login(FixedCredentials(S3Credentials.from_fields(None, S3)), S3Credentials)
    assert S3Requests(S3, login).endpoint.host == host


def test_an_endpoint_of_ones_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    deleted = b"<DeleteResult><Deleted><Key>key</Key></Deleted></DeleteResult>"
    with RawServer(lambda *_: iter([response(deleted)]), host=HOST) as server:
        store = open_at("s3", f"http://[{HOST}]:{server.port}", CountingObserver())
        store.delete_many(["key"])
        store.close()
    assert [line.split("?")[0] for line in server.requests] == ["POST /bucket"]


def test_a_node_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.has_dualstack_ipv6", lambda: False)
    with listening.listen("::", 0, "") as listener:
        assert listener.getsockname()[0] == "0.0.0.0"
