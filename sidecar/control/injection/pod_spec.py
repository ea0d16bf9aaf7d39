"""The spec of one pod: the resolved volumes, and what follows from the pod itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sidecar.control.catalogue.catalogue import Catalogue
from sidecar.control.catalogue.resolve import resolve, shared_path
from sidecar.control.injection.object_fields import Json, mapping, mappings, number
from sidecar.control.injection.pod_annotations import PREFIX, PodRequest
from sidecar.control.injection.quantity import parse_quantity, whole_bytes
from sidecar.errors import AnnotationInvalid
from sidecar.spec import ANYBODY, Access, PersistenceSpec, Sizes
from sidecar.units import MIB

DEFAULT_GRACE_S: Final = 30
"""A pod's terminationGracePeriodSeconds where it does not say (the API's default)."""
OVERHEAD_BYTES: Final = 256 * MIB
"""What the state directory may hold beside the spool and the cache: journals, metrics."""


def spec_of_pod(pod_spec: Json, request: PodRequest, catalogue: Catalogue) -> PersistenceSpec:
    """What the sidecar of a pod mounts, and how.

    A bucket is always mounted below the shared emptyDir, because mounts reach other containers
    only through it; one with a ``mountPath`` of its own is shown there through a sub-path.

    Args:
        pod_spec: the pod's ``spec``.
        request: its annotations.
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
    return replace(spec, volumes=volumes, access=_access(pod_spec), sizes=_sizes(spec, request))


def state_bytes(spec: PersistenceSpec, request: PodRequest) -> int:
    """The most that the sidecar's state directory can hold.

    Each writable bucket has a spool of its own, and stops with ENOSPC before this is reached.
    """
    limit = _ephemeral_bytes(request)
    if limit is not None:
        return limit
    return OVERHEAD_BYTES + len(_writable(spec)) * spec.sizes.spool_bytes


def _access(pod_spec: Json) -> Access:
    """Who owns what is in a bucket: who the experiment runs as, as far as the pod says.

    With ``fsGroup`` its group reads and writes, whoever the containers run as, and what is new
    gets that group: as the kubelet prepares every other volume (SetVolumeOwnership).
    Where only the image knows, everybody in the pod may read and write (:data:`ANYBODY`).
    """
    where = "spec.securityContext"
    contexts = [mapping(pod_spec, "securityContext", "spec")]
    for container in mappings(pod_spec, "containers", "spec")[:1]:
        contexts.insert(0, mapping(container, "securityContext", "spec.containers[0]"))
    uid = _first(contexts, "runAsUser", where)
    gid = _first(contexts[-1:], "fsGroup", where)
    if gid is not None:
        return Access(uid=uid or 0, gid=gid, file_mode=0o664, dir_mode=0o2775)
    gid = _first(contexts, "runAsGroup", where) or 0
    if uid is None:
        return replace(ANYBODY, gid=gid)
    return Access(uid=uid, gid=gid)


def _first(contexts: list[Json], key: str, where: str) -> int | None:
    found = [number(context, key, where) for context in contexts]
    return next((value for value in found if value is not None), None)


def _sizes(spec: PersistenceSpec, request: PodRequest) -> Sizes:
    limit = _ephemeral_bytes(request)
    writable = len(_writable(spec))
    if limit is None or not writable:
        return spec.sizes
    spool_bytes = (limit - OVERHEAD_BYTES) // writable
    if spool_bytes < spec.sizes.part_bytes:
        raise AnnotationInvalid(
            f"annotation `{PREFIX}ephemeral-storage-limit`: leaves no room to write to "
            f"{writable} bucket(s)",
            f"at least {(OVERHEAD_BYTES + writable * spec.sizes.part_bytes) // MIB}Mi",
        )
    return replace(spec.sizes, spool_bytes=min(spool_bytes, spec.sizes.spool_bytes))


def _ephemeral_bytes(request: PodRequest) -> int | None:
    given = request.resources.get("ephemeral-storage-limit")
    quantity = parse_quantity(given) if given is not None else None
    return None if quantity is None else whole_bytes(quantity)


def _writable(spec: PersistenceSpec) -> list[str]:
    return [volume.name for volume in spec.buckets if not volume.read_only]
