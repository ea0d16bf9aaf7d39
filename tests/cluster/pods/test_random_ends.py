"""Pods that end at random moments: in time, nothing left behind, everything saved that was said."""

from __future__ import annotations

import hashlib
import io
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import minio
import pytest

from sidecar.units import MIB
from tests.cluster.pods.conftest import BUCKET, EXPERIMENT_IMAGE, Run
from tests.support.cluster import Cluster
from tests.support.cluster_pods import MAIN, ClusterPod, experiment
from tests.support.node import Nodes
from tests.support.servers import find_program
from tests.support.stores_in_a_pod import Stores

GRACE_S = 10
AT_ONCE = 4
"""Pods at a time. Two cores start one in about two seconds."""
_MARGIN_S = 10.0
"""What the kubelet and the API server take, on a loaded machine."""
_DATA_BYTES = 8 * MIB

# SIGTERM ends it in the middle of whatever it does.
WORKS = """
import hashlib, itertools, os, random, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
os.chdir(os.environ["POLYAXON_RUN_OUTPUTS_PATH"])
print("begins", flush=True)
for number in itertools.count():
    if sys.argv[1] == "read":
        with open("/mnt/persistence/data/images/large", "rb") as file:
            while file.read(65536):
                pass
    data = os.urandom(random.randrange(1, 300_000))
    name = f"{number % 3}/{number}"
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as file:
        file.write(data)
    print("saved", name, hashlib.sha256(data).hexdigest(), flush=True)
"""
ENDS_AT_SIGTERM = ["sh", "-c", "trap exit TERM; sleep 1000 & wait"]

WAYS: dict[str, dict[str, Any]] = {
    "deleted": {},
    "deleted with 5 s": {"grace_s": 5},
    "deleted by force": {"grace_s": 0, "force": True},
}


class Ended(NamedTuple):
    """One pod's end.

    Attributes:
        took_s: from the deletion until the API server and the node no longer have it.
        saved: SHA-256 by name of each file whose close() returned.
        missing: of those, the ones that the store has not, or has otherwise.
        left: what stayed mounted on the node.
    """

    name: str
    took_s: float
    grace_s: float
    saved: dict[str, str]
    missing: list[str]
    left: list[str]


def _follow(pod: ClusterPod, file: Path) -> subprocess.Popen[bytes]:
    """Copies what the container prints into a file: when the pod is gone, so is its log."""
    command = [find_program("kubectl", install="apt install kubectl"), "-n", pod.namespace]
    with file.open("wb") as log:
        return subprocess.Popen(
            [*command, "logs", "--follow", pod.name, "-c", MAIN],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "KUBECONFIG": str(pod.cluster.kubeconfig)},
        )


class _Ends:
    """Ends pods; each call is one."""

    def __init__(self, run: Run, stores: Stores, nodes: Nodes, folder: Path, seed: int) -> None:
        self._run = run
        self._stores = stores
        self._nodes = nodes
        self._folder = folder
        self._seed = seed

    def __call__(self, number: int) -> Ended:
        chance = random.Random(f"{self._seed}/{number}")
        moment = ("starting", "reading", "writing")[number % 3]
        way = chance.choice(sorted(WAYS))
        place = f"random/{self._seed}/{number}"
        pod = self._run(
            f"random-{number}",
            ["python3", "-c", WORKS, "read" if moment == "reading" else "write"],
            data=["images"],
            outputs="s3",
            run=place,
            grace_s=GRACE_S,
        )
        log = self._folder / f"{number}.log"
        follower = None
        try:
            if moment == "starting":
                time.sleep(chance.uniform(0.0, 4.0))
            else:
                pod.wait_for(lambda: bool(pod.status(MAIN).get("ready")), "main runs")
                follower = _follow(pod, log)
                time.sleep(chance.uniform(0.0, 3.0))
            grace_s = WAYS[way].get("grace_s", pod.get()["spec"]["terminationGracePeriodSeconds"])
            began_s = time.monotonic()
            pod.delete(**WAYS[way], wait=False)
            pod.wait_for(lambda: pod.is_gone, "gone from the API", 120)
            # By force it is gone from there at once, and the node ends it afterwards.
            pod.wait_for(lambda: not self._nodes.has_directory(pod.uid), "gone from its node", 120)
            took_s = time.monotonic() - began_s
        finally:
            if follower is not None:
                try:
                    follower.wait(10)
                except subprocess.TimeoutExpired:
                    follower.kill()
                    follower.wait()
        saved = self._saved(log)
        ended = Ended(
            f"{number}: {moment}, {way}",
            took_s,
            float(grace_s),
            saved,
            [name for name in saved if self._stored(f"{place}/{name}") != saved[name]],
            self._nodes.mounts_of(pod.uid),
        )
        # At once, so that a run that is stopped has said what it saw.
        print(f"{ended.name}: {took_s:.1f} s of {grace_s} s, {len(saved)} saved", flush=True)
        return ended

    def _saved(self, log: Path) -> dict[str, str]:
        if not log.exists():
            return {}
        whole = log.read_text().rpartition("\n")[0]  # without a line that was cut off
        lines = [line.split() for line in whole.splitlines()]
        return {words[1]: words[2] for words in lines if words[0] == "saved" and len(words) == 3}

    def _stored(self, key: str) -> str:
        try:
            with self._stores.s3.client().get_object(BUCKET, key) as answer:
                return hashlib.sha256(answer.read()).hexdigest()
        except minio.error.S3Error as error:
            return str(error.code)


