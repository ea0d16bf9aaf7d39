"""What a pod lacks is told with its code, and the pod starts by itself once it is there."""

from __future__ import annotations

import uuid

import pytest

from tests.cluster.conftest import NAMESPACE
from tests.cluster.injected import (
    IMAGE,
    events,
    injected,
    logs,
    ready_condition,
    running,
    secret,
    wait_ready,
)
from tests.support.cluster import Cluster, Json
from tests.support.strict_server import StrictS3Server

BUCKET = "images"
pytestmark = pytest.mark.timeout(400)


def bucket(name: str) -> Json:
    return {
        "store": "s3",
        "bucket": f"s3://{BUCKET}",
        "secret": name,
        "secretKey": "key.json",
        "readOnly": True,
    }


def told(cluster: Cluster, pod: str, code: str) -> bool:
    """Whether event and condition have the code; with a FailedMount nobody could tell one."""
    _, reason, message = ready_condition(cluster, pod)
    by_event = any(r == "MountFailed" and m.startswith(code) for r, m in events(cluster, pod))
    return by_event and reason == "MountFailed" and message.startswith(code)


def test_a_secret_that_does_not_exist_and_then_does(
    policies: Cluster, strict_s3_server: StrictS3Server
) -> None:
    """The pod selects nothing: it has every data volume, as one with the bare label."""
    strict_s3_server.create_bucket(BUCKET)
    catalogue = {"data": {"images": bucket("absent")}}
    # The store listens on the loopback address of the node.
    pod = injected("missing-secret", catalogue, "true", hostNetwork=True)
    late = secret("absent", strict_s3_server.credentials_json())
    with running(policies, pod):
        policies.wait_for(lambda: told(policies, "missing-secret", "SC1030"), "SC1030")
        _, _, message = ready_condition(policies, "missing-secret")
        assert "volume data/images" in message
        assert "kubectl create secret generic absent --from-file=key.json=FILE" in message
        with running(policies, late):
            # At the kubelet's next start of the container, with which it reads the secret again.
            wait_ready(policies, ["missing-secret"], 200)
            policies.wait_for(
                lambda: ready_condition(policies, "missing-secret")[0] == "True", "the condition"
            )


def test_a_host_path_that_does_not_exist_and_then_does(policies: Cluster) -> None:
    name = f"mount-sidecar-{uuid.uuid4().hex}"
    path = f"/tmp/{name}"
    volume = {"hostPath": path, "mountPath": "/data/node", "readOnly": True}
    pod = injected("missing-path", {"data": {"node": volume}}, "ls /data/node")
    try:
        with running(policies, pod):
            policies.wait_for(lambda: told(policies, "missing-path", "SC1083"), "SC1083")
            _, _, message = ready_condition(policies, "missing-path")
            assert f"volume data/node ({path})" in message
            on_node(policies, f"echo 1 > /node/{name}/image.png")
            wait_ready(policies, ["missing-path"], 200)
            assert logs(policies, "missing-path").split() == ["image.png"]
    finally:
        on_node(policies, f"rm -r /node/{name}")


def on_node(cluster: Cluster, command: str) -> None:
    """Run a shell's command with the node's /tmp at /node."""
    main = {
        "name": "main",
        "image": IMAGE,
        "command": ["sh", "-c", command],
        "volumeMounts": [{"name": "node", "mountPath": "/node"}],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "on-node", "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "containers": [main],
            "volumes": [{"name": "node", "hostPath": {"path": "/tmp"}}],
        },
    }
    with running(cluster, pod):
        done = "wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "pod/on-node"
        cluster.kubectl("-n", NAMESPACE, *done)
