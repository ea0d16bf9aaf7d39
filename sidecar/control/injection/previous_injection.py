"""Whether what a pod has of the sidecar is what an injection makes. Compares; injects nothing.

A pod may come with the sidecar, from `sidecar inject`. It is then left as it is, so nothing in it
that has our names may be somebody else's. What an API server and its plugins add is no difference:
defaults, tokens, resources.
"""

from __future__ import annotations

import copy
import posixpath
from typing import Any, Final

from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mappings,
    get_string,
    get_whole_number,
)
from sidecar.control.injection.pod_checks import CONTAINER_GROUPS
from sidecar.errors import PodConflict
from sidecar.paths import contains
from sidecar.pod import CONTAINER_NAME, RESERVED_PREFIX
from sidecar.spec import PersistenceSpec

_SPEC: Final = "pod.spec"
_MAY_DIFFER: Final = {"env", "imagePullPolicy", "resizePolicy", "resources", "volumeMounts"}
"""Fields of the sidecar's container that are compared otherwise, or give it nothing to run."""
_API_DEFAULTS: Final[JsonObject] = {
    "apiVersion": "v1",
    "defaultMode": 0o644,
    "procMount": "Default",
    "protocol": "TCP",
    "scheme": "HTTP",
    "successThreshold": 1,
    "type": "",
}
_TOKENS: Final = "/var/run/secrets"
"""Where the API server and the clouds' webhooks mount tokens into every container."""
_LOADS_CODE: Final = ("LD_", "PYTHON", "PATH")
"""How variables begin that make a program run something else."""


def find_sidecars(pod_spec: JsonObject) -> list[tuple[str, JsonObject]]:
    """(Group, container) for each container with our name.

    Raises:
        ManifestInvalid: a group of containers has a wrong shape.
    """
    return [
        (group, container)
        for group in CONTAINER_GROUPS
        for container in get_mappings(pod_spec, group, _SPEC)
        if container.get("name") == CONTAINER_NAME
    ]


def without_sidecar(pod_spec: JsonObject, spec: PersistenceSpec) -> JsonObject:
    """A copy of an injected pod's ``spec`` without what has our names.

    Raises:
        ManifestInvalid: the pod has a wrong shape.
    """
    plain = copy.deepcopy(pod_spec)
    for group in CONTAINER_GROUPS:
        if group in plain:
            plain[group] = [
                {**container, "volumeMounts": _others(container, "volumeMounts", group)}
                for container in get_mappings(plain, group, _SPEC)
                if container.get("name") != CONTAINER_NAME
            ]
    plain["volumes"] = _others(plain, "volumes", _SPEC)
    grace_s = get_whole_number(plain, "terminationGracePeriodSeconds", _SPEC) or 0
    plain["terminationGracePeriodSeconds"] = max(0, grace_s - int(spec.times.grace_s))
    return plain


def refuse_differences(pod_spec: JsonObject, expected: JsonObject) -> None:
    """Refuse a pod whose sidecar is not the one of ``expected``.

    Args:
        expected: ``spec`` of the same pod with the sidecar, as it would be injected.

    Raises:
        PodConflict: naming what is not ours.
    """
    ((group, ours),) = find_sidecars(expected)
    there = find_sidecars(pod_spec)
    if [place for place, _ in there] != [group]:
        raise _not_ours(
            f"a container is named `{CONTAINER_NAME}` and not the only one, or not in `{group}`"
        )
    container = there[0][1]
    for key in sorted({*ours, *container} - _MAY_DIFFER):
        if not agrees(container.get(key), ours.get(key)):
            raise _not_ours(f"the container `{CONTAINER_NAME}` has another `{key}`")
    _check_environment(container)
    volumes = {volume["name"]: volume for volume in _ours(expected, "volumes", _SPEC)}
    for volume in _ours(pod_spec, "volumes", _SPEC):
        if not agrees(volume, volumes.get(volume["name"])):
            raise _not_ours(f"the volume `{volume['name']}` is another one")
    _check_mounts(pod_spec, expected)


def _check_environment(container: JsonObject) -> None:
    where = f"container `{CONTAINER_NAME}`"
    for variable in get_mappings(container, "env", where):
        name = get_string(variable, "name", f"{where}.env")
        if name.startswith(_LOADS_CODE):
            raise _not_ours(f"the container `{CONTAINER_NAME}` has the variable `{name}`")


def _check_mounts(pod_spec: JsonObject, expected: JsonObject) -> None:
    allowed = {
        get_string(container, "name", group): get_mappings(container, "volumeMounts", group)
        for group in CONTAINER_GROUPS
        for container in get_mappings(expected, group, _SPEC)
    }
    for group in CONTAINER_GROUPS:
        for container in get_mappings(pod_spec, group, _SPEC):
            name = get_string(container, "name", group)
            mounts = get_mappings(container, "volumeMounts", group)
            if name != CONTAINER_NAME:
                mounts = _ours(container, "volumeMounts", group)
            mounts = [mount for mount in mounts if not (name == CONTAINER_NAME and _token(mount))]
            mounts += _ours(container, "volumeDevices", group)
            for mount in mounts:
                if not any(agrees(mount, one) for one in allowed.get(name, [])):
                    raise _not_ours(f"container `{name}` mounts `{mount.get('name')}` otherwise")


def _token(mount: JsonObject) -> bool:
    path = posixpath.normpath(get_string(mount, "mountPath", "volumeMounts"))
    return not _has_our_name(mount) and contains(_TOKENS, path)


def _ours(parent: JsonObject, key: str, where: str) -> list[JsonObject]:
    return [item for item in get_mappings(parent, key, where) if _has_our_name(item)]


def _others(parent: JsonObject, key: str, where: str) -> list[JsonObject]:
    return [item for item in get_mappings(parent, key, where) if not _has_our_name(item)]


def _has_our_name(item: JsonObject) -> bool:
    return get_string(item, "name", _SPEC).startswith(RESERVED_PREFIX)


def agrees(there: Any, ours: Any) -> bool:
    """Whether ``there`` is ``ours``, but for what an API server adds."""
    if isinstance(there, dict) and isinstance(ours, dict):
        # A quantity, which the API writes in a form of its own.
        wanted = {key: value for key, value in ours.items() if key != "sizeLimit"}
        given = {key: value for key, value in there.items() if key != "sizeLimit"}
        return all(agrees(given.get(key), value) for key, value in wanted.items()) and all(
            _API_DEFAULTS.get(key) == value for key, value in given.items() if key not in wanted
        )
    if isinstance(there, list) and isinstance(ours, list):
        return len(there) == len(ours) and all(map(agrees, there, ours))
    return bool(there == ours)


def _not_ours(what: str) -> PodConflict:
    return PodConflict(
        f"the pod says that it has the sidecar, and {what}",
        "inject the manifest as it was before, or rename what is not the sidecar's",
    )
