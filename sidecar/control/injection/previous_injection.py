"""Takes an earlier injection out of a pod, so that it can be made anew.

Nothing in the pod with our names is believed, since its author or a replica of another version may
have written it. Additions of others to the sidecar's container are kept: those of an API server and
its plugins, and of the clouds' webhooks, which give pods their identity.
"""

from __future__ import annotations

import json
from typing import Any, Final

from sidecar.contract.options import Times
from sidecar.contract.pod import CONTAINER_NAME, RESERVED_PREFIX
from sidecar.control.catalogue.quantity import parse_quantity
from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_string,
    get_whole_number,
)
from sidecar.control.injection.pod_annotations import SPEC_ANNOTATION
from sidecar.control.injection.pod_checks import CONTAINER_GROUPS
from sidecar.control.injection.pod_identity import identity_mounts, is_identity_variable
from sidecar.errors import ConfigError

_SPEC: Final = "pod.spec"
_API_DEFAULTS: Final[JsonObject] = {
    "apiVersion": "v1",
    "defaultMode": 0o644,
    "procMount": "Default",
    "protocol": "TCP",
    "scheme": "HTTP",
    "successThreshold": 1,
    "type": "",
}
_QUANTITIES: Final = {"cpu", "ephemeral-storage", "memory", "sizeLimit"}
"""The API normalises these values."""
_UNORDERED: Final = {"env", "volumeMounts", "volumes"}


def find_sidecars(pod_spec: JsonObject) -> list[JsonObject]:
    """The containers with our name.

    Raises:
        ManifestInvalid: a group of containers has a wrong shape.
    """
    return [
        container
        for group in CONTAINER_GROUPS
        for container in get_mappings(pod_spec, group, _SPEC)
        if container.get("name") == CONTAINER_NAME
    ]


def remove_sidecar(pod: JsonObject) -> None:
    """Remove everything with our names from an injected pod, and restore its own grace period.

    Only the pod's ``spec`` and its containers are changed.

    Raises:
        ManifestInvalid: the pod has a wrong shape.
    """
    pod_spec = pod["spec"]
    for group in CONTAINER_GROUPS:
        if group in pod_spec:
            pod_spec[group] = [
                container
                for container in get_mappings(pod_spec, group, _SPEC)
                if container.get("name") != CONTAINER_NAME
            ]
            for container in pod_spec[group]:
                for key in ("volumeMounts", "volumeDevices"):
                    _drop_ours(container, key, group)
    _drop_ours(pod_spec, "volumes", _SPEC)
    grace_s = get_whole_number(pod_spec, "terminationGracePeriodSeconds", _SPEC)
    if grace_s is not None:
        pod_spec["terminationGracePeriodSeconds"] = max(0, grace_s - _added_grace_s(pod))


def _drop_ours(parent: JsonObject, key: str, where: str) -> None:
    if key in parent:
        parent[key] = [
            item
            for item in get_mappings(parent, key, where)
            if not get_string(item, "name", where).startswith(RESERVED_PREFIX)
        ]


def _added_grace_s(pod: JsonObject) -> int:
    """How much the earlier injection, maybe of another version, added, as its spec says."""
    annotations = get_mapping(get_mapping(pod, "metadata", "pod"), "annotations", "pod.metadata")
    try:
        said = json.loads(get_string(annotations, SPEC_ANNOTATION, "pod.metadata.annotations"))
        grace_s = said["times"]["grace_s"]
    except (ConfigError, ValueError, RecursionError, LookupError, TypeError):
        grace_s = None
    is_number = isinstance(grace_s, int | float) and 0 <= grace_s < 1e6
    return int(grace_s if is_number else Times().grace_s)


def keep_additions(pod_spec: JsonObject, before: JsonObject) -> None:
    """Give the sidecar of ``pod_spec`` what others had added to that of ``before``, in place.

    Raises:
        ManifestInvalid: the container of ``before`` has a wrong shape.
    """
    [ours] = find_sidecars(pod_spec)
    there = find_sidecars(before)[0]
    if there.get("imagePullPolicy") == "Always":
        ours["imagePullPolicy"] = "Always"
    if "resizePolicy" in there:
        ours["resizePolicy"] = there["resizePolicy"]
    resources = get_mapping(there, "resources", CONTAINER_NAME)
    for bound in ("requests", "limits"):  # such as a LimitRange's default
        given = get_mapping(resources, bound, CONTAINER_NAME)
        if "cpu" in given:
            ours["resources"][bound].setdefault("cpu", given["cpu"])
    variables = get_mappings(there, "env", CONTAINER_NAME)
    ours["env"] += [one for one in variables if is_identity_variable(one)]
    mounts = get_mappings(there, "volumeMounts", CONTAINER_NAME)
    ours["volumeMounts"] += identity_mounts(mounts, pod_spec)


def agrees(there: Any, ours: Any, key: str = "") -> bool:
    """Whether ``there`` is ``ours``, except for an API server's additions and the order of names.

    Args:
        key: the key of both values.
    """
    if isinstance(there, dict) and isinstance(ours, dict):
        return all(agrees(there.get(name), value, name) for name, value in ours.items()) and all(
            _API_DEFAULTS.get(name) == value for name, value in there.items() if name not in ours
        )
    if isinstance(there, list) and isinstance(ours, list):
        if key in _UNORDERED:
            there, ours = sorted(there, key=_name), sorted(ours, key=_name)
        return len(there) == len(ours) and all(map(agrees, there, ours))
    if key in _QUANTITIES and isinstance(there, str) and isinstance(ours, str):
        try:
            return parse_quantity(there).value == parse_quantity(ours).value
        except ValueError:
            pass
    return bool(there == ours)


def _name(item: Any) -> tuple[str, str]:
    named = item if isinstance(item, dict) else {}
    return str(named.get("name")), str(named.get("mountPath"))
