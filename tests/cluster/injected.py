"""Pods that `sidecar inject` has made, on a cluster with the policies and without the webhook."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from sidecar import __version__
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from sidecar.mounter.reporting.pod_reports import CONDITION
from tests.cluster.conftest import ACCOUNT, NAMESPACE
from tests.support.cluster import Cluster, Json

IMAGE = f"localhost/mount-sidecar:{__version__}"


def injected(
    name: str,
    catalogue: Json,
    command: str,
    annotations: Mapping[str, str] | None = None,
    limits: Mapping[str, str] | None = None,
    **spec: object,
) -> Json:
    """A pod whose container ``main`` runs a shell's command, and ends at SIGTERM.

    Args:
        catalogue: what is declared.
        limits: of ``main``.
        spec: of the pod.
    """
    main = {
        "name": "main",
        "image": IMAGE,
        "command": ["sh", "-c", f"trap exit TERM; {command}; sleep 1000 & wait"],
        "resources": {"limits": dict(limits or {})},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "annotations": {f"mount-sidecar.io/{k}": v for k, v in (annotations or {}).items()},
        },
        "spec": {
            "serviceAccountName": ACCOUNT,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [main],
            **spec,
        },
    }
    declared = parse_catalogue(json.dumps(catalogue), "the test's catalogue")
    return inject(pod, declared, Injection(image=IMAGE))


@contextmanager
def running(cluster: Cluster, *documents: Json) -> Iterator[None]:
    """With these objects, which are gone afterwards."""
    try:
        cluster.apply(documents)
        yield
    finally:
        cluster.delete(documents)


def wait_ready(cluster: Cluster, names: Iterable[str], timeout_s: int = 100) -> None:
    """Return when each pod is ready."""
    pods = [f"pod/{name}" for name in names]
    ready = "wait", "--for=condition=Ready", f"--timeout={timeout_s}s"
    cluster.kubectl("-n", NAMESPACE, *ready, *pods)


def logs(cluster: Cluster, name: str, container: str = "main") -> str:
    """What a container has printed."""
    return cluster.kubectl("-n", NAMESPACE, "logs", name, "-c", container)


def ready_condition(cluster: Cluster, name: str) -> tuple[str, str, str]:
    """Status, reason and message of the sidecar's condition; empty if there is none."""
    found = cluster.get("-n", NAMESPACE, "pod", name)["status"].get("conditions", [])
    for one in found:
        if one["type"] == CONDITION:
            return one["status"], one["reason"], one["message"]
    return "", "", ""


def events(cluster: Cluster, name: str) -> list[tuple[str, str]]:
    """(Reason, message) of each event about a pod."""
    selector = f"--field-selector=involvedObject.name={name}"
    found = cluster.get("-n", NAMESPACE, "events", selector)["items"]
    return [(event["reason"], event["message"]) for event in found]


def secret(name: str, content: str) -> Json:
    """A secret with the key ``key.json``."""
    metadata = {"name": name, "namespace": NAMESPACE}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "stringData": {"key.json": content},
    }
