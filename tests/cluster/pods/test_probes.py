"""What the kubelet's probes say of sidecars that are well."""

from __future__ import annotations

import pytest

from tests.cluster.pods.conftest import Run

AT_ONCE = 20
"""More than a node of two processors starts within the few seconds that a probe used to wait."""

pytestmark = pytest.mark.timeout(600)


def test_no_startup_probe_of_a_healthy_pod_fails(run: Run) -> None:
    """Each one that fails is an event of type Warning, and alarms whoever looks at the pod."""
    pods = [
        run(f"well-{number}", ["true"], data=["images", "labels"], outputs="s3", run=f"{number}")
        for number in range(AT_ONCE)
    ]
    for pod in pods:
        assert pod.wait_until_ended() == "Succeeded"
    assert [said for pod in pods for said in pod.events() if "Startup probe" in said[1]] == []
