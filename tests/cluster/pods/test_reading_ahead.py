"""A near bucket and a warm-up, in pods: what the second one has without asking far away."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from sidecar.units import MIB
from tests.cluster.pods.conftest import NEAR_BUCKET, Run
from tests.cluster.pods.test_caches import FOREVER, fetched_bytes, metric, read
from tests.support.clouds import GcsCloud, S3Cloud
from tests.support.cluster_pods import ClusterPod
from tests.support.stores_in_a_pod import Stores

SIZE = 24 * MIB + 7

pytestmark = pytest.mark.timeout(600)


def filled(stores: Stores, key: str) -> str:
    """An object in the data; its SHA-256."""
    content = random.Random(key).randbytes(SIZE)
    S3Cloud(stores.s3, "data").write(key, content)
    return hashlib.sha256(content).hexdigest()


def test_what_one_pod_has_read_another_one_reads_near_by(stores: Stores, run: Run) -> None:
    """The volume is on S3, and its near bucket on another cloud, with a secret of its own."""
    digest = filled(stores, "far-away")
    path = "/mnt/persistence/data/far/far-away"
    first = run("first-far", FOREVER, data=["far"])
    first.wait_until_ready()
    read(first, digest, path)
    assert fetched_bytes(first) >= SIZE
    first.wait_for(lambda: metric(first, "mount_sidecar_near_put_bytes_total") >= SIZE, "put")
    assert len(GcsCloud(stores.gcs, NEAR_BUCKET).keys()) == -(-SIZE // (2 * MIB))
    second = run("second-far", FOREVER, data=["far"])
    second.wait_until_ready()
    read(second, digest, path)
    assert fetched_bytes(second) == 0
    assert metric(second, "mount_sidecar_near_hit_bytes_total") >= SIZE


def test_a_run_that_is_warm_when_it_starts(stores: Stores, run: Run) -> None:
    """By a pattern, and by what an earlier run with the same label has read first."""
    digests = {key: filled(stores, key) for key in ("index-1", "index-2")}

    def started(name: str, **options: object) -> ClusterPod:
        annotations = {"options": json.dumps({"images": options})}
        pod = run(name, FOREVER, data=["images"], annotations=annotations)
        pod.wait_until_ready()
        return pod

    path = "/mnt/persistence/data/images"
    warm = started("warm", warmRead=["index-1"], warmSeconds=50, warmLearned="label")
    assert fetched_bytes(warm) >= SIZE
    for key, digest in digests.items():
        read(warm, digest, f"{path}/{key}")
    warm.wait_for(lambda: "WarmedUp" in [reason for reason, _ in warm.events()], "it is told")
    warm.delete(grace_s=20)
    again = started("again", warmSeconds=50, warmLearned="label")
    assert fetched_bytes(again) >= 2 * SIZE
