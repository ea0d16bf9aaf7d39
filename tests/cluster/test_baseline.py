"""In namespaces with injection, only the sidecar that the webhook makes is root on the node.

No webhook runs here: what it would refuse or make anew comes to the policies as it is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from tests.control.injection import golden
from tests.control.injection.golden import catalogue
from tests.control.injection.test_golden import PODS
from tests.control.injection.test_trust import TOKEN
from tests.support.cluster import MANIFESTS, Cluster, Json, Refused

NAMESPACE = "mount-sidecar-test"
AUTHOR = "author-of-experiments"
TOKENS = "/var/run/secrets/azure/tokens"
Change = Callable[[Json], None]


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[Cluster]:
    """One that is opted in, and somebody who may do all in it that the role `edit` allows."""
    text = (MANIFESTS / "components" / "baseline" / "policies.yaml").read_text()
    labels = {
        "mount-sidecar.io/injection": "enabled",
        "pod-security.kubernetes.io/enforce": "privileged",
    }
    edit = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "edit", "namespace": NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": AUTHOR},
        ],
    }
    documents = [
        *yaml.safe_load_all(text),
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": labels},
        },
        edit,
    ]
    cluster.apply(documents)
    try:
        cluster.wait_for(lambda: _is_enforced(cluster), "the policies are enforced")
        yield cluster
    finally:
        cluster.delete(documents)


def _is_enforced(cluster: Cluster) -> bool:
    pod = plain()
    pod["spec"]["hostPID"] = True
    try:
        cluster.dry_run(pod)
    except Refused as refused:
        return "mount-sidecar-baseline" in str(refused)
    return False


def plain() -> Json:
    """A pod as its author writes it; never started."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "train-",
            "namespace": NAMESPACE,
            "labels": {"mount-sidecar.io/inject": "true"},
        },
        "spec": {
            "automountServiceAccountToken": False,
            "schedulingGates": [{"name": "example.com/never"}],
            "initContainers": [{"name": "prepare", "image": "none"}],
            "containers": [{"name": "main", "image": "none"}],
            "volumes": [{"name": "own", "emptyDir": {}}],
        },
    }


def injected(**settings: Any) -> Json:
    return inject(plain(), catalogue(), Injection(golden.IMAGE, **settings))


def sidecar_of(pod: Json) -> Json:
    first: Json = pod["spec"]["initContainers"][0]
    assert first["name"] == "mount-sidecar"
    return first


REFUSED = {
    "host-network": "hostNetwork, hostPID and hostIPC are not",
    "host-network-with-port": "hostNetwork, hostPID and hostIPC are not",
    "host-pid": "hostNetwork, hostPID and hostIPC are not",
    # A mesh that redirects traffic by itself needs NET_ADMIN; with its CNI plugin it does not.
    **dict.fromkeys(("mesh-istio", "mesh-istio-ordinary", "mesh-linkerd"), "adds a capability"),
}


def test_the_expressions_are_of_the_types_that_pods_have(namespace: Cluster) -> None:
    def checked(name: str) -> Json:
        status = namespace.get("validatingadmissionpolicy", name).get("status", {})
        return status.get("typeChecking")  # type: ignore[no-any-return]

    for name in ("mount-sidecar-baseline", "mount-sidecar-exec"):
        namespace.wait_for(lambda name=name: checked(name) is not None, "it is checked")  # type: ignore[misc]
        assert checked(name).get("expressionWarnings", []) == []


@pytest.mark.parametrize("name", [name for name in PODS if name != "unknown-fields"])
def test_what_an_injection_makes_is_allowed(namespace: Cluster, name: str) -> None:
    document = yaml.safe_load(golden.expected(name).read_text())
    document["metadata"]["namespace"] = NAMESPACE
    document["metadata"].setdefault("labels", {})["mount-sidecar.io/inject"] = "true"
    document["spec"].pop("serviceAccountName", None)
    if said := REFUSED.get(name):
        with pytest.raises(Refused, match=said):
            namespace.dry_run(document)
    else:
        namespace.dry_run(document)


def with_an_identity(pod: Json) -> None:
    pod["spec"]["volumes"].append({"name": "token", "projected": TOKEN})
    sidecar = sidecar_of(pod)
    sidecar["volumeMounts"].append({"name": "token", "mountPath": TOKENS, "readOnly": True})
    sidecar["env"] += [
        {"name": "AZURE_CLIENT_ID", "value": "x"},
        {"name": "AZURE_FEDERATED_TOKEN_FILE", "value": f"{TOKENS}/azure-identity-token"},
    ]


