"""How much later an experiment begins with the sidecar. Prints figures, and asserts none."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from tests.cluster.pods.conftest import EXPERIMENT_IMAGE, Run
from tests.support.cluster import Cluster
from tests.support.cluster_pods import MAIN, ClusterPod, experiment

SAYS_WHEN = ["python3", "-c", "import time; print(time.time())"]
ROUNDS = 15
AT_ONCE = 15

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
    more: dict[str, Any] = {"data": ["images"], "outputs": "s3"}
    before_s = time.time()
    pods = [
        run(f"start-{number}", SAYS_WHEN, run=f"start/{number}", **more)
        for number in range(AT_ONCE)
    ]
    injected_s = max(map(_began_s, pods)) - before_s
    print(f"\nthe last of {AT_ONCE}: plain {plain_s:.1f} s, with two buckets {injected_s:.1f} s")
