"""The manifests as the API server would take them, for each version that is supported."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from sidecar import __version__
from sidecar.cli.control import WEBHOOK_KEPT_CATALOGUE
from sidecar.cli.main import cli
from sidecar.contract.pod import (
    CONTAINER_NAME,
    PROXY_VARIABLES,
    RESERVED_PREFIX,
    STOP_WITH_EXPERIMENT_VARIABLE,
    UID_VARIABLE,
)
from sidecar.contract.spec import HTTP_PORT
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.inject import inject
from sidecar.control.injection.pod_identity import _FILES, _TEXTS
from sidecar.control.injection.sidecar_container import Injection
from sidecar.control.webhook.kept_catalogue import KEY
from sidecar.mounter.reporting.pod_reports import CONDITION
from tests.support.cluster import MANIFESTS, Json, find, kustomize
from tests.support.dashboard import queries
from tests.support.servers import REPOSITORY

OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (MANIFESTS / "components").iterdir())
EXAMPLES = ["secrets.yaml", "experiment.yaml", "distributed.yaml"]
OPTED_IN = {"mount-sidecar.io/injection": "enabled"}
_valid: set[str] = set()
# Kinds of others: the Prometheus operator's and cert-manager's.
FOREIGN = {"PodMonitor", "PrometheusRule", "Certificate", "Issuer"}
POLICIES = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}  # since 1.30


def _versions() -> list[str]:
    """From 1.29, the first with native sidecars, to the newest that the validator knows."""
    newest = int(kubernetes_validate.latest_version().split(".")[1])
    return [f"1.{minor}" for minor in range(29, newest + 1)]


def validate(documents: list[Json]) -> None:
    own = [document for document in documents if document["kind"] not in FOREIGN]
    assert own
    for document in own:
        text = json.dumps(document, sort_keys=True)
        if text in _valid:
            continue  # the overlays have much in common
        for version in _versions()[document["kind"] in POLICIES :]:
            kubernetes_validate.validate(document, version, strict=True)
        _valid.add(text)


def names(documents: list[Json]) -> set[str]:
    return {f"{document['kind']} {document['metadata']['name']}" for document in documents}


def pod_templates(documents: list[Json]) -> list[Json]:
    """The pod template of each workload."""
    found = []
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            found.append(spec["template"])
    return found


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Json]:
    """What each overlay makes."""
    return kustomize(MANIFESTS / "overlays" / request.param)


def test_an_overlay_is_valid(overlay: list[Json]) -> None:
    validate(overlay)


def test_a_document_that_is_wrong_would_be_found(overlay: list[Json]) -> None:
    daemon_set = find(overlay, "DaemonSet", "mount-sidecar-janitor")
    broken = {**daemon_set, "spec": {**daemon_set["spec"], "replicas": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate([broken])


def test_its_catalogue_can_be_read(overlay: list[Json]) -> None:
    data = find(overlay, "ConfigMap", "mount-sidecar-catalogue")["data"]
    assert list(data) == ["catalogue.yaml"]
    catalogue = parse_catalogue(data["catalogue.yaml"], "the overlay's catalogue")
    assert catalogue.outputs


def test_the_image_has_one_name_and_pods_get_the_same(overlay: list[Json]) -> None:
    templates = pod_templates(overlay)
    images = {c["image"] for template in templates for c in template["spec"]["containers"]}
    assert len(images) == 1
    image = images.pop()
    assert image.endswith(f"/mount-sidecar:{__version__}")
    webhook = find(overlay, "Deployment", "mount-sidecar-webhook")
    container = webhook["spec"]["template"]["spec"]["containers"][0]
    kept = ["--keep-in", "mount-sidecar-catalogue-kept"]
    assert container["args"] == ["webhook", "--image", image, *kept]


def test_only_the_janitor_is_privileged(overlay: list[Json]) -> None:
    for template in pod_templates(overlay):
        name = template["metadata"]["labels"]["app.kubernetes.io/name"]
        for container in template["spec"]["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert bool(context.get("privileged")) == (name == "mount-sidecar-janitor")
            if name != "mount-sidecar-janitor":
                assert template["spec"]["securityContext"]["runAsNonRoot"] is True
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert context["allowPrivilegeEscalation"] is False


def test_what_refers_to_another_object_finds_it(overlay: list[Json]) -> None:
    configuration = find(overlay, "MutatingWebhookConfiguration", "mount-sidecar")
    webhook = find(overlay, "Deployment", "mount-sidecar-webhook")["spec"]["template"]
    for entry in configuration["webhooks"]:
        reference = entry["clientConfig"]["service"]
        service = find(overlay, "Service", reference["name"])
        assert service["spec"]["selector"].items() <= webhook["metadata"]["labels"].items()
        assert reference["port"] in [port["port"] for port in service["spec"]["ports"]]
        assert entry["failurePolicy"] == "Fail"
        assert entry["objectSelector"]["matchLabels"] == {"mount-sidecar.io/inject": "true"}
        assert entry["namespaceSelector"]["matchLabels"] == OPTED_IN
    ports = {p["name"]: p["containerPort"] for p in webhook["spec"]["containers"][0]["ports"]}
    assert ports == {"admission": 9443, "metrics": HTTP_PORT}
    for document in overlay:
        if document["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            reference = document["roleRef"]
            find(overlay, reference["kind"], reference["name"])
            for subject in document["subjects"]:
                find(overlay, "ServiceAccount", subject["name"])


def test_a_certificate_comes_from_one_place() -> None:
    by_us = names(kustomize(MANIFESTS / "overlays/kind"))
    by_manager = names(kustomize(MANIFESTS / "overlays/eks"))
    assert "Deployment mount-sidecar-certificate" in by_us
    assert "Certificate mount-sidecar-webhook" in by_manager
    assert not [name for name in by_manager if name.endswith("mount-sidecar-certificate")]


def test_uninstalling_destroys_nothing_of_users(overlay: list[Json]) -> None:
    """`kubectl delete -k` deletes these objects, and whatever is in a namespace among them."""
    ours = find(overlay, "Namespace", "mount-sidecar")
    assert not OPTED_IN.keys() & ours["metadata"]["labels"].keys(), "no experiment runs here"
    for document in overlay:
        kind, metadata = document["kind"], document["metadata"]
        assert kind not in ("PersistentVolume", "PersistentVolumeClaim", "Secret")
        assert kind != "Namespace" or metadata["name"] == "mount-sidecar"
        assert metadata.get("namespace", "mount-sidecar") == "mount-sidecar", metadata


def test_nothing_of_an_overlay_is_immutable(overlay: list[Json]) -> None:
    """An upgrade applies the same objects with another image, also within the day."""
    assert not [d for d in overlay if d["kind"] in ("Job", "Pod")]


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_namespace_of_experiments_is_opted_in(name: str) -> None:
    text = (MANIFESTS / "overlays" / name / "experiments.yaml").read_text()
    assert f"kubectl apply -f manifests/overlays/{name}/experiments.yaml" in text
    documents = list(yaml.safe_load_all(text))
    validate(documents)
    namespace, account, binding = documents
    assert OPTED_IN.items() <= namespace["metadata"]["labels"].items()
    find(kustomize(MANIFESTS / "overlays" / name), "ClusterRole", binding["roleRef"]["name"])
    [subject] = binding["subjects"]
    assert subject["name"] == account["metadata"]["name"]


def test_the_webhook_may_change_one_config_map(overlay: list[Json]) -> None:
    [rule] = find(overlay, "Role", "mount-sidecar-webhook")["rules"]
    assert rule == {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": ["mount-sidecar-catalogue-kept"],
        "verbs": ["patch"],
    }
    assert "data" not in find(overlay, "ConfigMap", *rule["resourceNames"]), "kept over an upgrade"
    webhook = find(overlay, "Deployment", "mount-sidecar-webhook")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in webhook["volumes"]}
    assert volumes["catalogue-kept"]["configMap"]["name"] == "mount-sidecar-catalogue-kept"
    mounts = {
        mount["name"]: mount["mountPath"] for mount in webhook["containers"][0]["volumeMounts"]
    }
    assert f"{mounts['catalogue-kept']}/{KEY}" == WEBHOOK_KEPT_CATALOGUE


def rights(documents: list[Json], role: str) -> dict[str, list[str]]:
    """Resource to verbs."""
    rules = find(documents, "ClusterRole", role)["rules"]
    return {name: rule["verbs"] for rule in rules for name in rule["resources"]}


def test_an_experiment_gets_no_right_that_is_not_bounded(overlay: list[Json]) -> None:
    """The role is bound to the experiments' service account."""
    assert rights(kustomize(MANIFESTS / "base"), "mount-sidecar-reporter") == {"events": ["create"]}
    assert rights(overlay, "mount-sidecar-reporter") == {
        "events": ["create"],
        "pods/status": ["patch"],
        "reports": ["bounded"],  # by which the policies find whom they bound
    }
    for name in ("mount-sidecar-pod-status", "mount-sidecar-events"):
        conditions = find(overlay, "ValidatingAdmissionPolicy", name)["spec"]["matchConditions"]
        assert "check('bounded').allowed()" in conditions[1]["expression"]