def in_parallel(act: Callable[[int], Any], count: int) -> list[Any]:
    """``act`` of each number below ``count``, a few at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(act, range(count)))


@pytest.fixture
def large(stores: Stores) -> None:
    """An object that takes a moment to read."""
    stores.s3.client().put_object("data", "large", io.BytesIO(bytes(_DATA_BYTES)), _DATA_BYTES)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(9, marks=pytest.mark.timeout(600)),
        pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(3000)]),
    ],
)
def test_pods_that_end_at_random_moments(
    run: Run, stores: Stores, nodes: Nodes, tmp_path: Path, count: int
) -> None:
    seed = int(os.environ.get("TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    ends: list[Ended] = in_parallel(_Ends(run, stores, nodes, tmp_path, seed), count)
    print(f"seed {seed}: {sum(len(ended.saved) for ended in ends)} files were saved")
    assert [ended.name for ended in ends if ended.left] == []
    assert [(ended.name, ended.missing) for ended in ends if ended.missing] == []
    late = [ended for ended in ends if ended.took_s > ended.grace_s + _MARGIN_S]
    assert [(ended.name, round(ended.took_s, 1)) for ended in late] == []
    assert any(ended.saved for ended in ends)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(8, marks=pytest.mark.timeout(600)),
        pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(3000)]),
    ],
)
def test_deleted_while_starting(run: Run, installed: Cluster, nodes: Nodes, count: int) -> None:
    """Each is gone within three seconds of what a pod without the sidecar takes, whenever it is."""
    seed = int(os.environ.get("TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    chance = random.Random(seed)
    plain_s = _plain_s(installed)
    took = []
    for number in range(count):
        pod = run(f"starting-{number}", ENDS_AT_SIGTERM, outputs="s3", run=f"starting/{number}")
        after_s = chance.uniform(0.0, 4.0)
        time.sleep(after_s)
        took.append((round(_deleted_s(pod), 1), round(after_s, 1)))
        assert nodes.mounts_of(pod.uid) == []
    print(f"seed {seed}: a plain pod {plain_s:.1f} s; seconds until gone, after: {took}")
    assert [pair for pair in took if pair[0] > plain_s + 3.0] == []


def _deleted_s(pod: ClusterPod) -> float:
    """How long its deletion takes."""
    began_s = time.monotonic()
    pod.delete()
    return time.monotonic() - began_s


def _plain_s(cluster: Cluster) -> float:
    """The median of such a pod without the sidecar, on this machine at present."""
    times = []
    for number in range(3):
        document = experiment(f"plain-{number}", EXPERIMENT_IMAGE, ENDS_AT_SIGTERM)
        document["metadata"]["labels"] = {}
        pod = ClusterPod.create(cluster, document)
        time.sleep(1.0)
        times.append(_deleted_s(pod))
    return statistics.median(times)
