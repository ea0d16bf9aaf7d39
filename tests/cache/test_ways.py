"""Mounts that come to one bucket by different ways share no cache: who chose one could forge it.

Whoever writes a login's secret chooses an endpoint, a proxy, authorities, or none; whoever writes a
spec by hand, what it calls its bucket.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.contract.spec import CaBundle, NodeCache
from sidecar.units import MIB
from tests.reading.buckets import fill, make_bucket
from tests.support.clouds import S3Cloud
from tests.support.faults import FaultProxy
from tests.support.forward_proxy import ForwardProxy, TlsFront
from tests.support.servers import S3Server, TlsFiles
from tests.support.sidecar import Sidecar, bucket_volume

pytestmark = pytest.mark.usefixtures("own_disk")

KEY = "object"
SIZE = 4 * MIB
BUNDLE = CaBundle(kind="configMap", name="authorities", key="ca.crt")


class Sharing:
    """One bucket, and what pods share that read it: a node's cache, or a near bucket."""

    def __init__(self, server: S3Server, directory: Path, shares: str) -> None:
        self.server = server
        self.cloud = make_bucket(server)
        self._shares = shares
        self._near = make_bucket(server)
        self._directory = directory
        self._content = fill(self.cloud, {KEY: SIZE})
        self._count = 0

    def fetched_bytes(
        self, endpoint: str, cloud: S3Cloud | None = None, authorities: str = "", **secret: str
    ) -> int:
        """What a pod fetches that reads the whole object.

        Args:
            cloud: where it really reads.
            authorities: besides the public ones, in PEM.
            secret: more fields of its login.
        """
        self._count += 1
        place = self._directory / f"pod{self._count}"
        login = {**self.server.credentials(), "AWS_ENDPOINT_URL": endpoint, **secret}
        source = replace((cloud or self.cloud).source(), url=self.cloud.url(), secret="cloud")
        if authorities:
            source = replace(source, ca_bundle=BUNDLE)
            folder = place / "run" / "secrets" / BUNDLE.folder
            folder.mkdir(parents=True)
            (folder / BUNDLE.key).write_text(authorities)
        volume = bucket_volume("v", place / "m", "s3", self.cloud.url(), read_only=True)
        volume = replace(volume, source=source)
        if self._shares == "near":
            volume = replace(volume, near=replace(self._near.source(), secret="near"))
        secrets = {"cloud": json.dumps(login), "near": json.dumps(self.server.credentials())}
        options = Options(cache="node" if self._shares == "node" else "none")
        sidecar = Sidecar(place / "run", [volume], secrets=secrets, options=options)
        roots = replace(sidecar.spec.roots, node_cache=str(self._directory / "cache"))
        sidecar.spec = replace(sidecar.spec, roots=roots, node_cache=NodeCache(size_bytes=64 * MIB))
        sidecar.spec_text = sidecar.spec.to_json()
        with sidecar:
            before_bytes = self._kept_bytes(sidecar)
            assert len((place / "m" / KEY).read_bytes()) == SIZE
            fetched_bytes = int(sidecar.metric("mount_sidecar_fetched_bytes_total"))
            if fetched_bytes:
                sidecar.wait_for(lambda: self._kept_bytes(sidecar) >= before_bytes + SIZE)
        return fetched_bytes

    def _kept_bytes(self, sidecar: Sidecar) -> int:
        name = "near_put_bytes_total" if self._shares == "near" else "disk_cache_used_bytes"
        return int(sidecar.metric(f"mount_sidecar_{name}"))


@pytest.fixture(params=["node", "near"])
def sharing(request: pytest.FixtureRequest, s3_server: S3Server, tmp_path: Path) -> Sharing:
    return Sharing(s3_server, tmp_path, request.param)


@pytest.fixture
def front(s3_server: S3Server, tmp_path: Path) -> Iterator[tuple[TlsFront, str]]:
    """TLS before the store, and its authority."""
    tls = TlsFiles(tmp_path / "tls")
    with TlsFront(s3_server.port, tls) as front:
        yield front, tls.certificate.read_text()


def test_the_same_way_is_shared(sharing: Sharing) -> None:
    endpoint = sharing.server.endpoint
    assert sharing.fetched_bytes(endpoint) >= SIZE
    assert sharing.fetched_bytes(endpoint) == 0


def test_another_endpoint_is_another_way(sharing: Sharing) -> None:
    with FaultProxy(sharing.server.port) as theirs:
        assert sharing.fetched_bytes(theirs.endpoint) >= SIZE
    assert sharing.fetched_bytes(sharing.server.endpoint) >= SIZE


def test_a_proxy_on_a_way_without_tls_is_another_way(sharing: Sharing) -> None:
    endpoint = sharing.server.endpoint
    with ForwardProxy() as theirs:
        proxy = f"http://127.0.0.1:{theirs.port}"
        assert sharing.fetched_bytes(endpoint, HTTP_PROXY=proxy) >= SIZE
        assert theirs.asked
        assert sharing.fetched_bytes(endpoint) >= SIZE
        assert sharing.fetched_bytes(endpoint, HTTP_PROXY=proxy) == 0


def test_a_proxy_on_a_way_with_tls_forges_nothing(
    sharing: Sharing, front: tuple[TlsFront, str]
) -> None:
    endpoint, authority = front[0].endpoint, front[1]
    with ForwardProxy() as theirs:
        proxy = f"http://127.0.0.1:{theirs.port}"
        assert sharing.fetched_bytes(endpoint, None, authority, HTTPS_PROXY=proxy) >= SIZE
    assert sharing.fetched_bytes(endpoint, None, authority) == 0


def test_whom_nobody_vouches_for_is_another_way(
    sharing: Sharing, front: tuple[TlsFront, str]
) -> None:
    endpoint, authority = front[0].endpoint, front[1]
    assert sharing.fetched_bytes(endpoint, None, authority, AWS_VERIFY_SSL="false") >= SIZE
    assert sharing.fetched_bytes(endpoint, None, authority) >= SIZE


def test_other_authorities_are_another_way(
    sharing: Sharing, front: tuple[TlsFront, str], tmp_path: Path
) -> None:
    endpoint, authority = front[0].endpoint, front[1]
    theirs = TlsFiles(tmp_path / "theirs").certificate.read_text()
    assert sharing.fetched_bytes(endpoint, None, authority + theirs) >= SIZE
    assert sharing.fetched_bytes(endpoint, None, authority) >= SIZE


def test_a_bucket_is_what_is_read_and_not_what_it_is_called(sharing: Sharing) -> None:
    theirs = make_bucket(sharing.server)
    fill(theirs, {KEY: SIZE})  # the same ETag, as a forger makes it
    endpoint = sharing.server.endpoint
    assert sharing.fetched_bytes(endpoint, theirs) >= SIZE
    assert sharing.fetched_bytes(endpoint) >= SIZE
