"""A pod as a user writes it, from the webhook to its end, on a node that runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from sidecar import __version__
from sidecar.mounter.reporting.pod_reports import CONDITION
from tests.cluster.conftest import ACCOUNT, NAMESPACE
from tests.support.cluster import MANIFESTS, Cluster, Json, find

IMAGE = f"localhost/mount-sidecar:{__version__}"
CATALOGUE = "data: {node: {hostPath: /usr/share, mountPath: /data/node, readOnly: true}}\n"
# With the token that the kubelet mounts, as anything in the experiment's container can do it.
TAKE_OVER = """
import json, os, ssl, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
context = ssl.create_default_context(cafile=folder + "/ca.crt")
server = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
pod = "https://%s:%s/api/v1/namespaces/experiments/pods/" % server + os.environ["HOSTNAME"]
for status in ({"podIP": "10.9.9.9"}, {"conditions": [{"type": "Ready", "status": "False"}]}):
    request = urllib.request.Request(
        pod + "/status",
        data=json.dumps({"status": status}).encode(),
        method="PATCH",
        headers={
            "Authorization": "Bearer " + open(folder + "/token").read(),
            "Content-Type": "application/strategic-merge-patch+json",
        },
    )
    try:
        urllib.request.urlopen(request, context=context)
    except urllib.error.HTTPError as error:
        print(error.code, json.load(error)["message"])
    else:
        print("taken over")
"""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def installed(policies: Cluster, manifests: list[Json]) -> Iterator[Cluster]:
    """With the webhook, whose certificate the job makes, and a catalogue that needs no store."""
    catalogue = find(manifests, "ConfigMap", "mount-sidecar-catalogue")
    catalogue["data"]["catalogue.yaml"] = CATALOGUE
    programs = [d for d in manifests if d["kind"] == "Deployment"]
    # Nobody but the sidecar may be privileged.
    programs += yaml.safe_load_all((MANIFESTS / "components/baseline/policies.yaml").read_text())
    policies.apply([catalogue, *programs])
    try:
        wait = "-n", "mount-sidecar", "rollout", "status", "--timeout=100s"
        policies.kubectl(*wait, "deployment/mount-sidecar-webhook")
        yield policies
    finally:
        policies.delete(programs)


def pod(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"mount-sidecar.io/inject": "true"},
        },
        "spec": {
            "serviceAccountName": ACCOUNT,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "main",
                    "image": IMAGE,
                    "command": ["sh", "-c", "ls /data/node; trap exit TERM; sleep 1000 & wait"],
                }
            ],
        },
    }


@pytest.fixture
def started(request: pytest.FixtureRequest, installed: Cluster) -> Iterator[Cluster]:
    """With the pod ``request.param`` running."""
    document = pod("train")
    document["spec"].update(request.param)
    created = installed.create(document)
    try:
        assert created["spec"]["initContainers"][0]["name"] == "mount-sidecar"
        wait = "wait", "--for=condition=Ready", "--timeout=100s", "pod/train"
        installed.kubectl("-n", NAMESPACE, *wait)
        assert "zoneinfo" in logs(installed, "main")
        yield installed
    finally:
        installed.delete([created])


def logs(cluster: Cluster, container: str) -> str:
    return cluster.kubectl("-n", NAMESPACE, "logs", "train", "-c", container)


def conditions(cluster: Cluster) -> dict[str, str]:
    found = cluster.get("-n", NAMESPACE, "pod", "train")["status"]["conditions"]
    return {condition["type"]: condition["status"] for condition in found}


@pytest.mark.parametrize("started", [{}], indirect=True)
def test_the_condition_is_there_and_the_token_is_good_for_nothing_else(started: Cluster) -> None:
    started.wait_for(lambda: conditions(started).get(CONDITION) == "True", "the condition")
    python = "exec", "train", "-c", "main", "--", "/opt/sidecar/bin/python", "-c"
    said = started.kubectl("-n", NAMESPACE, *python, TAKE_OVER).splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith("403 ")
        assert "nothing else of its pod's status" in line
    assert conditions(started)["Ready"] == "True"


@pytest.mark.parametrize("started", [{"automountServiceAccountToken": False}], indirect=True)
def test_a_pod_without_a_token_runs_and_says_less(started: Cluster) -> None:
    started.wait_for(
        lambda: "nothing can be reported" in logs(started, "mount-sidecar"), "the log's line"
    )
    assert CONDITION not in conditions(started)


def test_who_brings_the_sidecar_gets_ours_and_nothing_of_the_node(installed: Cluster) -> None:
    """Neither the policies nor the webhook alone would do."""
    document = pod("brings")
    document["metadata"]["annotations"] = {"mount-sidecar.io/status": "injected"}
    theirs = {
        "name": "mount-sidecar",
        "image": "theirs:1",
        "securityContext": {"privileged": True},
        "env": [{"name": "AWS_CONFIG_FILE", "value": "/root-of-the-node/config"}],
        "volumeMounts": [{"name": "mount-sidecar-x", "mountPath": "/root-of-the-node"}],
    }
    spec = document["spec"]
    spec |= {
        "schedulingGates": [{"name": "example.com/never"}],
        "terminationGracePeriodSeconds": 61,
    }
    spec["initContainers"] = [theirs]
    spec["containers"][0]["volumeMounts"] = theirs["volumeMounts"]
    spec["volumes"] = [{"name": "mount-sidecar-x", "hostPath": {"path": "/"}}]
    made = installed.create(document)["spec"]
    asked = pod("asks")
    asked["spec"]["schedulingGates"] = spec["schedulingGates"]
    ours = installed.create(asked)["spec"]
    for group in ("initContainers", "containers"):
        assert [_without_token(one) for one in made[group]] == [
            _without_token(one) for one in ours[group]
        ]
    paths = [volume["hostPath"]["path"] for volume in made["volumes"] if "hostPath" in volume]
    assert paths == ["/usr/share"]


def _without_token(container: Json) -> Json:
    """Its volume has a name of its own in each pod."""
    mounts = [one for one in container["volumeMounts"] if "kube-api-access" not in one["name"]]
    return {**container, "volumeMounts": mounts}
