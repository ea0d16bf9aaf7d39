"""The spec of one pod: the resolved volumes, owner and sizes. Changes nothing in the pod."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Final

from sidecar.control.catalogue.catalogue import Catalogue
from sidecar.control.catalogue.resolve import resolve
from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_whole_number,
)
from sidecar.control.injection.pod_annotations import PREFIX, PodRequest
from sidecar.errors import AnnotationInvalid, PodConflict
from sidecar.spec import ANYBODY, HTTP_PORT, Access, Http, PersistenceSpec, Sizes
from sidecar.spec_rules import shared_path
from sidecar.units import MIB

DEFAULT_GRACE_S: Final = 30
"""The API's default for a pod's terminationGracePeriodSeconds."""
OVERHEAD_BYTES: Final = 256 * MIB
"""Room in the state directory for all but the spools: journals, metrics."""
_OUTSIDE_BYTES: Final = 80 * MIB
"""What a kubelet counts besides the state directory: the container's log (five files of 10 MiB,
which it looks at now and then) and the shared emptyDir."""


def spec_of_pod(pod_spec: JsonObject, request: PodRequest, catalogue: Catalogue) -> PersistenceSpec:
    """What the sidecar of a pod mounts, and how.

    Every bucket is mounted below the shared emptyDir, since mounts reach other containers only
    through it. At its ``mountPath`` a bucket is shown through a sub-path of the emptyDir.

    Args:
        pod_spec: the pod's ``spec``.
        request: the pod's annotations.
        catalogue: what the admin declares.

    Raises:
        ConfigError: the selection cannot be resolved, or the pod has a wrong shape.
    """
    spec = resolve(catalogue, request.selection, run=request.run, paths=request.paths)
    volumes = tuple(
        replace(volume, mountpoint=shared_path(spec.roots, volume.kind, volume.name))
        if volume.is_bucket
        else volume
        for volume in spec.volumes
    )
    return replace(
        spec,
        volumes=volumes,
        access=_access(pod_spec),
        http=Http(port=_port(pod_spec, request)),
        sizes=_sizes(spec, request),
    )


def state_bytes(spec: PersistenceSpec) -> int:
    """Size limit of the sidecar's state directory.

    Each writable bucket has its own spool, which is full (ENOSPC) before this limit is reached.
    """
    return OVERHEAD_BYTES + len(_writable(spec)) * spec.sizes.spool_bytes


def disk_limit(pod_spec: JsonObject, spec: PersistenceSpec, request: PodRequest) -> str | None:
    """The sidecar's limit on ephemeral storage, as a quantity; None: it has none.

    A kubelet evicts a pod that exceeds the sum of its containers' limits, and the spool counts. If
    one of them has a limit, the sidecar needs one, or the spool uses up theirs. If none has, its
    limit would be that of the whole pod.

    Raises:
        ManifestInvalid: the pod has a wrong shape.
    """
    others = [
        get_mapping(get_mapping(container, "resources", group), "limits", f"{group}.resources")
        for group in ("initContainers", "containers")
        for container in get_mappings(pod_spec, group, "spec")
    ]
    if not any("ephemeral-storage" in limits for limits in others):
        return None
    asked = request.resources.get("ephemeral-storage-limit")
    return asked.text if asked is not None else str(state_bytes(spec) + _OUTSIDE_BYTES)


def _port(pod_spec: JsonObject, request: PodRequest) -> int | None:
    """Where metrics and probes are served: as annotated, else a port that the pod leaves free.

    On the node's network a port that is declared keeps the next such pod from the node, and one
    that is not is found by nobody: there is none.
    """
    if request.port == "none":
        return None
    declared = {
        port.get("containerPort")
        for group in ("initContainers", "containers")
        for container in get_mappings(pod_spec, group, "spec")
        for port in get_mappings(container, "ports", f"spec.{group}")
    }
    if request.port is not None:
        if request.port in declared:
            raise PodConflict(
                f"annotation `{PREFIX}port`: a container of the pod has the port {request.port}",
                "choose another one",
            )
        return request.port
    if pod_spec.get("hostNetwork"):
        return None
    return next(port for port in count(HTTP_PORT) if port not in declared)


def _access(pod_spec: JsonObject) -> Access:
    """Owner and modes in buckets: those of the user that the pod says it runs as.

    With ``fsGroup`` that group may write, whoever the containers run as, and new files get the
    group, as the kubelet prepares other volumes (SetVolumeOwnership). If only the image knows
    the user, everybody in the pod may read and write (:data:`ANYBODY`).
    """
    where = "spec.securityContext"
    contexts = [get_mapping(pod_spec, "securityContext", "spec")]
    for container in get_mappings(pod_spec, "containers", "spec")[:1]:
        contexts.insert(0, get_mapping(container, "securityContext", "spec.containers[0]"))
    uid = _first(contexts, "runAsUser", where)
    gid = _first(contexts[-1:], "fsGroup", where)
    if gid is not None:
        return Access(uid=uid or 0, gid=gid, file_mode=0o664, dir_mode=0o2775)
    gid = _first(contexts, "runAsGroup", where) or 0
    if uid is None:
        return replace(ANYBODY, gid=gid)
    return Access(uid=uid, gid=gid)


def _first(contexts: list[JsonObject], key: str, where: str) -> int | None:
    found = [get_whole_number(context, key, where) for context in contexts]
    return next((value for value in found if value is not None), None)


def _sizes(spec: PersistenceSpec, request: PodRequest) -> Sizes:
    limit = request.resources.get("ephemeral-storage-limit")
    writable = len(_writable(spec))
    if limit is None or not writable:
        return spec.sizes
    besides_bytes = OVERHEAD_BYTES + _OUTSIDE_BYTES
    spool_bytes = (limit.rounded_up - besides_bytes) // writable
    if spool_bytes < spec.sizes.part_bytes:
        raise AnnotationInvalid(
            f"annotation `{PREFIX}ephemeral-storage-limit`: leaves no room to write to "
            f"{writable} bucket(s)",
            f"at least {(besides_bytes + writable * spec.sizes.part_bytes) // MIB}Mi",
        )
    return replace(spec.sizes, spool_bytes=min(spool_bytes, spec.sizes.spool_bytes))


def _writable(spec: PersistenceSpec) -> list[str]:
    return [volume.name for volume in spec.buckets if not volume.read_only]
