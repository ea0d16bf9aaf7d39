"""Manifest in, manifest out, validated for every supported version of Kubernetes."""

from __future__ import annotations

import json
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
import yaml

from sidecar.contract.spec_document import load_spec
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.inject import inject, pod_patch
from sidecar.control.injection.sidecar_container import Injection
from tests.control.injection.golden import (
    CATALOGUE,
    IMAGE,
    NAMES,
    catalogue,
    expected,
    given,
    injected,
)

VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
"""From the first version with native sidecars by default to the newest of the validator."""
PODS = [name for name in NAMES if "kind: Pod\n" in given(name) and name != "list"]


def documents(text: str) -> list[dict[str, Any]]:
    return [
        item
        for document in yaml.safe_load_all(text)
        for item in (document["items"] if document["kind"] == "List" else [document])
    ]


@pytest.mark.parametrize("name", NAMES)
def test_manifest_in_manifest_out(name: str) -> None:
    assert injected(name, given(name)) == expected(name).read_text(), (
        "if this is meant: python -m tests.control.injection.golden"
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_injected_stays_as_it_is(name: str) -> None:
    once = expected(name).read_text()
    assert injected(name, once) == once


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_takes_it(version: str) -> None:
    checked = 0
    for name in NAMES:
        for document in documents(expected(name).read_text()):
            if document["kind"] == "PyTorchJob" or name == "unknown-fields":
                continue
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked >= len(NAMES)


def test_the_newest_version_is_among_them() -> None:
    assert kubernetes_validate.latest_version().rpartition(".")[0] == VERSIONS[-1]


@pytest.mark.parametrize("name", PODS)
def test_the_patch_gives_the_same_pod(name: str) -> None:
    """Apply a patch as an API server does (RFC 6902), with an independent implementation."""
    pod = yaml.safe_load(given(name))
    before = json.dumps(pod)
    injection = Injection(image=IMAGE, allow_shared_pids=name == "host-pid")
    patch = pod_patch(pod, catalogue(), injection)
    assert json.dumps(pod) == before
    assert jsonpatch.apply_patch(pod, patch) == yaml.safe_load(expected(name).read_text())
    again = yaml.safe_load(expected(name).read_text())
    assert pod_patch(again, catalogue(), injection) == []


def test_what_the_injector_does_not_know_is_kept() -> None:
    pod = yaml.safe_load(expected("unknown-fields").read_text())
    assert pod["metadata"]["fromTheFuture"] == {"a": [1, 2.5, None, True]}
    assert pod["spec"]["somethingNew"] == {"nested": [{"value": 0o755}]}
    assert pod["spec"]["containers"][0]["alsoNew"] == 1


def test_the_annotation_is_the_spec_that_the_sidecar_reads() -> None:
    pod = yaml.safe_load(expected("fs-group").read_text())
    spec = load_spec(pod["metadata"]["annotations"]["mount-sidecar.io/spec"], "annotation")
    assert [volume.mountpoint for volume in spec.buckets] == [
        "/mnt/persistence/data/images",
        "/mnt/persistence/outputs/models",
    ]
    access = spec.access
    assert (access.uid, access.gid, access.file_mode, access.dir_mode) == (
        1000,
        2000,
        0o664,
        0o2775,
    )


def test_a_bucket_with_a_path_of_its_own_is_shown_through_a_sub_path() -> None:
    pod = yaml.safe_load(expected("sub-path").read_text())
    spec = load_spec(pod["metadata"]["annotations"]["mount-sidecar.io/spec"], "annotation")
    archive = next(volume for volume in spec.buckets if volume.name == "archive")
    assert (archive.path, archive.mountpoint) == (
        "/outputs/archive",
        "/mnt/persistence/outputs/archive",
    )
    mount = next(
        mount
        for mount in pod["spec"]["containers"][0]["volumeMounts"]
        if mount["mountPath"] == archive.path
    )
    assert mount == {
        "name": "mount-sidecar-shared",
        "mountPath": archive.path,
        "subPath": "outputs/archive",
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_hostpath_and_no_claim_is_ever_in_the_shared_directory(name: str) -> None:
    """The kubelet deletes an emptyDir's content, also through mounts in it."""
    for document in documents(expected(name).read_text()):
        for container, volumes in containers(document):
            kinds = {volume["name"]: set(volume) - {"name"} for volume in volumes}
            for mount in container.get("volumeMounts", []):
                if mount["mountPath"].startswith("/mnt/persistence"):
                    assert kinds[mount["name"]] == {"emptyDir"}


def sidecar_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(expected(name).read_text())["spec"]["initContainers"][0]
    return found


def test_the_port_is_one_that_the_pod_leaves_free() -> None:
    assert sidecar_of("pod")["ports"] == [{"name": "sidecar-metrics", "containerPort": 9464}]
    sidecar = sidecar_of("port-taken")
    assert sidecar["ports"] == [{"name": "sidecar-metrics", "containerPort": 9466}]
    assert sidecar["livenessProbe"]["httpGet"] == {"path": "/livez", "port": 9466}


def test_on_the_node_s_network_there_is_a_port_only_where_one_is_asked_for() -> None:
    """What is declared keeps the next such pod from the node: the API makes a hostPort of it."""
    sidecar = sidecar_of("host-network")
    assert "ports" not in sidecar
    assert sidecar["livenessProbe"]["exec"]["command"][0] == "test"
    assert sidecar_of("host-network-with-port")["ports"][0]["containerPort"] == 9500


@pytest.mark.parametrize("native", [True, False])
def test_no_port_where_none_is_wanted(native: bool) -> None:
    pod = yaml.safe_load(given("pod"))
    pod["metadata"]["annotations"]["mount-sidecar.io/port"] = "none"
    pod["metadata"]["annotations"]["mount-sidecar.io/outputs"] = "models"
    pod["metadata"]["annotations"]["mount-sidecar.io/data"] = "[]"
    made = inject(pod, catalogue(), Injection(image=IMAGE, native=native))
    sidecar = made["spec"]["initContainers" if native else "containers"][0]
    assert "httpGet" not in json.dumps(sidecar)
    assert "ports" not in sidecar
    spec = load_spec(made["metadata"]["annotations"]["mount-sidecar.io/spec"], "annotation")
    assert spec.http.port is None
    if not native:
        assert sidecar["lifecycle"]["postStart"]["exec"]["command"][0] == "sh"
    assert inject(made, catalogue(), Injection(image=IMAGE, native=native)) is made


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_missing_keeps_the_sidecar_from_saying_so(name: str) -> None:
    """With a FailedMount the kubelet starts no container, and nobody tells a code."""
    for document in documents(expected(name).read_text()):
        for _, volumes in containers(document):
            for volume in volumes:
                if volume["name"].startswith("mount-sidecar-"):
                    assert volume.get("secret", {}).get("optional", True)
                    assert volume.get("hostPath", {}).get("type", "") != "Directory"
                    if "secret" in volume:
                        assert volume["secret"]["optional"]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_sidecar_sees_secrets_and_is_privileged(name: str) -> None:
    for document in documents(expected(name).read_text()):
        for container, volumes in containers(document):
            if container["name"] == "mount-sidecar":
                continue
            secret = {volume["name"] for volume in volumes if "secret" in volume}
            assert not {mount["name"] for mount in container.get("volumeMounts", [])} & secret
            assert not container.get("securityContext", {}).get("privileged")


def containers(document: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every container of a manifest, with its pod's volumes."""
    found = []
    pending: list[Any] = [document]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if "containers" in item:
                every = [*item.get("initContainers", []), *item["containers"]]
                found += [(container, item.get("volumes", [])) for container in every]
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return found


def test_the_catalogue_of_the_cases_is_valid() -> None:
    assert [volume.name for volume in catalogue().data] == ["images", "labels", "shared", "node"]
    assert CATALOGUE.exists()


def test_a_kubelet_finds_no_variable_in_a_path() -> None:
    """It replaces $(NAME) in values, and $$ by $ (the API's EnvVar.value)."""
    path = "/data/a$(HOME)$$"
    text = (
        f"data: {{a: {{store: s3, bucket: 's3://bucket', anonymous: true, mountPath: '{path}'}}}}"
    )
    pod = inject(
        yaml.safe_load(given("pod")), parse_catalogue(text, "catalogue"), Injection(image=IMAGE)
    )
    values = {v["name"]: v["value"] for v in pod["spec"]["containers"][0]["env"]}
    assert json.loads(values["POLYAXON_RUN_DATA_PATHS"].replace("$$", "$")) == {"a": path}
    assert "$" not in values["POLYAXON_RUN_DATA_PATHS"].replace("$$", "")
