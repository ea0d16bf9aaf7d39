"""What a pod that asks for the sidecar may not have. Checks only; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from sidecar.contract.pod import RESERVED_PREFIX
from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_string,
)
from sidecar.control.injection.sidecar_container import Injection
from sidecar.errors import ManifestInvalid, PodConflict, PodUnsupported

CONTAINER_GROUPS: Final = ("initContainers", "containers", "ephemeralContainers")
MAX_DEPTH: Final = 100
"""Levels of a manifest. The API's own types have less than thirty."""
MAX_CONTAINERS: Final = 200

_SPEC: Final = "pod.spec"


def check_depth(document: Any, where: str) -> None:
    """Refuse nesting deeper than :data:`MAX_DEPTH`: everything after this check may recurse.

    Raises:
        ManifestInvalid: beginning with ``where``.
    """
    # By level, and each object once: aliases to aliases are a graph with very many paths.
    level = [document]
    for _ in range(MAX_DEPTH):
        inner = {id(child): child for item in level for child in _children(item)}
        if not inner:
            return
        level = list(inner.values())
    raise ManifestInvalid(f"{where}: is nested more than {MAX_DEPTH} levels deep")


def _children(item: Any) -> list[Any]:
    values = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return [value for value in values if isinstance(value, dict | list)]


def refuse_unsupported(pod_spec: JsonObject, injection: Injection) -> None:
    """Refuse a pod in which the sidecar cannot work.

    Raises:
        PodUnsupported: it is for Windows, has a user namespace, runs something too early, or has
            very many containers.
        ManifestInvalid: the pod has a wrong shape.
    """
    count = sum(len(get_mappings(pod_spec, group, _SPEC)) for group in CONTAINER_GROUPS)
    if count > MAX_CONTAINERS:
        raise PodUnsupported(
            f"the pod has {count} containers, each of which would get every mount",
            f"at most {MAX_CONTAINERS}",
        )
    system = get_mapping(pod_spec, "os", "spec").get("name")
    selected = get_mapping(pod_spec, "nodeSelector", "spec").get("kubernetes.io/os")
    if "windows" in (system, selected):
        raise PodUnsupported("the pod is for Windows nodes", "FUSE mounts need Linux")
    if pod_spec.get("hostUsers") is False:
        raise PodUnsupported(
            "the pod has `hostUsers: false`",
            "remove it: mounts reach the other containers only from the node's user namespace",
        )
    if not injection.native and get_mappings(pod_spec, "initContainers", "spec"):
        raise PodUnsupported(
            "the pod has init containers, which end before any other container starts",
            "use native sidecars (Kubernetes 1.29), or do their work in the main container",
        )


def refuse_shared_pids(pod_spec: JsonObject, injection: Injection) -> None:
    """Refuse a pod whose containers see the sidecar's processes, unless an admin allows it.

    Raises:
        PodUnsupported: it has ``shareProcessNamespace`` or ``hostPID``.
    """
    for field in ("shareProcessNamespace", "hostPID"):
        if pod_spec.get(field) and not injection.allow_shared_pids:
            raise PodUnsupported(
                f"the pod has `{field}: true`, and so could reach the sidecar's processes",
                "remove it; an admin can allow it with `--allow-shared-pids`",
            )


def refuse_undeclared_mounts(pod_spec: JsonObject, claims: Iterable[str]) -> None:
    """Refuse a mount or device of a volume that the pod does not declare.

    The API server would refuse it too, but only after injection, which may have added a volume
    of that name.

    Args:
        claims: names of volumes that a StatefulSet adds to the pod.

    Raises:
        PodConflict: naming the container and the volume.
        ManifestInvalid: the pod has a wrong shape.
    """
    declared = {*volume_names(pod_spec), *claims}
    for where, name in _mounted_names(pod_spec):
        if name not in declared:
            raise PodConflict(
                f"{where} mounts the volume `{name}`, which the pod does not declare",
                "add it to `volumes`",
            )


def refuse_reserved_names(names: Iterable[str]) -> None:
    """Refuse volumes with names that the injector gives. Raises PodConflict, naming the volume."""
    for name in names:
        if name.startswith(RESERVED_PREFIX):
            raise PodConflict(
                f"the pod has a volume `{name}`, and names with `{RESERVED_PREFIX}` are the "
                "sidecar's",
                "rename it",
            )


def volume_names(pod_spec: JsonObject) -> list[str]:
    """The names of the pod's volumes.

    Raises:
        ManifestInvalid: a volume has no name, or they have a wrong shape.
    """
    where = f"{_SPEC}.volumes"
    names = [get_string(v, "name", where) for v in get_mappings(pod_spec, "volumes", _SPEC)]
    if "" in names:
        raise ManifestInvalid(f"{where}: a volume has no name")
    return names


def _mounted_names(pod_spec: JsonObject) -> Iterator[tuple[str, str]]:
    """(How messages name the container, volume) for each mount and each device.

    Raises:
        ManifestInvalid: a container has a wrong shape.
    """
    for group in CONTAINER_GROUPS:
        for container in get_mappings(pod_spec, group, _SPEC):
            where = f"container `{get_string(container, 'name', f'{_SPEC}.{group}')}`"
            for key in ("volumeMounts", "volumeDevices"):
                for mount in get_mappings(container, key, where):
                    yield where, get_string(mount, "name", f"{where}.{key}")
