"""How much later an experiment begins with the sidecar. Prints figures, and asserts none."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import pytest

from sidecar.units import MIB
from tests.cluster.pods.conftest import EXPERIMENT_IMAGE, Run
from tests.support.cluster import Cluster, Json
from tests.support.cluster_pods import MAIN, NAMESPACE, SIDECAR, ClusterPod, experiment

SAYS_WHEN = ["python3", "-c", "import time; print(time.time())"]
USED = """
cd /sys/fs/cgroup
cat cpuacct/cpuacct.usage 2>/dev/null || sed -n "s/^usage_usec \\(.*\\)/\\1000/p" cpu.stat
cd memory 2>/dev/null
usage=$(cat memory.usage_in_bytes memory.current 2>/dev/null)
echo $((usage - $(sed -n "s/^\\(total_\\)\\?inactive_file //p" memory.stat | tail -n 1)))
"""
"""The container's CPU time in ns, and its working set in bytes, as a kubelet counts it."""
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


def _last_began_after_s(cluster: Cluster, documents: list[Json]) -> float:
    """How long it took until each of some pods has begun, which are created at once.

    One kubectl creates them and one waits: each takes as much of the CPU as a pod.
    """
    namespaced = ("-n", NAMESPACE)
    names = [document["metadata"]["name"] for document in documents]
    before_s = time.time()
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    cluster.kubectl("create", "-f", "-", stdin=everything)
    try:
        ended = "--for=jsonpath={.status.phase}=Succeeded"
        cluster.kubectl(*namespaced, "wait", ended, "--timeout=100s", "pod", *names)
        began = [float(cluster.kubectl(*namespaced, "logs", name, "-c", MAIN)) for name in names]
    finally:
        cluster.kubectl(*namespaced, "delete", "pod", *names, "--grace-period=1")
    return max(began) - before_s


def _with_idle_sidecar(document: Json) -> Json:
    """The floor: what a sidecar costs that is a shell and does nothing, with the same probe."""
    idle = {
        "name": "idle",
        "image": EXPERIMENT_IMAGE,
        "restartPolicy": "Always",
        "command": ["sh", "-c", "trap exit TERM; : >/tmp/ready; sleep 600 & wait"],
        "startupProbe": {
            "exec": {"command": ["sh", "-c", "until test -e /tmp/ready; do sleep 0.1; done"]},
            "periodSeconds": 1,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
    }
    return {**document, "spec": {**document["spec"], "initContainers": [idle]}}


@pytest.mark.usefixtures("stores")
def test_many_at_once(installed: Cluster) -> None:
    """Interleaved: plain pods, ones with an idle sidecar, and ones with three buckets."""
    plain_s, idle_s, injected_s = [], [], []
    for turn in range(3):
        documents = [
            experiment(
                f"many-{number}", EXPERIMENT_IMAGE, SAYS_WHEN, run=f"{turn}/{number}", **THREE
            )
            for number in range(AT_ONCE)
        ]
        injected_s.append(_last_began_after_s(installed, documents))
        for document in documents:
            document["metadata"]["labels"] = {}
        plain_s.append(_last_began_after_s(installed, documents))
        documents = [_with_idle_sidecar(document) for document in documents]
        idle_s.append(_last_began_after_s(installed, documents))
    plain = statistics.median(plain_s)
    print(
        f"\nthe last of {AT_ONCE}: plain {_said(plain_s)}; with a sidecar that does nothing "
        f"{_said(idle_s)}, {statistics.median(idle_s) / plain:.1f} times as long; with three "
        f"buckets {_said(injected_s)}, {statistics.median(injected_s) / plain:.1f} times"
    )


@pytest.mark.parametrize("more", [ONE, THREE], ids=["one", "three"])
def test_requested_and_used(run: Run, more: dict[str, Any]) -> None:
    """By one that has just become ready, and ten seconds later."""
    pod = run("start", ["sleep", "600"], run="start/used", **more)
    pod.wait_until_ready()
    said = []
    for wait_s in (0, 10):
        time.sleep(wait_s)
        cpu_ns, used_bytes = pod.execute("sh", "-c", USED, container=SIDECAR).split()
        said.append(f"{int(cpu_ns) / 1e9:.2f} s of CPU and {int(used_bytes) // MIB} MiB")
    [sidecar] = [c for c in pod.get()["spec"]["initContainers"] if c["name"] == SIDECAR]
    print(f"\ntook {', then '.join(said)}; requests {sidecar['resources']['requests']}")
