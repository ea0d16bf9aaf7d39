"""mount-sidecar as a user installs it, by an overlay, and object stores in a pod of the cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import pytest
import yaml

from sidecar import __version__
from tests.support.clouds import AzureCloud, Cloud, GcsCloud, S3Cloud
from tests.support.cluster import MANIFESTS, Cluster, Json, find, kustomize
from tests.support.cluster_pods import ACCOUNT, NAMESPACE, ClusterPod, experiment, image
from tests.support.node import Nodes
from tests.support.stores_in_a_pod import SECRET, Stores

PREFIX = os.environ.get("CLUSTER_IMAGES", "localhost")
KUBELET = os.environ.get("CLUSTER_KUBELET", "/var/lib/kubelet")
EXPERIMENT_IMAGE = image(PREFIX, "experiment")
BUCKET = "runs"
NEAR_BUCKET = "near"
NODE_CACHE = f"{KUBELET}/mount-sidecar-test-cache"
"""A folder of the node. The test that fills it empties it, and leaves an empty directory."""


def _catalogue() -> str:
    def bucket(store: str, url: str, **more: object) -> Json:
        return {
            "store": store,
            "bucket": url,
            "secret": SECRET,
            "secretKey": f"{store}.json",
        } | more

    azure = f"wasbs://{BUCKET}@devstoreaccount1.blob.core.windows.net"
    return yaml.safe_dump(
        {
            "data": {
                "images": bucket("s3", "s3://data", readOnly=True),
                "far": bucket(
                    "s3", "s3://data", readOnly=True, near=bucket("gcs", f"gs://{NEAR_BUCKET}")
                ),
                "labels": bucket("s3", "s3://data", readOnly=True, mountPath="/data/labels"),
                "node": {"hostPath": "/usr/share", "mountPath": "/data/node", "readOnly": True},
            },
            "outputs": {
                "s3": bucket("s3", f"s3://{BUCKET}"),
                "gcs": bucket("gcs", f"gs://{BUCKET}"),
                "azure": bucket("azure", azure),
                "results": bucket("s3", f"s3://{BUCKET}", mountPath="/results"),
            },
            "mountSidecar": {
                "nodeCache": {"path": NODE_CACHE, "size": "4Gi"},
                "bounds": {"cacheBytes": {"max": "2Gi"}},
            },
        },
        sort_keys=False,
    )


def _installation(manifests: list[Json]) -> list[Json]:
    """The overlay with what an admin changes in it: catalogue, image, the kubelet's place."""
    text = json.dumps(manifests).replace("/var/lib/mount-sidecar/cache", NODE_CACHE)
    text = text.replace(f"localhost/mount-sidecar:{__version__}", image(PREFIX, "mount-sidecar"))
    changed: list[Json] = json.loads(text.replace("/var/lib/kubelet/pods", f"{KUBELET}/pods"))
    catalogue = find(changed, "ConfigMap", "mount-sidecar-catalogue")
    catalogue["data"]["catalogue.yaml"] = _catalogue()
    return [d for d in changed if d["metadata"]["name"] != "mount-sidecar-catalogue"] + [catalogue]


def _namespace() -> list[Json]:
    """A namespace of experiments, with the account that reports."""
    metadata = {"name": ACCOUNT, "namespace": NAMESPACE}
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": NAMESPACE,
                "labels": {
                    "mount-sidecar.io/injection": "enabled",
                    "pod-security.kubernetes.io/enforce": "privileged",
                },
            },
        },
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "mount-sidecar-reporter", "namespace": NAMESPACE},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "mount-sidecar-reporter",
            },
            "subjects": [{"kind": "ServiceAccount", **metadata}],
        },
    ]