def test_each_policy_is_in_force(overlay: list[Json]) -> None:
    policies = {d["metadata"]["name"] for d in overlay if d["kind"] == "ValidatingAdmissionPolicy"}
    assert policies
    for name in policies:
        spec = find(overlay, "ValidatingAdmissionPolicy", name)["spec"]
        assert spec["failurePolicy"] == "Fail"
        assert spec["validations"]
        binding = find(overlay, "ValidatingAdmissionPolicyBinding", name)["spec"]
        assert binding == {"policyName": name, "validationActions": ["Deny"]}


def test_policies_name_what_there_is(overlay: list[Json]) -> None:
    """Texts in expressions, which nothing else compares."""
    bundle = find(overlay, "ValidatingAdmissionPolicy", "mount-sidecar-certificate-bundle")["spec"]
    [condition] = bundle["matchConditions"]
    job = find(
        kustomize(MANIFESTS / "overlays/kind"), "ServiceAccount", "mount-sidecar-certificate"
    )
    namespace, account = job["metadata"]["namespace"], job["metadata"]["name"]
    assert f"'system:serviceaccount:{namespace}:{account}'" in condition["expression"]
    status = json.dumps(find(overlay, "ValidatingAdmissionPolicy", "mount-sidecar-pod-status"))
    assert f"'{CONDITION}'" in status
    injected = json.dumps(find(overlay, "ValidatingAdmissionPolicy", "mount-sidecar-injected"))
    for name in (
        CONTAINER_NAME,
        RESERVED_PREFIX,
        f"{RESERVED_PREFIX}shared",
        "mount-sidecar.io/inject",
    ):
        assert f"'{name}'" in injected


