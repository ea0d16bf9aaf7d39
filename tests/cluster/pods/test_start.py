"""How much later an experiment begins with the sidecar. Prints figures, and asserts none."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import pytest

from sidecar.units import MIB
from tests.cluster.pods.conftest import EXPERIMENT_IMAGE, PREFIX, Run
from tests.support.cluster import Cluster, Json
from tests.support.cluster_pods import (
    MAIN,
    NAMESPACE,
    SIDECAR,
    ClusterPod,
    experiment,
    image,
)

SAYS_WHEN = ["python3", "-c", "import time; print(time.time())"]
USED = """
cd /sys/fs/cgroup
cat cpuacct/cpuacct.usage 2>/dev/null || sed -n "s/^usage_usec \\(.*\\)/\\1000/p" cpu.stat
cd memory 2>/dev/null
usage=$(cat memory.usage_in_bytes memory.current 2>/dev/null)
echo $((usage - $(sed -n "s/^\\(total_\\)\\?inactive_file //p" memory.stat | tail -n 1)))
"""
"""The container's CPU time in ns, and its working set in bytes, as a kubelet counts it."""
IMPORTS = """
import signal, sys
from sidecar.mounter import fork_server
fork_server.import_stores({"s3"})
open("/tmp/ready", "w").close()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.pause()
"""
ROUNDS = 15
AT_ONCE = 20
ONE: dict[str, Any] = {"outputs": "s3"}
FLOORS = {
    "a shell that waits": (
        EXPERIMENT_IMAGE,
        ["sh", "-c", "trap exit TERM; : >/tmp/ready; sleep 600 & wait"],
    ),
    "our imports, then nothing": (
        image(PREFIX, "mount-sidecar"),
        ["python3", "-c", IMPORTS],
    ),
}
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


def _with_idle_sidecar(document: Json, image: str, command: list[str]) -> Json:
    """A pod with a sidecar that does nothing, with the same probe."""
    idle = {
        "name": "idle",
        "image": image,
        "restartPolicy": "Always",
        "command": command,
        "startupProbe": {
            "exec": {"command": ["sh", "-c", "until test -e /tmp/ready; do sleep 0.1; done"]},
            "periodSeconds": 1,
            "timeoutSeconds": 60,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
    }
    return {**document, "spec": {**document["spec"], "initContainers": [idle]}}


@pytest.mark.usefixtures("stores")
def test_many_at_once(installed: Cluster) -> None:
    """Interleaved: plain pods, ones with three buckets, and two floors.

    The floors are what any sidecar costs, and what one interpreter for each pod costs.
    """
    seconds: dict[str, list[float]] = {}

    def measure(name: str, documents: list[Json]) -> None:
        seconds.setdefault(name, []).append(_last_began_after_s(installed, documents))

    for turn in range(3):
        documents = [
            experiment(
                f"many-{number}", EXPERIMENT_IMAGE, SAYS_WHEN, run=f"{turn}/{number}", **THREE
            )
            for number in range(AT_ONCE)
        ]
        measure("three buckets", documents)
        for document in documents:
            document["metadata"]["labels"] = {}
        measure("plain", documents)
        for name, (of_image, command) in FLOORS.items():
            measure(name, [_with_idle_sidecar(d, of_image, command) for d in documents])
    plain = statistics.median(seconds["plain"])
    for name, measured in seconds.items():
        times = statistics.median(measured) / plain
        print(f"\nthe last of {AT_ONCE}, {name}: {_said(measured)}, {times:.1f} times plain")


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
