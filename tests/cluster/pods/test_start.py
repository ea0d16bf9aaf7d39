"""How much later an experiment begins with the sidecar. Prints figures, and asserts none."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from sidecar.units import MIB
from tests.cluster.pods.conftest import EXPERIMENT_IMAGE, Run
from tests.support.cluster import Cluster
from tests.support.cluster_pods import MAIN, SIDECAR, ClusterPod, experiment

SAYS_WHEN = ["python3", "-c", "import time; print(time.time())"]
USED_BYTES = """
cd /sys/fs/cgroup/memory 2>/dev/null || cd /sys/fs/cgroup
usage=$(cat memory.usage_in_bytes memory.current 2>/dev/null)
echo $((usage - $(sed -n "s/^\\(total_\\)\\?inactive_file //p" memory.stat | tail -n 1)))
"""
"""A kubelet's working set: what it looks at for evictions, and `kubectl top` shows."""
ROUNDS = 15
AT_ONCE = 20
ONE: dict[str, Any] = {"outputs": "s3"}
THREE: dict[str, Any] = {"data": ["images", "labels"], "outputs": "s3"}

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def _plain(cluster: Cluster, name: str) -> ClusterPod:
    document = experiment(name, EXPERIMENT_IMAGE, SAYS_WHEN)
    document["metadata"]["labels"] = {}
    return ClusterPod.create(cluster, document)


def _began_s(pod: ClusterPod) -> float:
    """When the experiment printed its line."""
    assert pod.wait_until_ended() == "Succeeded", pod.described()
    return float(pod.logs(MAIN))


def _said(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def test_one_after_the_other(run: Run, installed: Cluster) -> None:
    """Interleaved: a plain pod, and one with two buckets."""
    plain, injected = [], []
    for number in range(ROUNDS):
        before_s = time.time()
        pod = _plain(installed, f"plain-{number}")
        plain.append(_began_s(pod) - before_s)
        pod.delete(grace_s=1, wait=False)
        more: dict[str, Any] = {"data": ["images"], "outputs": "s3", "run": f"start/{number}"}
        before_s = time.time()
        pod = run(f"start-{number}", SAYS_WHEN, **more)
        injected.append(_began_s(pod) - before_s)
        pod.delete(wait=False)
    print(f"\nplain {_said(plain)}; with two buckets {_said(injected)}")


def test_many_at_once(run: Run, installed: Cluster) -> None:
    before_s = time.time()
    plain = [_plain(installed, f"plain-{number}") for number in range(AT_ONCE)]
    plain_s = max(map(_began_s, plain)) - before_s
    for pod in plain:
        pod.delete(grace_s=1)
    before_s = time.time()
    pods = [run(f"start-{n}", SAYS_WHEN, run=f"start/{n}", **THREE) for n in range(AT_ONCE)]
    injected_s = max(map(_began_s, pods)) - before_s
    print(
        f"\nthe last of {AT_ONCE}: plain {plain_s:.1f} s, with three buckets {injected_s:.1f} s: "
        f"{injected_s / plain_s:.1f} times as long"
    )


@pytest.mark.parametrize("more", [ONE, THREE], ids=["one", "three"])
def test_memory_requested_and_used(run: Run, more: dict[str, Any]) -> None:
    """Of one that has just become ready, and ten seconds later."""
    pod = run("start", ["sleep", "600"], run="start/memory", **more)
    pod.wait_until_ready()
    used_mib = []
    for wait_s in (0, 10):
        time.sleep(wait_s)
        used_mib.append(int(pod.execute("sh", "-c", USED_BYTES, container=SIDECAR)) // MIB)
    [sidecar] = [c for c in pod.get()["spec"]["initContainers"] if c["name"] == SIDECAR]
    print(
        f"\nuses {used_mib[0]} MiB, then {used_mib[1]}; requests {sidecar['resources']['requests']}"
    )
