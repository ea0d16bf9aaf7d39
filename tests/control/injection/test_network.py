"""How a pod's sidecar reaches the stores: the cluster's way, and a volume's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.cli.main import main
from sidecar.contract.spec import CaBundle, PersistenceSpec
from sidecar.contract.spec_document import load_spec
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from sidecar.control.injection.store_network import Network
from sidecar.errors import CatalogueInvalid

CATALOGUE = """
data:
  own:
    store: s3
    bucket: s3://own
    proxy: http://other.example:8080
    noProxy: .internal
    caBundle: {configMap: private, key: root.pem}
  plain: {store: gcs, bucket: gs://plain}
  node: {hostPath: /data, mountPath: /data/node}
outputs:
  runs:
    store: s3
    bucket: s3://runs
    secret: s3-secret
    secretKey: key.json
    caBundle: {secret: s3-secret, key: ca.crt}
"""
POD = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main", "image": "i"}]}}
CLUSTER = Network(
    proxy="http://proxy.example:3128",
    no_proxy="10.0.0.0/8",
    ca_bundle=CaBundle(kind="configMap", name="authorities", key="ca.crt"),
)


def injected(network: Network) -> tuple[dict[str, Any], PersistenceSpec]:
    catalogue = parse_catalogue(CATALOGUE, "the test's catalogue")
    injection = Injection(network=network)
    pod = inject(POD, catalogue, injection)
    assert inject(pod, catalogue, injection) is pod, "it is known again"
    return pod["spec"], load_spec(pod["metadata"]["annotations"]["mount-sidecar.io/spec"], "spec")


def test_a_volume_s_own_way_counts_before_the_cluster_s() -> None:
    _, spec = injected(CLUSTER)
    sources = {volume.name: volume.source for volume in spec.buckets}
    own, plain, runs = sources["own"], sources["plain"], sources["runs"]
    assert (own.proxy, own.no_proxy) == ("http://other.example:8080", ".internal")
    assert own.ca_bundle == CaBundle(kind="configMap", name="private", key="root.pem")
    assert (plain.proxy, plain.no_proxy) == (CLUSTER.proxy, CLUSTER.no_proxy)
    assert plain.ca_bundle == CLUSTER.ca_bundle
    assert runs.ca_bundle == CaBundle(kind="secret", name="s3-secret", key="ca.crt")


def test_bundles_are_mounted_in_the_sidecar_alone() -> None:
    pod, spec = injected(CLUSTER)
    [sidecar] = pod["initContainers"]
    mounts = {mount["name"]: mount for mount in sidecar["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    found = {}
    for name, volume in volumes.items():
        kind = "configMap" if "configMap" in volume else "secret" if "secret" in volume else None
        for item in volume[kind]["items"] if kind else []:
            assert mounts[name]["readOnly"] is True
            found[f"{mounts[name]['mountPath']}/{item['path']}"] = name
    for volume in spec.buckets:
        assert volume.source.ca_bundle.path(spec.roots.secrets) in found
    assert not {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} & {*found.values()}


def test_a_proxy_with_a_login_is_in_no_manifest() -> None:
    pod, spec = injected(Network(proxy_secret="proxy"))
    environment = {item["name"]: item for item in pod["initContainers"][0]["env"]}
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        reference = environment[name]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "proxy", "key": name, "optional": True}
    assert spec.buckets[1].source.proxy is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("proxy: http://u:s3cret@proxy:3128", "must have no login"),
        ("proxy: https://proxy:3128", "must look like http://HOST:PORT"),
        ("proxy: proxy:3128", "must look like http://HOST:PORT"),
        ("proxy: 'http://proxy:99999'", "must look like http://HOST:PORT"),
        ("caBundle: {key: ca.crt}", "needs one of `configMap` and `secret`"),
        ("caBundle: {configMap: a, secret: b, key: ca.crt}", "needs one of"),
        ("caBundle: {configMap: a/b, key: ca.crt}", "cannot be its name"),
        ("caBundle: {configMap: a, key: ../x}", "cannot be a key of it"),
    ],
)
def test_what_a_catalogue_cannot_say(line: str, said: str) -> None:
    text = f"data:\n  d:\n    store: s3\n    bucket: s3://bucket\n    {line}\n"
    with pytest.raises(CatalogueInvalid, match=said) as caught:
        parse_catalogue(text, "c")
    assert "s3cret" not in caught.value.line()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--proxy", "http://u:s3cret@proxy:3128"], "name a --proxy-secret"),
        (["--proxy", "http://proxy:1", "--proxy-secret", "p"], "exclude each other"),
        (["--ca-bundle", "authorities"], "configMap/NAME/KEY"),
    ],
)
def test_what_the_options_cannot_say(
    options: list[str], said: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(CATALOGUE)
    (tmp_path / "pod.json").write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", **POD}))
    files = ["--catalogue", str(tmp_path / "c.yaml"), "-f", str(tmp_path / "pod.json")]
    assert main(["inject", *files, *options]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert "s3cret" not in printed.err + printed.out