@pytest.fixture(scope="package")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> list[Json]:
    """The overlay of the examples, and the component that looks after the nodes' caches."""
    folder = tmp_path_factory.mktemp("overlay")
    where = os.path.relpath(MANIFESTS.resolve(), folder.resolve())
    kustomization = {
        "resources": [f"{where}/overlays/kind"],
        "components": [f"{where}/components/node-cache"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return kustomize(folder)


@pytest.fixture(scope="package")
def installed(cluster: Cluster, overlay: list[Json]) -> Iterator[Cluster]:
    """With the webhook and the janitor running, and a namespace for experiments."""
    documents, namespace = _installation(overlay), _namespace()
    try:
        cluster.apply([*documents, *namespace])
        for program in ("deployment/mount-sidecar-webhook", "daemonset/mount-sidecar-janitor"):
            wait = "-n", "mount-sidecar", "rollout", "status", "--timeout=110s"
            cluster.kubectl(*wait, program)
        yield cluster
    finally:
        cluster.delete(namespace)
        cluster.delete(documents)


@pytest.fixture(scope="package")
def stores(installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Three clouds, each with the empty buckets ``data``, ``runs`` and ``near``."""
    found = Stores(installed, image(PREFIX, "test-stores"), tmp_path_factory.mktemp("stores"))
    try:
        found.start()
        for name in ("data", BUCKET, NEAR_BUCKET):
            found.create_bucket(name)
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="package")
def nodes(installed: Cluster) -> Nodes:
    """The nodes on which the pods run."""
    return Nodes(installed)


def cloud(stores: Stores, name: str) -> Cloud:
    """The bucket of outputs in a cloud, through a client of the tests' own."""
    if name == "s3":
        return S3Cloud(stores.s3, BUCKET)
    return GcsCloud(stores.gcs, BUCKET) if name == "gcs" else AzureCloud(stores.azure, BUCKET)


Run = Callable[..., ClusterPod]


@pytest.fixture
def run(request: pytest.FixtureRequest, installed: Cluster, stores: Stores) -> Iterator[Run]:
    """Creates an experiment's pod: its name, the command, and more of :func:`experiment`.

    The pod is deleted at the test's end. If the test fails, it says what kubectl says of it.
    """
    failed_before = request.session.testsfailed
    made: list[ClusterPod] = []

    def create(name: str, command: list[str], **more: object) -> ClusterPod:
        document = experiment(name, EXPERIMENT_IMAGE, command, **more)  # type: ignore[arg-type]
        pod = ClusterPod.create(installed, document, stores.sidecar_env)
        made.append(pod)
        return pod

    yield create
    failed = request.session.testsfailed > failed_before
    for pod in made:
        if failed and not pod.is_gone:
            print(pod.described())
    if made:
        names = [pod.name for pod in made]
        made[0].kubectl("delete", "pod", *names, "--ignore-not-found", "--grace-period=1")


def upgrade(cluster: Cluster, before: str, after: str) -> None:
    """Have the webhook run with an image, and give it to pods."""
    webhook = "-n", "mount-sidecar", "deployment", "mount-sidecar-webhook"
    [container] = cluster.get(*webhook)["spec"]["template"]["spec"]["containers"]
    changed = json.loads(json.dumps(container).replace(f'"{before}"', f'"{after}"'))
    assert (container["image"], changed["image"]) == (before, after)
    place = "/spec/template/spec/containers/0"
    patch = json.dumps([{"op": "replace", "path": place, "value": changed}])
    cluster.kubectl(*webhook[:2], "patch", *webhook[2:], "--type=json", "-p", patch)
    wait = "rollout", "status", "--timeout=110s", "deployment/mount-sidecar-webhook"
    cluster.kubectl(*webhook[:2], *wait)
    label = "-l", "app.kubernetes.io/name=mount-sidecar-webhook"

    def images() -> set[str]:
        pods = cluster.get(*webhook[:2], "pods", *label)["items"]
        return {pod["spec"]["containers"][0]["image"] for pod in pods}

    # One that goes still answers for a while, and gives pods its own image.
    cluster.wait_for(lambda: images() == {after}, "the replicas before are gone")
