"""A pod's author cannot get at what is the sidecar's by names, copies or nesting."""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from sidecar.cli.main import main
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.inject import inject, pod_patch
from sidecar.control.injection.sidecar_container import Injection
from sidecar.control.webhook.admission import answer
from sidecar.errors import ConfigError
from tests.control.injection.golden import CATALOGUE, IMAGE, catalogue, expected, given
from tests.control.webhook.server import recorded

Json = dict[str, Any]
INJECTION = Injection(image=IMAGE)
ADDED = [
    "shared", "state", "spec", "fuse", "secret-0", "secret-1", "claim-2", "host-path-0",
    "host-path-3", "anything",
]  # fmt: skip
GROUPS = ["initContainers", "containers", "ephemeralContainers"]


def pod(**spec: Any) -> Json:
    found: Json = yaml.safe_load(given("pod"))
    found["spec"].update(spec)
    return found


def refusal(document: Json, injection: Injection = INJECTION) -> str:
    with pytest.raises(ConfigError) as caught:
        pod_patch(document, catalogue(), injection)
    line = caught.value.line()
    assert "\n" not in line
    return line


# --- what was not declared ----------------------------------------------------------------


@pytest.mark.parametrize("key", ["volumeMounts", "volumeDevices"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", [*(f"mount-sidecar-{suffix}" for suffix in ADDED), "other"])
def test_a_mount_of_an_undeclared_volume_is_refused(group: str, name: str, key: str) -> None:
    document = pod()
    path = "devicePath" if key == "volumeDevices" else "mountPath"
    thief = {"name": "thief", "image": "i", key: [{"name": name, path: "/x"}]}
    document["spec"][group] = [*document["spec"].get(group, []), thief]
    assert refusal(document) == (
        f"error SC1014 POD_CONFLICT: container `thief` mounts the volume `{name}`, which the pod "
        "does not declare; add it to `volumes`"
    )


@pytest.mark.parametrize("name", [f"mount-sidecar-{suffix}" for suffix in ADDED])
def test_our_names_are_reserved(name: str) -> None:
    volume = {"name": name, "emptyDir": {}}
    assert refusal(pod(volumes=[volume])) == (
        f"error SC1014 POD_CONFLICT: the pod has a volume `{name}`, and names with "
        "`mount-sidecar-` are the sidecar's; rename it"
    )


@pytest.mark.parametrize(
    "path",
    ["/mnt/./persistence/x", "//mnt/persistence", "mnt/persistence", "/mnt/x/../persistence/"],
)
def test_a_mount_is_where_a_runtime_puts_it(path: str) -> None:
    document = pod(volumes=[{"name": "own", "emptyDir": {}}])
    document["spec"]["containers"][0]["volumeMounts"] = [{"name": "own", "mountPath": path}]
    assert "mounts `own` at `/mnt/persistence" in refusal(document)


def inject_text(text: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return main(["inject", "--image", IMAGE, "--catalogue", str(CATALOGUE), *arguments])


@pytest.mark.parametrize("source", ["statefulset", "statefulset.injected"])
def test_claims_of_a_stateful_set_are_declared_and_have_other_names(
    source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A claim replaces the pod's volume of the same name."""
    text = given(source)
    assert inject_text(text, monkeypatch) == 0
    document = yaml.safe_load(text)
    document["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] = "mount-sidecar-state"
    capsys.readouterr()
    document["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = []
    assert inject_text(yaml.safe_dump(document), monkeypatch) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert "SC1014 POD_CONFLICT: standard input: StatefulSet workers: the pod has a volume" in line


# --- what has our name and is not ours --------------------------------------------------------


def put(*path: str | int, value: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        item: Any = document
        for key in path[:-1]:
            item = item[key]
        item[path[-1]] = value

    return change


def ours(*path: str | int, value: Any) -> Callable[[Json], None]:
    return put("spec", "initContainers", 0, *path, value=value)


def main_container(*path: str | int, value: Any) -> Callable[[Json], None]:
    return put("spec", "containers", 0, *path, value=value)


def add(*path: str | int, value: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        item: Any = document
        for key in path[:-1]:
            item = item[key]
        item[path[-1]] = [*item.get(path[-1], []), value]

    return change


def move(document: Json) -> None:
    spec = document["spec"]
    spec["containers"].append(spec["initContainers"].pop(0))


def drop(*path: str | int) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        item: Any = document
        for key in path[:-1]:
            item = item[key]
        del item[path[-1]]

    return change


def volume(name: str, **source: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        volumes = document["spec"]["volumes"]
        found = [index for index, entry in enumerate(volumes) if entry["name"] == name]
        volumes[found[0] if found else len(volumes) :] = [{"name": name, **source}]

    return change


def spec_of_others(document: Json) -> None:
    annotations = document["metadata"]["annotations"]
    text = annotations["mount-sidecar.io/spec"]
    annotations["mount-sidecar.io/spec"] = text.replace("s3://images", "s3://others")


PACKAGES = "/opt/sidecar/lib/python3.13/site-packages"
SIDECAR = ("spec", "initContainers", 0)
MAIN = ("spec", "containers", 0)
NOT_OURS: dict[str, Callable[[Json], None]] = {
    "another image": ours("image", value="theirs:1"),
    "a command": ours("command", value=["sh", "-c", "id"]),
    "other arguments": ours("args", value=["mount", "--spec", "/etc/sidecar/spec.json"]),
    "another digest": ours("args", 4, value="0" * 64),
    "no privilege": ours("securityContext", "privileged", value=False),
    "another user": ours("securityContext", "runAsUser", value=1000),
    "no security context": drop(*SIDECAR, "securityContext"),
    "a hook": ours("lifecycle", value={"postStart": {"exec": {"command": ["id"]}}}),
    "a probe that runs something": ours("livenessProbe", value={"exec": {"command": ["id"]}}),
    "one more probe": ours("readinessProbe", value={"exec": {"command": ["id"]}}),
    "not restarted": drop(*SIDECAR, "restartPolicy"),
    "variables from elsewhere": ours("envFrom", value=[{"configMapRef": {"name": "theirs"}}]),
    "another directory": ours("workingDir", value="/mnt/persistence"),
    "a library": add(*SIDECAR, "env", value={"name": "LD_PRELOAD", "value": "/x.so"}),
    "packages": add(*SIDECAR, "env", value={"name": "PYTHONPATH", "value": "/x"}),
    "programs": add(*SIDECAR, "env", value={"name": "PATH", "value": "/x"}),
    "a mount over packages": lambda document: (
        add("spec", "volumes", value={"name": "theirs", "emptyDir": {}})(document),
        add(*SIDECAR, "volumeMounts", value={"name": "theirs", "mountPath": PACKAGES})(document),
    )[-1],
    "a mount that goes up": lambda document: (
        add("spec", "volumes", value={"name": "theirs", "emptyDir": {}})(document),
        add(
            *SIDECAR,
            "volumeMounts",
            value={"name": "theirs", "mountPath": f"/var/run/secrets/../../..{PACKAGES}"},
        )(document),
    )[-1],
    "our state over packages": add(
        *SIDECAR, "volumeMounts", value={"name": "mount-sidecar-state", "mountPath": PACKAGES}
    ),
    "an ordinary container": move,
    "two of them": add("spec", "containers", value={"name": "mount-sidecar", "image": IMAGE}),
    "an ephemeral one": add(
        "spec", "ephemeralContainers", value={"name": "mount-sidecar", "image": IMAGE}
    ),
    "another spec": spec_of_others,
    "no spec": drop("metadata", "annotations", "mount-sidecar.io/spec"),
    "a spec that is none": put("metadata", "annotations", "mount-sidecar.io/spec", value="{}"),
    "a spec that is no text": put("metadata", "annotations", "mount-sidecar.io/spec", value=1),
    "the spec from elsewhere": volume("mount-sidecar-spec", configMap={"name": "theirs"}),
    "state on the node": volume("mount-sidecar-state", hostPath={"path": "/"}),
    "state that is shared": volume(
        "mount-sidecar-shared", persistentVolumeClaim={"claimName": "x"}
    ),
    "another secret": volume("mount-sidecar-secret-0", secret={"secretName": "theirs"}),
    "another device": volume("mount-sidecar-fuse", hostPath={"path": "/dev/sda"}),
    "another path of the node": volume(
        "mount-sidecar-host-path-3", hostPath={"path": "/", "type": "Directory"}
    ),
    "one more volume": volume("mount-sidecar-secret-9", secret={"secretName": "stores"}),
    "a secret for the experiment": add(
        *MAIN, "volumeMounts", value={"name": "mount-sidecar-secret-0", "mountPath": "/s"}
    ),
    "the state for the experiment": add(
        *MAIN, "volumeMounts", value={"name": "mount-sidecar-state", "mountPath": "/s"}
    ),
    "the shared directory, writable": main_container(
        "volumeMounts", 0, value={"name": "mount-sidecar-shared", "mountPath": "/mnt/persistence"}
    ),
    "read-only data, writable": drop(*MAIN, "volumeMounts", 1, "readOnly"),
    "the node's path, writable": drop(*MAIN, "volumeMounts", 3, "readOnly"),
    "another sub-path": main_container("volumeMounts", 1, "subPath", value=".sidecar"),
    "a device": add(
        *MAIN, "volumeDevices", value={"name": "mount-sidecar-fuse", "devicePath": "/dev/fuse"}
    ),
    "one more container with a secret": add(
        "spec",
        "containers",
        value={
            "name": "thief",
            "image": "i",
            "volumeMounts": [{"name": "mount-sidecar-secret-0", "mountPath": "/s"}],
        },
    ),
    "an ephemeral container with a secret": add(
        "spec",
        "ephemeralContainers",
        value={
            "name": "thief",
            "image": "i",
            "volumeMounts": [{"name": "mount-sidecar-secret-0", "mountPath": "/s"}],
        },
    ),
    "a volume that is not there": drop("spec", "volumes", 1),
}


def injected() -> Json:
    found: Json = yaml.safe_load(expected("pod").read_text())
    return found


def our_mounts(container: Json, key: str = "volumeMounts") -> list[Json]:
    return [m for m in container.get(key, []) if m["name"].startswith("mount-sidecar")]


def assert_as_injected(made: Json, wanted: Json) -> None:
    """All that has our names is as in ``wanted``, and no container sees more of it."""
    ours_of = {}
    for pod_spec in (made["spec"], wanted["spec"]):
        groups = {group: pod_spec.get(group, []) for group in GROUPS}
        sidecars = [(g, c) for g in groups for c in groups[g] if c["name"] == "mount-sidecar"]
        volumes = [v for v in pod_spec["volumes"] if v["name"].startswith("mount-sidecar")]
        ours_of[id(pod_spec)] = sidecars, volumes
    assert ours_of[id(made["spec"])] == ours_of[id(wanted["spec"])]
    annotation = "mount-sidecar.io/spec"
    assert (
        made["metadata"]["annotations"][annotation]
        == (wanted["metadata"]["annotations"][annotation])
    )
    [allowed] = [our_mounts(c) for c in wanted["spec"]["containers"] if c["name"] == "main"]
    for group in GROUPS:
        for container in made["spec"].get(group, []):
            if container["name"] != "mount-sidecar":
                assert all(mount in allowed for mount in our_mounts(container))
                assert not our_mounts(container, "volumeDevices")
    assert [our_mounts(c) for c in made["spec"]["containers"] if c["name"] == "main"] == [allowed]


@pytest.mark.parametrize("change", NOT_OURS.values(), ids=NOT_OURS)
def test_what_has_our_name_and_is_not_ours_is_replaced(change: Callable[[Json], None]) -> None:
    document = injected()
    change(document)
    made = inject(document, catalogue(), INJECTION)
    assert_as_injected(made, injected())
    assert inject(made, catalogue(), INJECTION) is made


@pytest.mark.parametrize("name", ["pod", "sub-path"])
def test_a_container_of_our_name_alone_is_refused_or_replaced(name: str) -> None:
    document = yaml.safe_load(given(name))
    document["spec"]["containers"].append({"name": "mount-sidecar", "image": "theirs:1"})
    assert "a container of the pod is named `mount-sidecar`" in refusal(document)
    document["metadata"]["annotations"]["mount-sidecar.io/status"] = "injected"
    assert inject(document, catalogue(), INJECTION) == yaml.safe_load(expected(name).read_text())


@pytest.mark.parametrize(
    "injection", [Injection(image="mount-sidecar:other"), Injection(image=IMAGE, native=False)]
)
def test_the_flags_are_those_of_the_last_injection(injection: Injection) -> None:
    asked = pod()
    asked["metadata"]["annotations"] |= {
        "mount-sidecar.io/data": '["images"]',
        "mount-sidecar.io/outputs": "models",
    }
    before = inject(asked, catalogue(), INJECTION)
    made, wanted = (inject(one, catalogue(), injection) for one in (before, asked))
    assert_as_injected(made, wanted)
    assert made["metadata"] == wanted["metadata"]


def test_a_container_that_comes_later_gets_what_it_would_have_got() -> None:
    asked, late = pod(), {"name": "late", "image": "i"}
    there = inject(asked, catalogue(), INJECTION)
    for document in (asked, there):
        document["spec"]["containers"].append(copy.deepcopy(late))
        others = document["spec"].get("initContainers", [])
        document["spec"]["initContainers"] = [copy.deepcopy(late), *others]
    again, anew = (inject(one, catalogue(), INJECTION)["spec"] for one in (there, asked))
    for group in ("initContainers", "containers"):
        assert again[group] == anew[group]


TOKENS = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN = {  # as Kubernetes 1.34 makes it
    "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {
            "downwardAPI": {
                "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
            }
        },
        {
            "configMap": {
                "name": "openshift-service-ca.crt",
                "items": [{"key": "service-ca.crt", "path": "service-ca.crt"}],
            }
        },
    ]
}
IDENTITY = [
    {"name": "AWS_ROLE_ARN", "value": "arn:aws:iam::1:role/x"},
    {"name": "AZURE_FEDERATED_TOKEN_FILE", "value": "/var/run/secrets/azure/tokens/token"},
]
FORGED = [
    {"name": "AWS_CONFIG_FILE", "value": "/mnt/persistence/x"},
    {"name": "OPENSSL_CONF", "value": "/mnt/persistence/x"},
    {"name": "HTTPS_PROXY", "value": "http://theirs"},
    {"name": "AWS_ENDPOINT_URL", "value": "http://theirs"},
    {"name": "SIDECAR_POD_NAMESPACE", "value": "another"},
    {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "/var/run/sidecar/secrets/s/key.json"},
    {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "/var/run/secrets/../sidecar/secrets/s/k"},
    {"name": "AWS_REGION", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
]


def test_the_identity_that_a_cloud_gives_is_kept_and_nothing_else() -> None:
    document = injected()
    token = {"name": "token", "mountPath": "/var/run/secrets/azure/tokens", "readOnly": True}
    document["spec"]["volumes"] += [
        {"name": "token", "projected": TOKEN},
        {"name": "theirs", "emptyDir": {}},
    ]
    sidecar = document["spec"]["initContainers"][0]
    sidecar["image"] = "another:1"
    sidecar["env"] += [*IDENTITY, *FORGED]
    sidecar["volumeMounts"] += [
        token,
        {**token, "mountPath": "/var/run/secrets/../sidecar"},
        {**token, "name": "theirs"},
    ]
    made = inject(document, catalogue(), INJECTION)["spec"]["initContainers"][0]
    wanted = injected()["spec"]["initContainers"][0]
    assert made["env"] == [*wanted["env"], *IDENTITY]
    assert made["volumeMounts"] == [*wanted["volumeMounts"], token]


def test_what_an_api_server_and_its_plugins_add_is_no_difference() -> None:
    document = injected()
    spec = document["spec"]
    token = {"name": "kube-api-access-x", "mountPath": TOKENS}
    spec["volumes"] += [{"name": "kube-api-access-x", "projected": {**TOKEN, "defaultMode": 420}}]
    sidecar = spec["initContainers"][0]
    for container in (*spec["containers"], sidecar):
        container["volumeMounts"].append({**token, "readOnly": True})
        container["imagePullPolicy"] = "Always"
        container["resizePolicy"] = [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]
        container["env"].append({"name": "AWS_ROLE_ARN", "value": "arn:aws:iam::1:role/x"})
    sidecar["ports"][0]["protocol"] = "TCP"
    sidecar["securityContext"]["procMount"] = "Default"
    for probe in ("livenessProbe", "startupProbe"):
        sidecar[probe]["successThreshold"] = 1
    sidecar["livenessProbe"]["httpGet"]["scheme"] = "HTTP"
    for variable in sidecar["env"][:4]:
        variable["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
    for entry in spec["volumes"]:
        if "downwardAPI" in entry:
            entry["downwardAPI"]["defaultMode"] = 420
            entry["downwardAPI"]["items"][0]["fieldRef"]["apiVersion"] = "v1"
        if "hostPath" in entry:
            entry["hostPath"].setdefault("type", "")
        if entry["name"] == "mount-sidecar-state":
            entry["emptyDir"]["sizeLimit"] = "11005853696000m"
    assert sidecar["resources"]["limits"]["memory"] == "2560Mi"
    sidecar["resources"]["limits"] |= {"cpu": "2", "memory": "2.5Gi"}  # the first by a LimitRange
    assert pod_patch(document, catalogue(), INJECTION) == []


def test_the_catalogue_is_the_one_of_now() -> None:
    text = CATALOGUE.read_text().replace("s3://images/train", "s3://images/other")
    changed = parse_catalogue(text, "catalogue")
    assert inject(injected(), changed, INJECTION) == inject(pod(), changed, INJECTION)


# --- processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["shareProcessNamespace", "hostPID"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "injected"])
def test_shared_processes_need_an_admins_leave(
    field: str,
    there: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = injected() if there else pod()
    document["spec"][field] = True
    text = yaml.safe_dump(document)
    assert inject_text(text, monkeypatch) == 2
    said = (
        "error SC1013 POD_UNSUPPORTED: standard input: Pod train: the pod has "
        f"`{field}: true`, and so could reach the sidecar's processes; remove it; an admin can "
        "allow it with `--allow-shared-pids`\n"
    )
    assert capsys.readouterr() == ("", said)
    assert inject_text(text, monkeypatch, "--allow-shared-pids") == 0
    document["spec"][field] = False
    assert inject_text(yaml.safe_dump(document), monkeypatch) == 0


def test_the_webhook_has_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["webhook", "--help"]) == 0
    assert "--allow-shared-pids" in capsys.readouterr().out


# --- depth ----------------------------------------------------------------------------------


def nested(levels: int, kind: str) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = {"x": value} if kind == "mapping" else [value]
    return value


@pytest.mark.parametrize("kind", ["mapping", "list"])
@pytest.mark.parametrize("levels", [101, 200, 300, 400, 500, 700, 900])
@pytest.mark.parametrize("place", ["metadata", "spec"])
def test_a_deep_pod_is_unprocessable(place: str, levels: int, kind: str) -> None:
    review = json.loads(recorded("create-by-job-controller"))
    review["request"]["object"][place]["deep"] = nested(levels, kind)
    found = answer(json.dumps(review).encode(), catalogue(), INJECTION)
    assert (found.outcome, found.code) == ("refused", "SC1012")
    status = found.review["response"]["status"]
    assert status["code"] == 422
    assert status["message"] == (
        "SC1012 MANIFEST_INVALID: pod: is nested more than 100 levels deep"
    )


@pytest.mark.parametrize("levels", [101, 150, 200, 250, 300, 400, 900, 5000])
@pytest.mark.parametrize("kind", ["Pod", "Example"])
def test_a_deep_manifest_is_one_line(
    kind: str, levels: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a document of another kind, which would be printed unchanged."""
    deep = '{"x": ' * levels + "1" + "}" * levels
    text = f'{given("pod")}\n---\n{{"kind": "{kind}", "metadata": {{}}, "spec": {deep}}}'
    assert inject_text(text, monkeypatch) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("error SC1012 MANIFEST_INVALID: standard input: ")
    assert line.count("\n") == 1


def test_what_is_not_deep_is_kept() -> None:
    document = pod()
    document["metadata"]["deep"] = nested(90, "mapping")
    before = copy.deepcopy(document)
    assert pod_patch(document, catalogue(), INJECTION)
    assert document == before
