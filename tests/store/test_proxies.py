"""A proxy between the sidecar and three clouds, and authorities of one's own.

Each server is behind TLS with an authority that nobody knows, so that nothing gets through but
what is meant to.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.spec import CaBundle, StoreSource
from sidecar.errors import (
    EndpointUnreachable,
    ProxyDenied,
    SecretFileMissing,
    SecretInvalid,
    SidecarError,
    TlsUntrusted,
)
from sidecar.mounter.store import network
from sidecar.mounter.store.http.proxies import proxy_for
from tests.store.conftest import make_cloud
from tests.support.clouds import Cloud, CountingObserver, GcsCloud
from tests.support.forward_proxy import ForwardProxy, TlsFront
from tests.support.servers import GcsServer, TlsFiles

LOGIN = "somebody:pa%73sw0rd-of-the-proxy"  # as a URL quotes it
PLAIN_LOGIN = "somebody:passw0rd-of-the-proxy"
VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
AUTHORITIES = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set up is this test's alone."""
    for name in (*VARIABLES, *map(str.lower, VARIABLES), *AUTHORITIES, "RES_OPTIONS"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


@pytest.fixture(params=["s3", "gcs", "azure"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud(request.param, request, monkeypatch)


@pytest.fixture
def front(
    cloud: Cloud, tls_files: TlsFiles, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TlsFront]:
    """The cloud over TLS; its secret names this endpoint."""
    with TlsFront(cloud.server.port, tls_files) as server:
        text = cloud.server.credentials_json()
        if cloud.name == "gcs":
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        else:
            text = text.replace(f"http://127.0.0.1:{cloud.server.port}", server.endpoint)
            text = text.replace("DefaultEndpointsProtocol=http;", "DefaultEndpointsProtocol=https;")
        cloud.write_secret(secrets, text)
        folder = secrets / "configmap_authorities"
        folder.mkdir()
        (folder / "ca.crt").write_bytes(tls_files.certificate.read_bytes())
        yield server


BUNDLE = CaBundle(kind="configMap", name="authorities", key="ca.crt")


def set_up(cloud: Cloud, secrets: Path, **source: object) -> None:
    """As a worker does before it opens its store."""
    network.set_up(replace(cloud.source(), **source), str(secrets))  # type: ignore[arg-type]


def add_to_secret(secrets: Path, **fields: str) -> None:
    file = secrets / "cloud" / "key.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def use(cloud: Cloud, secrets: Path, *, retry_budget_s: float = 20.0) -> None:
    """Write, read, list and delete: what our HTTP does, and what the SDKs do."""
    store = cloud.open(secrets, retry_budget_s=retry_budget_s)
    try:
        made = store.put("dir/key", b"data")
        buffer = bytearray(4)
        store.get_range("dir/key", made.version, 0, memoryview(buffer))
        assert bytes(buffer) == b"data"
        assert [item.key for item in store.list_page("dir/").objects] == ["dir/key"]
        store.head("dir/key")
        store.delete_many(["dir/key"])
    finally:
        store.close()


def test_a_private_authority_is_accepted_only_with_its_bundle(
    cloud: Cloud, front: TlsFront, secrets: Path
) -> None:
    set_up(cloud, secrets)
    with pytest.raises(TlsUntrusted):
        use(cloud, secrets)
    set_up(cloud, secrets, ca_bundle=BUNDLE)
    use(cloud, secrets)
    text = Path(os.environ["SSL_CERT_FILE"]).read_text()
    assert text.count("BEGIN CERTIFICATE") > 50, "the public authorities are still trusted"


def test_an_sdk_that_is_loaded_trusts_what_came_later(
    cloud: Cloud, front: TlsFront, secrets: Path
) -> None:
    """aiohttp, below all three, reads the system's authorities once."""
    importlib.import_module("aiohttp")
    set_up(cloud, secrets, ca_bundle=BUNDLE)
    observer = CountingObserver()
    store = cloud.open(secrets, observer=observer)
    try:
        for key in ("a", "b"):
            store.put(key, b"data")
        store.delete_many(["a", "b"])
    finally:
        store.close()
    assert set(observer.requests) == {("put", "ok"), ("delete", "ok")}


@pytest.mark.parametrize("login", [None, PLAIN_LOGIN])
def test_three_clouds_through_a_tunnel(
    cloud: Cloud, front: TlsFront, secrets: Path, login: str | None
) -> None:
    with ForwardProxy(login) as proxy:
        url = f"http://{LOGIN}@127.0.0.1:{proxy.port}" if login else proxy.endpoint
        add_to_secret(secrets, HTTPS_PROXY=url)
        set_up(cloud, secrets, ca_bundle=BUNDLE)
        use(cloud, secrets)
        assert set(proxy.asked) == {f"CONNECT 127.0.0.1:{front.port}"}


def test_a_plain_endpoint_is_forwarded(cloud: Cloud, secrets: Path) -> None:
    cloud.write_secret(secrets)
    with ForwardProxy(PLAIN_LOGIN) as proxy:
        add_to_secret(secrets, HTTP_PROXY=f"http://{LOGIN}@127.0.0.1:{proxy.port}")
        set_up(cloud, secrets)
        use(cloud, secrets)
        asked = {line.split("?")[0].split(" ")[1][:22] for line in proxy.asked}
        assert asked >= {f"http://127.0.0.1:{cloud.server.port}"[:22]}


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "10.0.0.0/8, 127.0.0.0/8", "*"])
def test_what_is_exempt_is_reached_directly(
    cloud: Cloud, front: TlsFront, secrets: Path, no_proxy: str
) -> None:
    with ForwardProxy() as proxy:
        set_up(cloud, secrets, ca_bundle=BUNDLE, proxy=proxy.endpoint, no_proxy=no_proxy)
        use(cloud, secrets)
        assert proxy.asked == []


@pytest.mark.parametrize("given", ["wrong", "none"])
def test_a_wrong_password_is_one_line_without_it(
    cloud: Cloud, front: TlsFront, secrets: Path, given: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with ForwardProxy(PLAIN_LOGIN) as proxy:
        login = "somebody:wr0ng-password@" if given == "wrong" else ""
        add_to_secret(secrets, HTTPS_PROXY=f"http://{login}127.0.0.1:{proxy.port}")
        set_up(cloud, secrets, ca_bundle=BUNDLE)
        with pytest.raises(ProxyDenied) as caught:
            use(cloud, secrets)
        line = caught.value.line()
        assert line.startswith("error SC1057 PROXY_DENIED: the proxy ")
        assert f"127.0.0.1:{proxy.port}" in line
        assert "\n" not in line
        said = line + repr(caught.value) + "".join(capfd.readouterr())
        assert "wr0ng" not in said
        assert "somebody" not in said


def test_what_a_proxy_does_not_let_through(cloud: Cloud, front: TlsFront, secrets: Path) -> None:
    with ForwardProxy() as proxy:
        add_to_secret(secrets, HTTPS_PROXY=proxy.endpoint)
        set_up(cloud, secrets, ca_bundle=BUNDLE)
        proxy.refuses = 403
        with pytest.raises(ProxyDenied, match=r"refuses to connect to .*: status 403"):
            use(cloud, secrets)
        proxy.refuses = 503
        with pytest.raises(EndpointUnreachable, match=r"through the proxy .*: status 503"):
            use(cloud, secrets, retry_budget_s=2)
        assert len(proxy.asked) > 3, "as an outage, it is tried again"


def test_a_proxy_that_is_down_is_an_outage_with_its_name(
    cloud: Cloud, front: TlsFront, secrets: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        add_to_secret(secrets, HTTPS_PROXY=f"http://127.0.0.1:{port}")
        set_up(cloud, secrets, ca_bundle=BUNDLE)
        with pytest.raises(
            EndpointUnreachable,
            match=f"endpoint 127.0.0.1:{front.port} cannot be reached through the proxy "
            f"127.0.0.1:{port}: connection refused",
        ):
            use(cloud, secrets, retry_budget_s=0.3)
    with ForwardProxy(port=port):  # and it comes back
        use(cloud, secrets)


def test_the_login_to_google_goes_through_it_too(
    gcs_server: GcsServer, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token's endpoint is on another host than the bucket."""
    cloud = GcsCloud(gcs_server, "login-through-a-proxy")
    gcs_server.create_bucket(cloud.bucket)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
    cloud.write_secret(secrets)
    with ForwardProxy(PLAIN_LOGIN) as proxy:
        add_to_secret(secrets, HTTP_PROXY=f"http://{LOGIN}@127.0.0.1:{proxy.port}")
        set_up(cloud, secrets)
        use(cloud, secrets)
        assert any(line.startswith("POST ") and "/token" in line for line in proxy.asked)
        add_to_secret(secrets, HTTP_PROXY=f"http://somebody:wr0ng@127.0.0.1:{proxy.port}")
        set_up(cloud, secrets)
        with pytest.raises(ProxyDenied, match="on the way to GCS login endpoint") as caught:
            use(cloud, secrets)
        assert "wr0ng" not in caught.value.line()


@pytest.mark.parametrize(
    ("listed", "host", "exempt"),
    [
        ("storage.example.com", "storage.example.com", True),
        ("example.com", "storage.example.com", True),
        (".example.com", "storage.example.com", True),
        ("example.com", "notexample.com", False),
        ("storage.example.com:443", "storage.example.com", True),
        ("storage.example.com:8443", "storage.example.com", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("fd00::/8", "fd00::1", True),
        ("10.0.0.0/99, 10.1.2.3", "10.1.2.3", True),
        ("*", "anything", True),
    ],
)
def test_names_domains_addresses_and_networks(
    monkeypatch: pytest.MonkeyPatch, listed: str, host: str, exempt: bool
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", listed)
    found = proxy_for(host, 443, tls=True)
    assert (found is None) == exempt
    assert found is None or str(found) == "proxy.example:3128"


@pytest.mark.parametrize(
    "url", ["https://u:s3cret@proxy:3128", "socks5://proxy:1080", "proxy:3128"]
)
def test_what_is_no_proxy_is_one_line(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("https_proxy", url)
    with pytest.raises(SecretInvalid) as caught:
        proxy_for("storage.example.com", 443, tls=True)
    assert "`HTTPS_PROXY` is not http://HOST:PORT" in caught.value.line()
    assert "s3cret" not in caught.value.line()


def test_identities_of_a_pod_are_asked_for_on_the_node(
    monkeypatch: pytest.MonkeyPatch, secrets: Path
) -> None:
    source = StoreSource(store="s3", url="s3://b", bucket="b", proxy="http://proxy.example:3128")
    network.set_up(source, str(secrets))
    for host in ("169.254.169.254", "fd00:ec2::23", "fd00:ec2::254", "metadata.google.internal"):
        assert proxy_for(host, 80, tls=False) is None


@pytest.mark.parametrize(("content", "error"), [(None, SecretFileMissing), ("x", SecretInvalid)])
def test_a_bundle_that_cannot_be_used(
    secrets: Path, content: str | None, error: type[SidecarError]
) -> None:
    if content is not None:
        (secrets / "configmap_authorities").mkdir(parents=True)
        (secrets / "configmap_authorities" / "ca.crt").write_text(content)
    source = StoreSource(store="s3", url="s3://b", bucket="b", ca_bundle=BUNDLE)
    with pytest.raises(error, match="CA bundle"):
        network.set_up(source, str(secrets))
