"""Pods on the node's network: several of them on one node."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import NAMESPACE
from tests.cluster.injected import injected, logs, ready_condition, running, wait_ready
from tests.support.cluster import Cluster

CATALOGUE = {"data": {"node": {"hostPath": "/usr/share", "mountPath": "/node", "readOnly": True}}}
NAMES = ["network-0", "network-1"]

pytestmark = pytest.mark.timeout(300)


def test_two_of_them_run_on_one_node(policies: Cluster) -> None:
    node = policies.get("nodes")["items"][0]["metadata"]["name"]
    selector = {"kubernetes.io/hostname": node}
    pods = [
        injected(name, CATALOGUE, "ls /node", hostNetwork=True, nodeSelector=selector)
        for name in NAMES
    ]
    with running(policies, *pods):
        wait_ready(policies, NAMES)
        for name in NAMES:
            assert "zoneinfo" in logs(policies, name)
            policies.wait_for(
                lambda name=name: ready_condition(policies, name)[0] == "True", "its condition"
            )
        # The liveness probe has been asked, and nothing was restarted.
        found = policies.get("-n", NAMESPACE, "pods")["items"]
        for pod in found:
            [status] = pod["status"]["initContainerStatuses"]
            assert (status["started"], status["restartCount"]) == (True, 0)
