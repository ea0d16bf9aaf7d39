"""What is written to a bucket evicts no pod, and neither does the annotation about it.

Each pod is there twice: as it is injected, and with the limits as they were before decision 48,
which a kubelet evicts. It looks at emptyDirs every one to two minutes (volumeStatsAggPeriod, with
a jitter of 1.0, in pkg/kubelet/server/stats/volume_stat_calculator.go), and then every ten seconds
at what it has seen.
"""

from __future__ import annotations

import copy

import pytest

from tests.cluster.conftest import NAMESPACE
from tests.cluster.injected import injected, running, secret, wait_ready
from tests.support.cluster import Cluster, Json
from tests.support.strict_server import StrictS3Server

BUCKET = "disk"
WRITTEN = "500M"
CATALOGUE = {
    "outputs": {
        "runs": {
            "store": "s3",
            "bucket": f"s3://{BUCKET}",
            "secret": "disk-secret",
            "secretKey": "key.json",
        }
    }
}
TO_BUCKET = f"head -c {WRITTEN} /dev/zero >$POLYAXON_RUN_OUTPUTS_PATH/file-$$ & sleep 1"

pytestmark = pytest.mark.timeout(500)


def with_sidecar_limit(pod: Json, name: str, limit: str | None) -> Json:
    """The same pod, with this limit of the sidecar's."""
    changed = copy.deepcopy(pod)
    changed["metadata"]["name"] = name
    resources = changed["spec"]["initContainers"][0]["resources"]
    for bound in ("requests", "limits"):
        resources[bound].pop("ephemeral-storage", None)
    if limit is not None:
        resources["limits"]["ephemeral-storage"] = limit
    return changed


def evicted(cluster: Cluster) -> dict[str, str]:
    """The kubelet's reason for each pod that it evicted."""
    found = cluster.get("-n", NAMESPACE, "pods")["items"]
    return {
        pod["metadata"]["name"]: pod["status"].get("message", "")
        for pod in found
        if pod["status"].get("reason") == "Evicted"
    }


def test_no_pod_is_evicted_for_what_it_writes_to_a_bucket(
    policies: Cluster, strict_s3_server: StrictS3Server
) -> None:
    strict_s3_server.create_bucket(BUCKET)
    strict_s3_server.pace(bytes_per_s=2e6)  # so that the spools stay full
    # The store listens on the loopback address of the node.
    limited = injected(
        "limited",
        CATALOGUE,
        TO_BUCKET,
        limits={"ephemeral-storage": "200Mi"},
        hostNetwork=True,
    )
    annotated = injected(
        "annotated",
        CATALOGUE,
        f"head -c {WRITTEN} /dev/zero >/tmp/file",
        {"ephemeral-storage-limit": "400Mi"},
        hostNetwork=True,
    )
    pods = [
        limited,
        annotated,
        with_sidecar_limit(limited, "limited-before", None),
        with_sidecar_limit(annotated, "annotated-before", "400Mi"),
    ]
    login = secret("disk-secret", strict_s3_server.credentials_json())
    with running(policies, login), running(policies, *pods):
        try:
            wait_ready(policies, ["limited", "annotated"])
            before = {"limited-before", "annotated-before"}
            policies.wait_for(lambda: before <= evicted(policies).keys(), "the evictions", 300)
            assert evicted(policies).keys() == before
        finally:
            strict_s3_server.pace()
        for name in ("limited", "annotated"):
            assert policies.get("-n", NAMESPACE, "pod", name)["status"]["phase"] == "Running"
