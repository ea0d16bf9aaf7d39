"""Replicas of two versions during a rollout, each called once for one pod, in either order."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml

from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from tests.control.injection.golden import IMAGE, NAMES, catalogue, given, injected

Json = dict[str, Any]
TOKEN = {
    "name": "kube-api-access-x",
    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
    "readOnly": True,
}
PROJECTED = {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}
CASES = [name for name in NAMES if yaml.safe_load(given(name).split("\n---")[0])["kind"] == "Pod"]


def of_next_version(pod: Json) -> Json:
    """What a version that is not written yet might make: all that an injector decides differs."""
    pod = copy.deepcopy(pod)
    annotations, spec = pod["metadata"]["annotations"], pod["spec"]
    document = json.loads(annotations["mount-sidecar.io/spec"])
    document |= {"version": 2, "new": {}}
    document["times"]["grace_s"] += 30.5
    spec["terminationGracePeriodSeconds"] += 30
    annotations["mount-sidecar.io/spec"] = json.dumps(document)
    group = next(
        group
        for group in ("initContainers", "containers")
        if any(c["name"] == "mount-sidecar" for c in spec.get(group, []))
    )
    for container in spec[group]:
        if container["name"] == "mount-sidecar":
            container["image"] = "mount-sidecar:next"
            container["args"] += ["--new"]
            container["env"] += [{"name": "SIDECAR_NEW", "value": "1"}]
            container["livenessProbe"] = {"exec": {"command": ["new"]}}
            container["volumeMounts"] += [{"name": "mount-sidecar-new", "mountPath": "/new"}]
            container["resources"] = {"requests": {"memory": "1Mi"}}
        elif "volumeMounts" in container:
            container["volumeMounts"] += [{"name": "mount-sidecar-new", "mountPath": "/new"}]
    spec["volumes"] += [{"name": "mount-sidecar-new", "emptyDir": {}}]
    return pod


def with_token(pod: Json) -> Json:
    """As the API server's plugins do between the two calls, for containers that are new."""
    pod = copy.deepcopy(pod)
    pod["spec"]["volumes"] += [{"name": TOKEN["name"], "projected": PROJECTED}]
    for group in ("initContainers", "containers"):
        for container in pod["spec"].get(group, []):
            container["volumeMounts"] = [*container.get("volumeMounts", []), TOKEN]
            container["imagePullPolicy"] = "Always"
    return pod


def sorted_by_name(pod: Json) -> Json:
    """The order of volumes, mounts and variables does not matter."""
    pod = copy.deepcopy(pod)
    spec = pod["spec"]
    named = [(spec, "volumes")]
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        named += [(container, key) for key in ("env", "volumeMounts") if key in container]
    for parent, key in named:
        parent[key].sort(key=lambda item: (item["name"], item.get("mountPath")))
    return pod


@pytest.mark.parametrize("name", CASES)
def test_the_second_call_is_of_another_version(name: str) -> None:
    made = yaml.safe_load(injected(name, given(name)))
    flags = {"native": name != "no-native", "allow_shared_pids": name == "host-pid"}
    injection = Injection(image=IMAGE, **flags)
    wanted = with_token(made)
    assert inject(wanted, catalogue(), injection) is wanted
    again = inject(with_token(of_next_version(made)), catalogue(), injection)
    assert sorted_by_name(again) == sorted_by_name(wanted)
