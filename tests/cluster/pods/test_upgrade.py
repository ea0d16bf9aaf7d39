"""Pods that are created while the webhook is upgraded."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tests.cluster.pods.conftest import EXPERIMENT_IMAGE, PREFIX, upgrade
from tests.support.cluster import Cluster, Json
from tests.support.cluster_pods import NAMESPACE, experiment, image

PODS, BATCH, THREADS = 200, 5, 4
LABEL = {"during": "upgrade"}

pytestmark = pytest.mark.timeout(900)


def pod(number: int) -> Json:
    """One that no node gets: what is looked at is whether the API server takes it."""
    document = experiment(f"during-{number}", EXPERIMENT_IMAGE, ["true"], outputs="s3")
    document["metadata"]["labels"] |= LABEL
    document["spec"]["schedulingGates"] = [{"name": "example.com/never"}]
    return document


def test_no_pod_is_refused_while_two_versions_answer(installed: Cluster) -> None:
    """The API server's own plugins give each sidecar a token, and so each pod a second call."""
    before = image(PREFIX, "mount-sidecar")
    after = f"{before}-next"
    numbers = itertools.count()
    done = threading.Event()

    def create() -> None:
        """Pods until the upgrade is done, and enough."""
        made = 0
        while not done.is_set() or made < PODS / THREADS:
            pods = [pod(next(numbers)) for _ in range(BATCH)]
            many = json.dumps({"apiVersion": "v1", "kind": "List", "items": pods})
            made += len(installed.kubectl("create", "-o", "name", "-f", "-", stdin=many).split())

    label = ",".join(f"{key}={value}" for key, value in LABEL.items())
    these = "-n", NAMESPACE, "pods", "-l", label
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            found = [threads.submit(create) for _ in range(THREADS)]
            try:
                upgrade(installed, before, after)
                upgrade(installed, after, before)
            finally:
                done.set()
            for one in found:
                one.result()
        images: Counter[str] = Counter()
        for made in installed.get(*these)["items"]:
            [sidecar] = [c for c in made["spec"]["initContainers"] if "restartPolicy" in c]
            assert [m for m in sidecar["volumeMounts"] if m["name"].startswith("kube-api-")]
            images[sidecar["image"]] += 1
    finally:
        of_these = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={quote(label)}"
        installed.kubectl("delete", "--raw", of_these)  # all at once
    print(f"\n{json.dumps(images)}")
    assert images.total() >= PODS
    assert images.keys() == {before, after}