def test_a_pod_s_identity_is_allowed(namespace: Cluster) -> None:
    pod = injected()
    with_an_identity(pod)
    namespace.dry_run(pod)


def test_what_is_no_business_of_ours_is_allowed(namespace: Cluster) -> None:
    pod = plain()
    pod["metadata"]["labels"] = {}
    pod["spec"]["securityContext"] = {
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
        "sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}],
    }
    pod["spec"]["containers"][0]["securityContext"] = {
        "capabilities": {"add": ["CHOWN"], "drop": ["ALL"]}
    }
    namespace.dry_run(pod)


def main_context(**context: Any) -> Change:
    def change(pod: Json) -> None:
        pod["spec"]["containers"][0]["securityContext"] = context

    return change


def pod_spec(**fields: Any) -> Change:
    return lambda pod: pod["spec"].update(fields)


def first_context(pod: Json) -> None:
    pod["spec"]["initContainers"][-1]["securityContext"] = {"privileged": True}


def host_path(name: str = "own") -> Change:
    def change(pod: Json) -> None:
        pod["spec"]["volumes"].append({"name": name, "hostPath": {"path": "/"}})

    return change


def port(pod: Json) -> None:
    pod["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 80}]


def variable(name: str, **value: Any) -> Change:
    return lambda pod: sidecar_of(pod)["env"].append({"name": name, **value})


def mount(path: str, volume: str = "own") -> Change:
    return lambda pod: sidecar_of(pod)["volumeMounts"].append({"name": volume, "mountPath": path})


def command(pod: Json) -> None:
    sidecar_of(pod)["command"] = ["sh"]


def without_label(pod: Json) -> None:
    pod["metadata"]["labels"] = {}


FORBIDDEN: dict[str, tuple[Change, str]] = {
    "privileged": (main_context(privileged=True), "for the sidecar's container only"),
    "privileged before the others": (first_context, "for the sidecar's container only"),
    "a capability": (main_context(capabilities={"add": ["SYS_ADMIN"]}), "adds a capability"),
    "all capabilities": (main_context(capabilities={"add": ["ALL"]}), "adds a capability"),
    "no seccomp": (main_context(seccompProfile={"type": "Unconfined"}), "seccomp, AppArmor"),
    "no seccomp in the pod": (
        pod_spec(securityContext={"seccompProfile": {"type": "Unconfined"}}),
        "seccomp, AppArmor",
    ),
    "no AppArmor": (main_context(appArmorProfile={"type": "Unconfined"}), "seccomp, AppArmor"),
    "another type": (main_context(seLinuxOptions={"type": "spc_t"}), "seccomp, AppArmor"),
    "the node's network": (pod_spec(hostNetwork=True), "hostNetwork, hostPID and hostIPC"),
    "the node's processes": (pod_spec(hostPID=True), "hostNetwork, hostPID and hostIPC"),
    "the node's memory": (pod_spec(hostIPC=True), "hostNetwork, hostPID and hostIPC"),
    "a port of the node": (port, "hostPort is not"),
    "a path of the node": (host_path("theirs"), "come from the catalogue only"),
    "a sysctl": (
        pod_spec(securityContext={"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}),
        "sysctl is not",
    ),
}


@pytest.mark.parametrize("made", [plain, injected], ids=["plain", "injected"])
@pytest.mark.parametrize(("change", "said"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_only_the_sidecar_may_have(
    namespace: Cluster, change: Change, said: str, made: Callable[[], Json]
) -> None:
    pod = made()
    change(pod)
    with pytest.raises(Refused, match=said):
        namespace.dry_run(pod)


def test_the_webhook_sees_whatever_has_the_sidecar_s_names(namespace: Cluster) -> None:
    """It makes anew what has them; without the label it is not asked."""
    pod = injected()
    without_label(pod)
    volume = plain()
    without_label(volume)
    host_path("mount-sidecar-fuse")(volume)
    container = plain()
    without_label(container)
    container["spec"]["containers"].append(
        {"name": "mount-sidecar", "image": "none", "securityContext": {"privileged": True}}
    )
    for one in (pod, volume, container):
        with pytest.raises(Refused, match="which the webhook injects"):
            namespace.dry_run(one)


LATER: dict[str, Change] = {
    "a command": command,
    "a login by a program": variable("AWS_CONFIG_FILE", value="/x"),
    "a library": variable("LD_PRELOAD", value="/x"),
    "packages": variable("PYTHONPATH", value="/x"),
    "another namespace": variable("SIDECAR_POD_NAMESPACE", value="x"),
    "a text of a secret": variable(
        "AWS_CONFIG_FILE", valueFrom={"secretKeyRef": {"name": "x", "key": "x"}}
    ),
    "a token elsewhere": variable("AWS_WEB_IDENTITY_TOKEN_FILE", value="/dev/sda"),
    "a token that goes up": variable(
        "AWS_WEB_IDENTITY_TOKEN_FILE", value="/var/run/secrets/../../../dev/sda"
    ),
    "a token by a variable": variable(
        "AWS_WEB_IDENTITY_TOKEN_FILE", value="/var/run/secrets/$(AWS_ROLE_ARN)"
    ),
    "files": mount("/opt/x"),
    "files among tokens": mount("/var/run/secrets/x"),
}


@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_no_other_webhook_gives_the_sidecar_something_to_run(
    namespace: Cluster, change: Change
) -> None:
    pod = injected()
    change(pod)
    with pytest.raises(Refused, match="another webhook has given the container mount-sidecar"):
        namespace.dry_run(pod)


@pytest.fixture(scope="module", params=[True, False], ids=["native", "ordinary"])
def created(request: pytest.FixtureRequest, namespace: Cluster) -> Json:
    pod = plain()
    if not request.param:
        del pod["spec"]["initContainers"]
        # A bucket at a path of its own needs a native sidecar.
        pod["metadata"]["annotations"] = {
            "mount-sidecar.io/data": '["images"]',
            "mount-sidecar.io/outputs": "models",
        }
    made = inject(pod, catalogue(), Injection(golden.IMAGE, native=request.param))
    return namespace.create(made)


def author(cluster: Cluster, *arguments: str, document: Json | None = None) -> str:
    stdin = None if document is None else json.dumps(document)
    return cluster.kubectl("--as", AUTHOR, "-n", NAMESPACE, *arguments, stdin=stdin)


def test_the_sidecar_s_image_stays_and_the_others_may_change(
    namespace: Cluster, created: Json
) -> None:
    name = created["metadata"]["name"]
    with pytest.raises(Refused, match="image of the container mount-sidecar is not changed"):
        author(namespace, "set", "image", f"pod/{name}", "mount-sidecar=theirs:1")
    author(namespace, "set", "image", f"pod/{name}", "main=theirs:1")
    author(namespace, "label", "pod", name, "some=label")


EPHEMERAL: dict[str, tuple[Json, str]] = {
    "privileged": ({"securityContext": {"privileged": True}}, "for the sidecar's container only"),
    "a capability": (
        {"securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}}},
        "adds a capability",
    ),
    "processes": ({"targetContainerName": "mount-sidecar"}, "neither the sidecar's processes"),
    "the state": (
        {"volumeMounts": [{"name": "mount-sidecar-state", "mountPath": "/s"}]},
        "neither the sidecar's processes nor its volumes",
    ),
}


def add_ephemeral(cluster: Cluster, pod: Json, **fields: Any) -> None:
    changed = copy.deepcopy(pod)
    one = {"name": "debugger", "image": "none", "terminationMessagePolicy": "File", **fields}
    changed["metadata"].pop("resourceVersion")
    changed["spec"]["ephemeralContainers"] = [one]
    place = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}/ephemeralcontainers"
    cluster.kubectl("replace", "--raw", place, "-f", "-", stdin=json.dumps(changed))


@pytest.mark.parametrize(("fields", "said"), EPHEMERAL.values(), ids=EPHEMERAL)
def test_an_ephemeral_container_sees_nothing_of_the_sidecar(
    namespace: Cluster, created: Json, fields: Json, said: str
) -> None:
    with pytest.raises(Refused, match=said):
        add_ephemeral(namespace, created, **fields)


def test_an_ephemeral_container_may_look_at_the_experiment(namespace: Cluster) -> None:
    pod = namespace.create(injected())
    own = [{"name": "own", "mountPath": "/own"}]
    add_ephemeral(namespace, pod, targetContainerName="main", volumeMounts=own)


def test_only_an_administrator_runs_programs_in_the_sidecar(
    namespace: Cluster, created: Json
) -> None:
    name = created["metadata"]["name"]
    inside = "exec", name, "-c"
    with pytest.raises(Refused, match="mount-sidecar is privileged: to run something in it"):
        author(namespace, *inside, "mount-sidecar", "--", "id")
    with pytest.raises(Refused, match="does not have a host assigned"):
        author(namespace, *inside, "main", "--", "id")
    with pytest.raises(Refused, match="does not have a host assigned"):
        namespace.kubectl("-n", NAMESPACE, *inside, "mount-sidecar", "--", "id")
