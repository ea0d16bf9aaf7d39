"""A mount whose store is behind a proxy with a login, and has a private authority."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.spec import CaBundle, Volume
from tests.mount.buckets import CLOUDS, ended_with, make_cloud
from tests.support.clouds import Cloud
from tests.support.forward_proxy import ForwardProxy, TlsFront
from tests.support.servers import TlsFiles
from tests.support.sidecar import Sidecar

PASSWORD = "passw0rd-of-the-proxy"


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    with ForwardProxy(f"proxyuser:{PASSWORD}") as server:
        yield server


@pytest.fixture(params=sorted(CLOUDS))
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud(request, monkeypatch, request.param)


@pytest.fixture
def front(cloud: Cloud, tmp_path: Path) -> Iterator[TlsFront]:
    with TlsFront(cloud.server.port, TlsFiles(tmp_path / "tls")) as server:
        yield server


def proxied(
    tmp_path: Path,
    cloud: Cloud,
    front: TlsFront,
    proxy: ForwardProxy,
    password: str,
    where: str = "secret",
) -> Sidecar:
    """A sidecar as it is injected: the bundle in a ConfigMap, the login in the volume's secret.

    Args:
        where: ``container``: the login in the container's variables, as by `--proxy-secret`.
    """
    in_secret = where == "secret"
    text = cloud.server.credentials_json()
    text = text.replace(f"http://127.0.0.1:{cloud.server.port}", front.endpoint)
    text = text.replace("DefaultEndpointsProtocol=http;", "DefaultEndpointsProtocol=https;")
    url = f"http://proxyuser:{password}@127.0.0.1:{proxy.port}"
    folder = tmp_path / "run" / "secrets" / "configmap_authorities"
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes((tmp_path / "tls" / "certificate.pem").read_bytes())
    bundle = CaBundle(kind="configMap", name="authorities", key="ca.crt")
    source = replace(cloud.source(), ca_bundle=bundle)
    volume = Volume(name="train", kind="outputs", path=str(tmp_path / "m"), source=source)
    return Sidecar(
        tmp_path / "run",
        [volume],
        secrets={
            "cloud": json.dumps(json.loads(text) | ({"HTTPS_PROXY": url} if in_secret else {}))
        },
        environment={"STORAGE_EMULATOR_HOST": front.endpoint}
        | ({} if in_secret else {"HTTPS_PROXY": url}),
    )


def told(sidecar: Sidecar) -> str:
    """Everything that somebody may read."""
    files = (sidecar.output_file, sidecar.termination_message, sidecar.state / "status.json")
    parts = [file.read_text() for file in files if file.exists()]
    return "\n".join([sidecar.log(), *parts])


@pytest.mark.parametrize("where", ["secret", "container"])
def test_a_mount_through_a_proxy(
    tmp_path: Path, cloud: Cloud, front: TlsFront, proxy: ForwardProxy, where: str
) -> None:
    with proxied(tmp_path, cloud, front, proxy, PASSWORD, where) as sidecar:
        file = tmp_path / "m" / "new"
        file.write_bytes(b"through a tunnel")
        file.rename(tmp_path / "m" / "renamed")
        assert cloud.read("renamed") == b"through a tunnel"
        assert (tmp_path / "m" / "renamed").read_bytes() == b"through a tunnel"
        pages = "".join(sidecar.get(page)[1] for page in ("/statusz", "/metrics"))
        kept = [file.read_bytes() for file in sidecar.state.rglob("*") if file.is_file()]
        assert not any(b"CERTIFICATE" in content for content in kept)  # where others may write
        assert sidecar.stop() == 0
        said = told(sidecar) + pages
    assert set(proxy.asked) == {f"CONNECT 127.0.0.1:{front.port}"}
    assert PASSWORD not in said
    assert "proxyuser" not in said


def test_a_wrong_password_ends_the_start_with_one_line(
    tmp_path: Path, cloud: Cloud, front: TlsFront, proxy: ForwardProxy
) -> None:
    sidecar = proxied(tmp_path, cloud, front, proxy, "wr0ng-password")
    sidecar.start(wait=False)
    try:
        ended_with(
            sidecar,
            3,
            rf"error SC1057 PROXY_DENIED: volume outputs/train \(.*\): the proxy "
            rf"127.0.0.1:{proxy.port} on the way to .* endpoint 127.0.0.1:{front.port} refuses the "
            r"login; put user and password .*",
        )
        assert "wr0ng" not in told(sidecar)
    finally:
        sidecar.clean_up()