def test_the_baseline_is_of_what_the_webhook_makes() -> None:
    """Its namespaces are the webhook's, and so are the variables that it allows the sidecar."""
    text = (MANIFESTS / "components" / "baseline" / "policies.yaml").read_text()
    policy = find(
        list(yaml.safe_load_all(text)), "ValidatingAdmissionPolicy", "mount-sidecar-baseline"
    )
    configuration = (MANIFESTS / "components" / "webhook" / "configuration.yaml").read_text()
    [webhook] = yaml.safe_load(configuration)["webhooks"]
    constraints = policy["spec"]["matchConstraints"]
    assert constraints["namespaceSelector"] == webhook["namespaceSelector"]
    expressions = " ".join(one["expression"] for one in policy["spec"]["validations"])
    [label] = webhook["objectSelector"]["matchLabels"]
    assert f"labels[?'{label}'].orValue('') == 'true'" in expressions
    named = re.findall(r"'((?:AWS|AZURE)_\w+|\w+_PROXY|SIDECAR_\w+[A-Z])'", expressions)
    assert sorted(named) == sorted(
        [*_TEXTS, *_FILES, *PROXY_VARIABLES, STOP_WITH_EXPERIMENT_VARIABLE]
    )


def test_without_native_sidecars_the_pod_may_be_watched(tmp_path: Path) -> None:
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(MANIFESTS / "base", tmp_path)],
        "components": [
            os.path.relpath(MANIFESTS / "components" / name, tmp_path)
            for name in ("webhook", "no-native")
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    documents = kustomize(tmp_path)
    webhook = find(documents, "Deployment", "mount-sidecar-webhook")["spec"]["template"]["spec"]
    assert webhook["containers"][0]["args"][-1] == "--no-native"
    assert rights(documents, "mount-sidecar-reporter") == {
        "events": ["create"],
        "pods": ["list", "watch"],
    }


def test_every_component_is_used_in_an_overlay() -> None:
    # No platform of an overlay is that old; and a cache on nodes needs a path.
    used = {"no-native", "node-cache"}
    for name in OVERLAYS:
        text = (MANIFESTS / "overlays" / name / "kustomization.yaml").read_text()
        used |= {Path(path).name for path in yaml.safe_load(text)["components"]}
    assert sorted(used) == COMPONENTS


def test_the_janitor_s_arguments_are_those_of_the_command(overlay: list[Json]) -> None:
    daemon_set = find(overlay, "DaemonSet", "mount-sidecar-janitor")
    spec = daemon_set["spec"]["template"]["spec"]
    container = spec["containers"][0]
    command, *arguments = container["args"]
    parsed = cli.commands[command].make_context(command, list(arguments)).params
    mount = container["volumeMounts"][0]
    assert str(parsed["root"]) == mount["mountPath"] == spec["volumes"][0]["hostPath"]["path"]
    assert mount["mountPropagation"] == "Bidirectional"
    assert spec["hostPID"] is True
    [variable] = container["env"]
    assert variable == {
        "name": UID_VARIABLE,
        "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}},
    }


def test_what_clusters_differ_in_is_a_patch() -> None:
    documents = kustomize(MANIFESTS / "examples" / "customized")
    validate(documents)
    for kind, name in (
        ("Deployment", "mount-sidecar-webhook"),
        ("Deployment", "mount-sidecar-certificate"),
        ("DaemonSet", "mount-sidecar-janitor"),
    ):
        spec = find(documents, kind, name)["spec"]["template"]["spec"]
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["containers"][0]["imagePullPolicy"] == "Always"
        assert spec["tolerations"]
    # `spec` is the janitor's.
    assert spec["volumes"][0]["hostPath"]["path"].startswith("/var/snap/microk8s/")
    webhook = find(documents, "Deployment", "mount-sidecar-webhook")["spec"]["template"]["spec"]
    assert webhook["priorityClassName"] == "system-cluster-critical"
    command, *arguments = webhook["containers"][0]["args"]
    parsed = cli.commands[command].make_context(command, list(arguments)).params
    assert parsed["proxy"] == "http://proxy.example:3128"
    assert parsed["no_proxy"]
    assert parsed["ca_bundle"] == "configMap/authorities/ca.crt"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_valid(name: str) -> None:
    validate(list(yaml.safe_load_all((MANIFESTS / "examples" / name).read_text())))


@pytest.mark.parametrize("overlay_name", OVERLAYS)
@pytest.mark.parametrize("name", ["experiment.yaml", "distributed.yaml"])
def test_an_example_runs_with_an_overlay_as_it_is(name: str, overlay_name: str) -> None:
    """Its namespace, account and volumes are the overlay's, its image is what is built."""
    job = list(yaml.safe_load_all((MANIFESTS / "examples" / name).read_text()))[-1]
    folder = MANIFESTS / "overlays" / overlay_name
    namespace, account, _ = yaml.safe_load_all((folder / "experiments.yaml").read_text())
    template = job["spec"]["template"]
    assert job["metadata"]["namespace"] == namespace["metadata"]["name"]
    assert template["spec"]["serviceAccountName"] == account["metadata"]["name"]
    [container] = template["spec"]["containers"]
    assert container["image"] == f"localhost/experiment:{__version__}"
    text = (folder / "catalogue.yaml").read_text()
    pod = {"metadata": template["metadata"], "spec": template["spec"]}
    catalogue = parse_catalogue(text, "the overlay's catalogue")
    assert inject(pod, catalogue, Injection())["spec"]["initContainers"]


def test_no_overlay_needs_a_directory_of_the_nodes() -> None:
    for name in OVERLAYS:
        assert "hostPath" not in (MANIFESTS / "overlays" / name / "catalogue.yaml").read_text()


def test_the_examples_catalogue_is_the_document_s() -> None:
    text = (REPOSITORY / "tests/fixtures/catalogues/customize-volumes.md").read_text()
    printed = text.partition("```yaml\n")[2].partition("```")[0]
    expected = parse_catalogue(printed, "the document")
    text = (MANIFESTS / "examples/catalogue.yaml").read_text()
    found = parse_catalogue(text, "the example")
    for kind in ("data", "outputs"):
        assert [(v.name, v.mount_path, v.read_only) for v in getattr(found, kind)] == [
            (v.name, v.mount_path, v.read_only) for v in getattr(expected, kind)
        ]
    secrets = yaml.safe_load_all((MANIFESTS / "examples/secrets.yaml").read_text())
    known = {(s["metadata"]["name"], key) for s in secrets for key in s["stringData"]}
    entries = yaml.safe_load(text)["persistence"]
    used = {
        (volume["secret"], volume["secretKey"])
        for volumes in entries.values()
        for volume in volumes.values()
        if "secret" in volume
    }
    assert used == known


def test_the_dashboard_s_rates_fit_a_scrape_a_minute() -> None:
    """As a user's Prometheus does it: two samples at least, also when one is late."""
    windows = [
        window for query in queries() for window in re.findall(r"\[(\w+)\]", query.expression)
    ]
    assert windows
    assert set(windows) == {"5m"}
