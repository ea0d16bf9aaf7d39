"""Which clients may ask the webhook, in each overlay that has a policy."""

from __future__ import annotations

import pytest

from sidecar.cli.control import WEBHOOK_PORT
from sidecar.contract.spec import HTTP_PORT
from tests.pods.test_manifests import MANIFESTS, Json, find, kustomize

KUBE_SYSTEM = {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
AGENTS = [
    {
        "namespaceSelector": KUBE_SYSTEM,
        "podSelector": {"matchLabels": {label: "konnectivity-agent"}},
    }
    for label in ("k8s-app", "app")
]
ADMITTED = {"aks": AGENTS, "gke": AGENTS, "eks": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}


@pytest.mark.parametrize("overlay", ADMITTED)
def test_only_the_api_server_may_ask_the_webhook_where_it_is_known(overlay: str) -> None:
    documents = kustomize(MANIFESTS / "overlays" / overlay)
    policy: Json = find(documents, "NetworkPolicy", "mount-sidecar-webhook")["spec"]
    admission, metrics = policy["ingress"]
    assert admission == {"ports": [{"port": WEBHOOK_PORT}], "from": ADMITTED[overlay]}
    assert [port["port"] for port in metrics["ports"]] == [HTTP_PORT]
    assert len(metrics["from"]) == 1
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
