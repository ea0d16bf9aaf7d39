"""What the API server says to a pod that asks for the sidecar and does not have it as injected.

No webhook runs here: the manifests are injected beforehand, and changed as another webhook would.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import yaml

from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.inject import inject, pod_patch
from sidecar.control.injection.sidecar_container import Injection
from tests.cluster.test_baseline import NAMESPACE, plain
from tests.control.injection import golden
from tests.control.injection.golden import given
from tests.control.injection.test_golden import PODS
from tests.support.cluster import Cluster, Json, Refused

CATALOGUE = parse_catalogue(
    """
data:
  scratch: {hostPath: /tmp/scratch, mountPath: /data/scratch}
outputs:
  runs: {store: s3, bucket: "s3://runs", secret: s3-secret, secretKey: key.json}
""",
    "the test's catalogue",
)


@pytest.fixture(scope="module")
def namespace(policies: Cluster) -> Iterator[Cluster]:
    """One that is not opted in: the webhook is not asked, and the policy holds all the same."""
    document = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
        },
    }
    policies.apply([document])
    try:
        policies.wait_for(lambda: _has_account(policies), "the default service account")
        yield policies
    finally:
        policies.delete([document])


def _has_account(cluster: Cluster) -> bool:
    arguments = "-n", NAMESPACE, "get", "serviceaccount", "default", "--ignore-not-found"
    return cluster.kubectl(*arguments) != ""


def injected(*, native: bool = True) -> Json:
    pod = plain()
    if not native:
        del pod["spec"]["initContainers"]
    return inject(pod, CATALOGUE, Injection("mount-sidecar:test", native=native))


def _unchanged(spec: Json) -> None:
    """Nothing."""


def _proxy_before(spec: Json) -> None:
    """A mesh's: it uses nothing of ours."""
    proxy = {"name": "proxy", "image": "none", "restartPolicy": "Always"}
    spec["initContainers"].insert(0, proxy)


def _another_registry(spec: Json) -> None:
    spec["initContainers"][0]["image"] = "mirror.example/mount-sidecar:test"


def _token_everywhere(spec: Json) -> None:
    spec["volumes"].append({"name": "identity", "emptyDir": {}})
    for container in [*spec["initContainers"], *spec["containers"]]:
        container["volumeMounts"].append({"name": "identity", "mountPath": "/var/run/identity"})


@pytest.mark.parametrize(
    "change", [_unchanged, _proxy_before, _another_registry, _token_everywhere]
)
def test_what_other_webhooks_may_do(namespace: Cluster, change: Callable[[Json], None]) -> None:
    pod = injected()
    change(pod["spec"])
    namespace.create(pod)


@pytest.mark.parametrize(
    "mesh", ["mesh-istio", "mesh-istio-cni", "mesh-linkerd", "mesh-linkerd-cni"]
)
def test_a_mesh_stands_before_the_sidecar(namespace: Cluster, mesh: str) -> None:
    pod, model = plain(), yaml.safe_load(given(mesh))["spec"]
    pod["spec"] |= {key: model[key] for key in ("initContainers", "volumes") if key in model}
    made = namespace.create(inject(pod, CATALOGUE, Injection("mount-sidecar:test")))
    names = [container["name"] for container in made["spec"]["initContainers"]]
    assert names.index("mount-sidecar") == 2
    assert "prepare" not in names[:2]


def test_without_native_sidecars_too(namespace: Cluster) -> None:
    namespace.create(injected(native=False))
    late = injected(native=False)
    late["spec"]["containers"].reverse()
    with pytest.raises(Refused, match="a container before mount-sidecar"):
        namespace.create(late)
    eager = injected(native=False)
    del eager["spec"]["containers"][0]["lifecycle"]["postStart"]
    with pytest.raises(Refused, match="keeps the others waiting"):
        namespace.create(eager)


def _stripped(spec: Json) -> None:
    del spec["initContainers"][0]["restartPolicy"]
    del spec["initContainers"][0]["startupProbe"]  # the API takes none of these without it
    del spec["initContainers"][0]["livenessProbe"]
    del spec["initContainers"][0]["lifecycle"]


def _reordered(spec: Json) -> None:
    spec["initContainers"].reverse()


def _without_probe(spec: Json) -> None:
    del spec["initContainers"][0]["startupProbe"]


def _unprivileged(spec: Json) -> None:
    spec["initContainers"][0]["securityContext"]["privileged"] = False
    for mount in spec["initContainers"][0]["volumeMounts"]:
        mount.pop("mountPropagation", None)


def _removed(spec: Json) -> None:
    del spec["initContainers"][0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_stripped, "is without `restartPolicy: Always`"),
        (_reordered, "has put a container before mount-sidecar"),
        (_without_probe, "keeps the others waiting"),
        (_unprivileged, "its mounts would reach nobody"),
        (_removed, "asks for the sidecar and does not have it"),
    ],
)
def test_what_another_webhook_has_broken_is_said(
    namespace: Cluster, change: Callable[[Json], None], said: str
) -> None:
    pod = injected()
    change(pod["spec"])
    with pytest.raises(Refused, match=said) as refused:
        namespace.create(pod)
    assert "'mount-sidecar-injected'" in str(refused.value)


def test_a_pod_in_a_namespace_that_is_not_opted_in_is_told_so(namespace: Cluster) -> None:
    with pytest.raises(Refused, match="lacks the label mount-sidecar"):
        namespace.create(plain())


def test_pods_that_do_not_ask_are_not_looked_at(namespace: Cluster) -> None:
    pod = copy.deepcopy(plain())
    pod["metadata"]["labels"] = {}
    pod["metadata"]["annotations"] = {"mount-sidecar.io/status": "injected"}  # from a template
    namespace.create(pod)


def test_a_job_s_events_say_it(namespace: Cluster) -> None:
    """Nobody is there to read an answer: the Job's controller makes the pod."""
    pod = plain()
    pod["spec"]["restartPolicy"] = "Never"
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train", "namespace": NAMESPACE},
        "spec": {"template": template},
    }
    namespace.create(job)

    def told() -> bool:
        selector = "--field-selector=involvedObject.name=train,reason=FailedCreate"
        events = namespace.get("-n", NAMESPACE, "events", selector)["items"]
        return any("mount-sidecar.io/injection=enabled" in event["message"] for event in events)

    namespace.wait_for(told, "the event")


@pytest.mark.parametrize("name", [name for name in PODS if name != "unknown-fields"])
def test_what_an_api_server_adds_is_no_difference(namespace: Cluster, name: str) -> None:
    """A webhook is asked again for what it has injected, when another plugin has changed a pod."""
    document = yaml.safe_load(golden.expected(name).read_text())
    document["metadata"]["namespace"] = NAMESPACE
    document["spec"].pop("serviceAccountName", None)
    stored = namespace.dry_run(document)
    injection = Injection(image=golden.IMAGE, allow_shared_pids=name == "host-pid")
    assert pod_patch(stored, golden.catalogue(), injection) == []
