"""A bucket at a path of its own, that is through a sub-path, whose sidecar dies."""

from __future__ import annotations

import pytest

from sidecar.contract.pod import CONTAINER_NAME as SIDECAR
from sidecar.mounter.reporting.pod_reports import CONDITION
from tests.cluster.pods.conftest import Run
from tests.support.cluster import Refused
from tests.support.cluster_pods import MAIN, ClusterPod
from tests.support.node import Nodes

pytestmark = pytest.mark.timeout(300)

LOOKS = """
import os, time
while True:
    try:
        os.listdir("/results")
        print("usable", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
    time.sleep(0.5)
"""
ASKS = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen("http://127.0.0.1:9464" + sys.argv[1]).status)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""
DEAD = "Transport endpoint is not connected"


def last_line(pod: ClusterPod) -> str:
    try:
        return pod.kubectl("logs", pod.name, "-c", MAIN, "--tail=1").strip()
    except Refused:  # between two starts
        return ""


def condition(pod: ClusterPod) -> tuple[str, str, str]:
    found = pod.conditions().get(CONDITION, {})
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


def asked(pod: ClusterPod, path: str) -> str:
    """What the sidecar's server answers."""
    return pod.execute("/opt/sidecar/bin/python", "-c", ASKS, path, container=SIDECAR).strip()


def kill_sidecar(pod: ClusterPod, nodes: Nodes) -> None:
    """SIGKILL process 1, as an out-of-memory kill does; return once its successor is ready."""
    before = pod.status(SIDECAR)["restartCount"]
    assert nodes.kill(pod.uid, "supervisor\n") == 1

    def is_back() -> bool:
        status = pod.status(SIDECAR)
        return bool(status["restartCount"] > before and status["ready"] and status["started"])

    pod.wait_for(is_back, "the sidecar is back")


def test_a_dead_path_is_told_and_a_restart_mends_it(run: Run, nodes: Nodes) -> None:
    pod = run("at-a-path", ["python3", "-c", LOOKS], outputs="results", restartPolicy="Always")
    pod.wait_for(lambda: condition(pod)[:2] == ("True", "Mounted"), "the condition")
    pod.wait_for(lambda: last_line(pod) == "usable", "the bucket is there")
    kill_sidecar(pod, nodes)
    assert last_line(pod) == DEAD

    pod.wait_for(lambda: condition(pod)[:2] == ("False", "MountLost"), "the condition says it", 20)
    said = condition(pod)[2]
    assert "SC1095 MOUNT_LOST: volume outputs/results" in said
    assert "container `main`" in said
    [event] = [message for reason, message in pod.events() if reason == "MountLost"]
    assert "/results" in event
    answer = asked(pod, "/livez/experiment")
    assert answer.startswith("503 ")
    assert "outputs/results" in answer
    assert asked(pod, "/livez") == "200"  # another start of the sidecar mends nothing

    assert nodes.kill(pod.uid, "os.listdir") == 1
    pod.wait_for(lambda: pod.status(MAIN)["restartCount"] == 1, "main is started again", 60)
    pod.wait_for(lambda: last_line(pod) == "usable", "the bucket is there again", 60)
    pod.wait_for(lambda: condition(pod)[:2] == ("True", "Mounted"), "the condition", 30)
    assert asked(pod, "/livez/experiment") == "200"
    assert not any("failed to prepare subPath" in message for _, message in pod.events())


def test_a_probe_of_the_experiment_mends_it(run: Run, nodes: Nodes) -> None:
    """What docs/injection.md tells a user to write."""
    pod = run(
        "at-a-path-probed",
        ["python3", "-c", LOOKS],
        outputs="results",
        restartPolicy="Always",
        livenessProbe={
            "httpGet": {"path": "/livez/experiment", "port": 9464},
            "periodSeconds": 2,
            "failureThreshold": 2,
            "terminationGracePeriodSeconds": 1,
        },
    )
    pod.wait_for(lambda: last_line(pod) == "usable", "the bucket is there")
    kill_sidecar(pod, nodes)
    pod.wait_for(lambda: pod.status(MAIN)["restartCount"] == 1, "the kubelet restarts main", 90)
    pod.wait_for(lambda: last_line(pod) == "usable", "the bucket is there again", 60)
    pod.wait_for(lambda: condition(pod)[:2] == ("True", "Mounted"), "the condition", 30)
    assert pod.status(MAIN)["restartCount"] == 1
