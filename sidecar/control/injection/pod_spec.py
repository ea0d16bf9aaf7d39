"""The spec of one pod: the resolved volumes, owner and sizes. The pod is not changed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Final

from sidecar.contract.options import CacheName
from sidecar.contract.spec import ANYBODY, HTTP_PORT, Access, Http, PersistenceSpec, Roots, Volume
from sidecar.contract.spec_rules import shared_path
from sidecar.control.catalogue.catalogue import Catalogue
from sidecar.control.catalogue.option_rules import Bound
from sidecar.control.catalogue.resolve import resolve
from sidecar.control.injection.meshes import is_of_mesh
from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_whole_number,
)
from sidecar.control.injection.pod_annotations import PREFIX, PodRequest
from sidecar.errors import AnnotationInvalid, PodConflict
from sidecar.units import GIB, MIB

DEFAULT_GRACE_S: Final = 30
"""The API's default for a pod's terminationGracePeriodSeconds."""
OVERHEAD_BYTES: Final = 256 * MIB
"""Room in the state directory for everything but the spools: journals, metrics."""
_OUTSIDE_BYTES: Final = 80 * MIB
"""What a kubelet counts beside the state directory: the container's log (five files of 10 MiB,
whose sizes it checks now and then) and the shared emptyDir."""

_UNMOUNT_S: Final = 2.0
"""The least that a kubelet gives a container to end."""

_NO_BOUND: Final = Bound()
_CACHE_BYTES: Final[dict[CacheName, int]] = {"disk": 10 * GIB, "memory": GIB}
"""Default sizes of caches. A pod must not take all that is free on its node."""


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
    spec = resolve(
        catalogue,
        request.selection,
        run=request.run,
        paths=request.paths,
        options=request.options,
    )
    bound = catalogue.cluster.bounds.get("cacheBytes", Bound())
    spool_bytes = _spool_bytes(spec, request, bound)
    volumes = tuple(
        _placed(volume, spec.roots, spool_bytes, bound) if volume.is_bucket else volume
        for volume in spec.volumes
    )
    times = spec.times
    if all(volume.read_only for volume in spec.buckets):  # nothing can be left to save
        times = replace(times, grace_s=min(times.grace_s, _UNMOUNT_S))
    return replace(
        spec,
        volumes=volumes,
        times=times,
        access=_access(pod_spec),
        http=Http(port=_port(pod_spec, request)),
    )


def _placed(volume: Volume, roots: Roots, spool_bytes: int | None, bound: Bound) -> Volume:
    """A bucket as it is in a pod: where it is mounted, and with sizes that the pod can hold."""
    options = replace(volume.options, cache_bytes=_cache_bytes(volume, bound))
    if spool_bytes is not None:
        options = replace(options, spool_bytes=min(spool_bytes, options.spool_bytes))
    return replace(volume, mountpoint=shared_path(roots, volume.kind, volume.name), options=options)


def _cache_bytes(volume: Volume, bound: Bound = _NO_BOUND) -> int | None:
    """The size of a volume's own cache; None: no size of its own, such as in the node's cache.

    The default size is lowered to the admin's bound.
    """
    default = _CACHE_BYTES.get(volume.options.cache)
    if default is not None and bound.most is not None:
        default = min(default, int(bound.most))
    return volume.options.cache_bytes or default


def memory_cache_bytes(spec: PersistenceSpec) -> int:
    """How much of the sidecar's memory limit caches in memory take."""
    return _caches_bytes(spec, "memory")


def _caches_bytes(spec: PersistenceSpec, place: CacheName, bound: Bound = _NO_BOUND) -> int:
    caches = [volume for volume in spec.buckets if volume.options.cache == place]
    return sum(_cache_bytes(volume, bound) or 0 for volume in caches)


def state_bytes(spec: PersistenceSpec) -> int:
    """Size limit of the sidecar's state directory.

    Each writable bucket has its own spool, which is full (ENOSPC) before this limit is reached,
    and each cache keeps within its own size.
    """
    spools = sum(volume.options.spool_bytes for volume in _writable(spec))
    return OVERHEAD_BYTES + spools + _caches_bytes(spec, "disk")


def disk_limit(pod_spec: JsonObject, spec: PersistenceSpec, request: PodRequest) -> str | None:
    """The sidecar's limit on ephemeral storage, as a quantity; None: no limit.

    A kubelet evicts a pod that exceeds the sum of its containers' limits, and the spool counts. If
    another container has a limit, the sidecar needs one, or the spool uses up that container's. If
    none has, the sidecar's limit would be the limit of the whole pod.

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

    On the node's network there is none by default: a declared port would keep the next such pod
    from the node, and nobody finds a port that is not declared.
    """
    if request.port == "none":
        return None
    declared = {
        get_whole_number(port, "containerPort", f"spec.{group}.ports")
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
    return next(port for port in itertools.count(HTTP_PORT) if port not in declared)


def _access(pod_spec: JsonObject) -> Access:
    """Owner and modes in buckets: those of the user that the pod says it runs as.

    With ``fsGroup`` that group may write, whichever user a container runs as, and new files get the
    group, as the kubelet prepares other volumes (SetVolumeOwnership). If only the image names
    the user, everybody in the pod may read and write (:data:`ANYBODY`).
    """
    where = "spec.securityContext"
    contexts = [get_mapping(pod_spec, "securityContext", "spec")]
    own = (c for c in get_mappings(pod_spec, "containers", "spec") if not is_of_mesh(c))
    for container in itertools.islice(own, 1):
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


def _spool_bytes(spec: PersistenceSpec, request: PodRequest, bound: Bound) -> int | None:
    """Each spool's share of the annotated limit on disk; None without such a limit."""
    limit = request.resources.get("ephemeral-storage-limit")
    writable = _writable(spec)
    if limit is None or not writable:
        return None
    besides_bytes = OVERHEAD_BYTES + _OUTSIDE_BYTES + _caches_bytes(spec, "disk", bound)
    least_bytes = max(volume.options.part_bytes for volume in writable)
    spool_bytes = (limit.rounded_up - besides_bytes) // len(writable)
    if spool_bytes < least_bytes:
        raise AnnotationInvalid(
            f"annotation `{PREFIX}ephemeral-storage-limit`: leaves no room to write to "
            f"{len(writable)} bucket(s)",
            f"at least {(besides_bytes + len(writable) * least_bytes) // MIB}Mi",
        )
    return spool_bytes


def _writable(spec: PersistenceSpec) -> list[Volume]:
    return [volume for volume in spec.buckets if not volume.read_only]
