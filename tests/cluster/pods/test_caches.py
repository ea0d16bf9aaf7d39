"""Caches in pods: on the pod's disk, in memory, and on the node's disk for all its pods."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator

import pytest

from sidecar.units import MIB
from tests.cluster.pods.conftest import PREFIX, Run, upgrade
from tests.support.clouds import S3Cloud
from tests.support.cluster import Cluster, Refused
from tests.support.cluster_pods import ClusterPod, image
from tests.support.node import Nodes
from tests.support.stores_in_a_pod import Stores

SHORT_BYTES, LONG_BYTES = 96 * MIB, 2048 * MIB
FILE = "/mnt/persistence/data/images/shared"
FOREVER = ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
READ = """
import hashlib, os, sys, time
digest, began = hashlib.sha256(), time.monotonic()
with open(sys.argv[1], "rb", buffering=0) as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest(), os.path.getsize(sys.argv[1]) / (time.monotonic() - began) / 1e6)
"""
METRICS = (
    "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
)

pytestmark = pytest.mark.timeout(600)


def filled(stores: Stores, size: int) -> str:
    """An object of this size; its SHA-256."""
    content = random.Random(1).randbytes(16 * MIB) * (size // (16 * MIB))
    S3Cloud(stores.s3, "data").write("shared", content)
    return hashlib.sha256(content).hexdigest()


def cached_pod(run: Run, name: str, **options: object) -> ClusterPod:
    """A running experiment whose data has these options."""
    annotations = {"options": json.dumps({"images": options})}
    pod = run(name, FOREVER, data=["images"], annotations=annotations)
    pod.wait_until_ready()
    return pod


def read(pod: ClusterPod, digest: str, path: str = FILE) -> float:
    """Read the file and compare it; MB/s."""
    found, rate = pod.execute("python3", "-c", READ, path).split()
    assert found == digest
    return float(rate)


def metric(pod: ClusterPod, name: str) -> float:
    """The sum of a metric of the data."""
    lines = pod.execute("python3", "-c", METRICS).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


def fetched_bytes(pod: ClusterPod) -> float:
    return metric(pod, "mount_sidecar_fetched_bytes_total")


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_a_pod_s_own_cache_answers_the_second_epoch(stores: Stores, run: Run, cache: str) -> None:
    digest = filled(stores, SHORT_BYTES)
    pod = cached_pod(run, f"cached-{cache}", cache=cache, cacheBytes="256Mi")
    read(pod, digest)
    assert fetched_bytes(pod) == SHORT_BYTES
    pod.wait_for(
        lambda: metric(pod, "mount_sidecar_disk_cache_used_bytes") >= SHORT_BYTES, "it is cached"
    )
    for _ in range(2):
        read(pod, digest)
    assert fetched_bytes(pod) == SHORT_BYTES


@pytest.fixture
def node_cache(nodes: Nodes) -> Iterator[None]:
    """The node's cache is empty before and afterwards."""
    nodes.empty_cache()
    yield
    nodes.empty_cache()


@pytest.mark.parametrize(
    "size", [SHORT_BYTES, pytest.param(LONG_BYTES, marks=pytest.mark.soak)], ids=["short", "long"]
)
@pytest.mark.usefixtures("node_cache")
def test_two_pods_of_a_node_fetch_once(stores: Stores, run: Run, nodes: Nodes, size: int) -> None:
    """And with no pod running the budget holds."""
    digest = filled(stores, size)
    first = cached_pod(run, "first", cache="node")
    cold = read(first, digest)
    assert fetched_bytes(first) == size
    first.wait_for(lambda: nodes.cached_bytes() >= size, "it is cached")
    first.delete(grace_s=1)

    second = cached_pod(run, "second", cache="node")
    warm = [read(second, digest) for _ in range(3)]
    assert fetched_bytes(second) == 0
    second.wait_for(lambda: _opens_through(second, digest), "the kernel reads the local file")
    second.execute("cp", FILE, "/tmp/local")
    local = [read(second, digest, "/tmp/local") for _ in range(3)]
    through = [read(second, digest) for _ in range(3)]
    assert fetched_bytes(second) == 0
    second.delete(grace_s=1)
    said = {"first pod": [cold], "second": warm, "passthrough": through, "a local file": local}
    print("\nMB/s:", ", ".join(f"{who} {_said(rates)}" for who, rates in said.items()))

    nodes.trim_cache("1Gi" if size == SHORT_BYTES else "4Gi")
    assert nodes.cached_bytes() >= size
    nodes.trim_cache("64Mi")
    assert nodes.cached_bytes() <= 64 * MIB


@pytest.mark.usefixtures("node_cache")
def test_an_upgrade_keeps_the_node_s_cache(
    installed: Cluster, stores: Stores, run: Run, nodes: Nodes
) -> None:
    digest = filled(stores, SHORT_BYTES)
    first = cached_pod(run, "before", cache="node")
    read(first, digest)
    first.wait_for(lambda: nodes.cached_bytes() >= SHORT_BYTES, "it is cached")
    first.delete(grace_s=1)
    before = image(PREFIX, "mount-sidecar")
    try:
        upgrade(installed, before, f"{before}-next")
        second = cached_pod(run, "after", cache="node")
        [sidecar] = [c for c in second.get()["spec"]["initContainers"] if "restartPolicy" in c]
        assert sidecar["image"] == f"{before}-next"
        read(second, digest)
        assert fetched_bytes(second) == 0
        second.delete(grace_s=1)
    finally:
        upgrade(installed, f"{before}-next", before)


def _opens_through(pod: ClusterPod, digest: str) -> bool:
    """Whether the kernel serves an open from the cache's file."""
    read(pod, digest)
    return metric(pod, "mount_sidecar_passthrough_opens_total") > 0


def _said(rates: list[float]) -> str:
    return " ".join(f"{rate:.0f}" for rate in rates)


def test_an_admin_s_bound_refuses_a_pod(run: Run) -> None:
    options = {"images": {"cache": "disk", "cacheBytes": "3Gi"}}
    line = "SC1028 OPTION_REFUSED: annotation `mount-sidecar.io/options`: images.cacheBytes: 3Gi: "
    with pytest.raises(Refused, match=line):
        run("refused", FOREVER, data=["images"], annotations={"options": json.dumps(options)})
