"""A cluster for these tests alone, with mount-sidecar's manifests in it.

Not among `make test`: `make test-cluster` runs them, on the cluster that ``KUBECONFIG`` names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.cluster import MANIFESTS, Cluster, Json, kustomize

NAMESPACE = "experiments"
ACCOUNT = "experiment"
_NEEDS_AN_IMAGE = {"Deployment", "DaemonSet"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """Its administrator."""
    named = os.environ.get("KUBECONFIG")
    assert named, "KUBECONFIG must name a cluster that may be changed; see `make test-cluster`"
    administrator = Cluster(Path(named))
    names = "mount-sidecar", NAMESPACE
    there = administrator.kubectl("get", "namespaces", *names, "--ignore-not-found", "-o", "name")
    assert there == "", "the cluster has mount-sidecar already, and would lose it"
    return administrator


@pytest.fixture(scope="session")
def manifests() -> list[Json]:
    """What an installation applies."""
    return kustomize(MANIFESTS / "overlays" / "kind")


@pytest.fixture(scope="session")
def experiments() -> list[Json]:
    """The namespace for experiments, which is a user's and no part of an installation."""
    text = (MANIFESTS / "overlays" / "kind" / "experiments.yaml").read_text()
    return list(yaml.safe_load_all(text))


@pytest.fixture(scope="module")
def policies(cluster: Cluster, manifests: list[Json], experiments: list[Json]) -> Iterator[Cluster]:
    """The cluster with everything of ours but the programs, and the namespace for experiments."""
    documents = [d for d in manifests if d["kind"] not in _NEEDS_AN_IMAGE] + experiments
    try:
        cluster.apply(documents)
        cluster.wait_for(lambda: _are_known(cluster), "the policies' types are checked")
        yield cluster
    finally:
        cluster.delete(documents)


def _are_known(cluster: Cluster) -> bool:
    """Whether the API server has seen the newest version of each policy."""
    found = cluster.get("validatingadmissionpolicies")["items"]
    return all(
        policy.get("status", {}).get("observedGeneration") == policy["metadata"]["generation"]
        for policy in found
    )
